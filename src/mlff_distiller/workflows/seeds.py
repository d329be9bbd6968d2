"""The structures that a run begins with: read, checked, and looked at by the teacher first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write
from ase.optimize import LBFGS

from mlff_distiller.batch import check_structure
from mlff_distiller.dataset import input_hash
from mlff_distiller.durable import EventLog, replacing
from mlff_distiller.errors import DistillerError, StructureError
from mlff_distiller.labeling import FilesOrAtoms, as_list, read_frames
from mlff_distiller.sampling import RattleSettings
from mlff_distiller.structure import (
    bare,
    degrees_of_freedom,
    enlarge,
    warn_of_constraints,
    warn_of_what_labels_lack,
)
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.workflows.train import OnProgress

_RELAXED_eV_PER_A = 0.1
"""Where relaxing ends: it leaves 0.5 meV in a bond of 10 eV/Å², a fiftieth of kT at 300 K."""
_MOST_STEPS = 300
_NUDGE_A = 0.05
"""Half of what atoms move at 300 K. Forces keep a structure's symmetry, even on a saddle point."""


def read_seeds(sources: FilesOrAtoms) -> list[Atoms]:
    """Every frame of every source, checked; exact repeats are dropped.

    Charges, moments and the constraints that are honoured are kept.
    """
    frames: dict[str, Atoms] = {}
    for source in as_list(sources):
        found = [source] if isinstance(source, Atoms) else read_frames(source)
        for index, atoms in enumerate(found):
            name = f"structure {index} of {source}"
            check_structure(atoms, name)
            kept = bare(atoms)
            if degrees_of_freedom(kept).sum() < 0.5:
                raise StructureError(
                    f"constraints hold all atoms of {name}",
                    expected="atoms that may move, as sampling and dynamics keep constraints",
                    remedy="remove some of them",
                )
            frames.setdefault(input_hash(kept), kept)
        warn_of_what_labels_lack(found, source)
        warn_of_constraints(found, source)
    if not frames:
        raise StructureError("no structures were given", expected="at least one")
    return list(frames.values())


def ready_seeds(
    out: Path,
    given: Sequence[Atoms],
    teacher: TeacherCalculator,
    settings: RattleSettings,
    log: EventLog,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> tuple[list[Atoms], list[str]]:
    """What is sampled from: ``given`` without strain, and periodic ones large enough.

    A structure on whose atoms the teacher's forces exceed ``relax_above_eV_per_A`` is relaxed in
    its cell, by L-BFGS, to a minimum: what it is above one heats whatever is sampled from it. Kept
    in ``out/seeds.traj``, where an interrupted run finds them; also says what was done to which.
    """
    path = out / "seeds.traj"
    known = log.rows("seeds")
    if path.exists() and known:
        return read_structures(path), list(known[-1]["words"])
    ready, words = [], []
    for index, atoms in enumerate(given):
        relaxed, said = _relaxed(atoms, teacher, settings.relax_above_eV_per_A, on_progress)
        words += [f"structure {index} ({atoms.get_chemical_formula()}): {said}"] if said else []
        periodic = relaxed.pbc.any()
        ready.append(enlarge(relaxed, settings.min_atoms) if periodic else relaxed)
    if words:  # otherwise they are what was given
        save_structures(path, ready)
        log.write("seeds", words=words)
    return ready, words


def _relaxed(
    atoms: Atoms, teacher: TeacherCalculator, above: float | None, on_progress: OnProgress
) -> tuple[Atoms, str]:
    """``atoms`` or what it relaxed to, and what was done, in words."""
    if above is None:
        return atoms, ""
    moved = atoms.copy()
    moved.calc = teacher
    try:
        before, energy = _largest_force(moved), moved.get_potential_energy()
        if before <= above:
            return atoms, ""
        moved.rattle(_NUDGE_A)
        with LBFGS(moved, logfile=None) as descent:  # type: ignore[arg-type]

            def show() -> None:
                left = f"{_largest_force(moved):.2g} eV/Å"
                on_progress("relax", descent.nsteps, _MOST_STEPS, left)

            descent.attach(show)
            descent.run(fmax=_RELAXED_eV_PER_A, steps=_MOST_STEPS)
        after, fell = _largest_force(moved), energy - moved.get_potential_energy()
    except DistillerError:  # sampling will say what the teacher cannot do
        return atoms, ""
    if not np.isfinite(after) or after >= before:
        return atoms, f"forces of up to {before:.2g} eV/Å, which did not relax"
    way = np.linalg.norm(moved.positions - atoms.positions, axis=1).max()
    return bare(moved), (
        f"forces of up to {before:.2g} eV/Å were relaxed to {after:.2g}; atoms moved by up to "
        f"{way:.2g} Å, and the energy fell by {fell / len(atoms):.2g} eV/atom"
    )


def _largest_force(atoms: Atoms) -> float:
    return float(np.linalg.norm(atoms.get_forces(), axis=1).max())


def save_structures(path: Path, structures: Sequence[Atoms]) -> None:
    """Write structures as ASE's ``.traj``, which keeps every digit."""
    with replacing(path) as temporary:
        write(temporary, list(structures), format="traj")


def read_structures(path: Path) -> list[Atoms]:
    """What `save_structures` wrote; none if the file is not there."""
    found: Any = read(path, index=":") if path.exists() else []
    return [bare(atoms) for atoms in found]
