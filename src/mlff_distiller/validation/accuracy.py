"""How far a force field's answers are from its teacher's, on given frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError

from mlff_distiller.batch import Batch
from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import Student
from mlff_distiller.training import metrics

_ATOMS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class Answers:
    """Energies, forces and stresses of frames, as a force field or a label gives them."""

    energy: Array  # (n_frames,) eV
    forces: list[Array]  # n_frames of (n_atoms, 3) eV/Å
    stress: Array  # (n_frames, 3, 3) eV/Å³; NaN where there is none


@dataclass(frozen=True, eq=False)
class Compared:
    """Frames, and what the teacher and the force field answer for them."""

    frames: Sequence[Atoms]
    theirs: Answers
    mine: Answers

    @property
    def errors(self) -> dict[str, Any]:
        """The ERRORS block of report.json."""
        return errors(self.theirs, self.mine)


def answers(force_field: ForceField, frames: Sequence[Atoms]) -> Answers:
    """The force field's; cost: one evaluation per frame."""
    found = []
    for frame in frames:
        copy = frame.copy()
        copy.calc = force_field.calculator
        found.append(_answer(copy))
    return _joined(found)


def labels(frames: Sequence[Atoms]) -> Answers:
    """Those that `labelled` frames carry."""
    return _joined([_answer(frame) for frame in frames])


def labelled(frames: Sequence[Atoms]) -> list[Atoms]:
    """The frames that carry energy and forces."""
    return [
        frame
        for frame in frames
        if frame.calc is not None and {"energy", "forces"} <= set(frame.calc.results)
    ]


def _answer(atoms: Atoms) -> tuple[float, Array, Array]:
    try:
        raw = {"voigt": False, "apply_constraint": False}
        stress = np.array(atoms.get_stress(**raw)) if atoms.pbc.all() else None
    except PropertyNotImplementedError:
        stress = None
    return (
        float(atoms.get_potential_energy(apply_constraint=False)),
        np.array(atoms.get_forces(apply_constraint=False), dtype=np.float64),
        np.full((3, 3), np.nan) if stress is None else stress,
    )


def _joined(found: Sequence[tuple[float, Array, Array]]) -> Answers:
    energy, forces, stress = zip(*found, strict=True)
    return Answers(np.array(energy), list(forces), np.array(stress))


def errors(theirs: Answers, mine: Answers) -> dict[str, Any]:
    """The ERRORS block of report.json; stresses count where both have one."""
    sizes = np.array([len(forces) for forces in theirs.forces])
    apart = np.abs(mine.energy - theirs.energy) / sizes
    known = np.isfinite(theirs.stress).all((1, 2)) & np.isfinite(mine.stress).all((1, 2))
    stress = np.abs(mine.stress - theirs.stress)[known] / units.GPa
    return {
        "n_frames": len(sizes),
        "energy_mae_meV_per_atom": 1e3 * float(apart.mean()),
        **force_errors(np.concatenate(theirs.forces), np.concatenate(mine.forces)),
        "stress_mae_GPa": float(stress.mean()) if known.any() else None,
    }


def no_errors() -> dict[str, Any]:
    """The ERRORS block where there are no frames: every figure is null, and its check fails."""
    names = [*force_errors(np.zeros((1, 3)), np.zeros((1, 3)))]
    return {"n_frames": 0, **dict.fromkeys(["energy_mae_meV_per_atom", *names, "stress_mae_GPa"])}


@torch.no_grad()
def student_errors(student: Student, frames: Sequence[Batch]) -> dict[str, Any]:
    """`errors` of ``student`` on single-system labelled ``frames``, many of them at once.

    The student runs in its own dtype, on its own device, as PyTorch runs it.
    """
    if not frames:
        raise DistillerError("nothing to compare on", expected="at least one frame", found="none")
    found: list[tuple[float, Array, Array]] = []
    for group in _groups(frames):
        batch = Batch.concatenate(group)
        pairs = neighbor_list(batch, student.cutoff)
        prediction = student(batch.to(student.device), pairs.to(student.device))
        forces = prediction.forces.double().cpu().split(batch.atoms_per_system.tolist())
        stress = prediction.stress.double().cpu().numpy()
        found += zip(
            prediction.energy.tolist(), [own.numpy() for own in forces], stress, strict=True
        )
    truth = [
        (
            float(frame.labels["energy"][0]),
            frame.labels["forces"].double().numpy(),
            frame.labels["stress"][0].double().numpy(),
        )
        for frame in frames
    ]
    return errors(_joined(truth), _joined(found))


def _groups(frames: Sequence[Batch]) -> list[list[Batch]]:
    groups: list[list[Batch]] = [[]]
    for frame in frames:
        if groups[-1] and sum(own.n_atoms for own in groups[-1]) + frame.n_atoms > _ATOMS_AT_ONCE:
            groups.append([])
        groups[-1].append(frame)
    return groups


def force_errors(teacher: np.ndarray, student: np.ndarray) -> dict[str, float | None]:
    """`training.metrics.force_errors` of arrays, in double precision; None for what is NaN."""
    tensors = (torch.as_tensor(forces, dtype=torch.float64) for forces in (teacher, student))
    values = {name: float(value) for name, value in metrics.force_errors(*tensors).items()}
    return {name: None if math.isnan(value) else value for name, value in values.items()}
