"""How long a step takes in the dynamics that a force field was validated with."""

from __future__ import annotations

from typing import Any

from ase import Atoms

from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import ForceField, ms_per_step


def speeds(
    force_field: ForceField,
    atoms: Atoms,
    temperature_K: float,
    device: str,
    teacher_ms: float | None = None,
) -> dict[str, Any]:
    """The ``speed`` block of measurements, on the ``device`` of this name.

    With ``teacher_ms``, what a step of the teacher takes, the teacher's time over the own. None
    where the dynamics breaks.
    """
    own: float | None
    try:
        own = ms_per_step(force_field, atoms, temperature_K)
    except DistillerError:
        own = None
    return {
        "n_atoms": len(atoms),
        "dynamics": "ase" if force_field.student is None else "run_md",
        "device": device,
        "ms_per_step": own,
        "teacher_ms_per_step": teacher_ms,
        "speedup": teacher_ms / own if teacher_ms and own else None,
    }
