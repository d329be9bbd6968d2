"""How far the student is from its teacher on given frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import units
from ase.data import chemical_symbols

from mlff_distiller.batch import Batch
from mlff_distiller.errors import DistillerError
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import Student
from mlff_distiller.training import metrics
from mlff_distiller.validation.evidence import ParitySet

_ATOMS_AT_ONCE = 2048


@dataclass(frozen=True)
class Comparison:
    """``errors`` is the ERRORS block of report.json, ``parity`` the series behind it."""

    errors: dict[str, Any]
    parity: ParitySet


@torch.no_grad()
def compare(student: Student, frames: Sequence[Batch]) -> Comparison:
    """Errors of ``student`` on single-system ``frames`` labelled by its teacher.

    The student runs as it is deployed: in its own dtype, on its own device.
    """
    if not frames:
        raise DistillerError("nothing to compare on", expected="at least one frame", found="none")
    energies, forces, stresses, baselines = [], [], [], []
    for group in _groups(frames):
        batch = Batch.concatenate(group)
        pairs = neighbor_list(batch, student.cutoff)
        prediction = student(batch.to(student.device), pairs.to(student.device))
        energies.append(prediction.energy.cpu().numpy())
        forces.append(prediction.forces.double().cpu().numpy())
        stresses.append(prediction.stress.cpu().numpy())
        own = student.reference_energies.cpu()[
            student.types(batch.atomic_numbers.to(student.device)).cpu()
        ]
        baselines.append(
            torch.zeros(batch.n_systems, dtype=torch.float64).index_add(0, batch.system_idx, own)
        )
    everything = Batch.concatenate(frames)
    n_atoms = everything.atoms_per_system.numpy()
    baseline = np.concatenate(baselines)
    labels = {name: value.double().numpy() for name, value in everything.labels.items()}
    teacher = (labels["energy"] - baseline) / n_atoms
    return _comparison(
        teacher - teacher.mean(),
        (np.concatenate(energies) - baseline) / n_atoms - teacher.mean(),
        labels["forces"],
        np.concatenate(forces),
        labels["stress"],
        np.concatenate(stresses),
        n_atoms,
        [chemical_symbols[number] for number in everything.atomic_numbers.tolist()],
    )


def _groups(frames: Sequence[Batch]) -> list[list[Batch]]:
    groups: list[list[Batch]] = [[]]
    for frame in frames:
        if groups[-1] and sum(own.n_atoms for own in groups[-1]) + frame.n_atoms > _ATOMS_AT_ONCE:
            groups.append([])
        groups[-1].append(frame)
    return groups


def _comparison(
    energy_teacher: np.ndarray,
    energy_student: np.ndarray,
    forces_teacher: np.ndarray,
    forces_student: np.ndarray,
    stress_teacher: np.ndarray,
    stress_student: np.ndarray,
    n_atoms: np.ndarray,
    symbols: list[str],
) -> Comparison:
    known = np.isfinite(stress_teacher).all((1, 2)) & np.isfinite(stress_student).all((1, 2))
    stress_teacher, stress_student = stress_teacher[known], stress_student[known]
    stress_error = np.abs(stress_student - stress_teacher) / units.GPa
    errors = {
        "n_frames": len(n_atoms),
        "energy_mae_meV_per_atom": 1e3 * float(np.abs(energy_student - energy_teacher).mean()),
        **force_errors(forces_teacher, forces_student),
        "stress_mae_GPa": float(stress_error.mean()) if known.any() else None,
    }
    parity = ParitySet(
        energy_teacher,
        energy_student,
        forces_teacher.reshape(-1),
        forces_student.reshape(-1),
        stress_teacher.reshape(-1),
        stress_student.reshape(-1),
        n_atoms,
        symbols,
    )
    return Comparison(errors, parity)


def force_errors(teacher: np.ndarray, student: np.ndarray) -> dict[str, float | None]:
    """`training.metrics.force_errors` of arrays, in double precision; None for what is NaN."""
    tensors = (torch.as_tensor(forces, dtype=torch.float64) for forces in (teacher, student))
    values = {name: float(value) for name, value in metrics.force_errors(*tensors).items()}
    return {name: None if math.isnan(value) else value for name, value in values.items()}
