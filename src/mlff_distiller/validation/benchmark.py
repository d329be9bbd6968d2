"""Time of an MD step, teacher beside student, in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.md.record import ForceField, ms_per_step
from mlff_distiller.structure import enlarge


def speed_table(
    seed: Atoms,
    teacher: Calculator,
    student: Calculator,
    sizes: Sequence[int],
    device: str,
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The ``speed`` rows of report.json: ``seed`` enlarged to each of ``sizes``.

    The two take turns at each size, so that a slow moment of the machine meets both.
    """
    systems: dict[int, Atoms] = {}
    for size in sizes:
        large = enlarge(seed, size)
        systems.setdefault(len(large), large)
    rows = []
    for index, (n_atoms, atoms) in enumerate(sorted(systems.items())):
        teacher_ms, student_ms = [], []
        for _ in range(3):
            slow, fast = ForceField("teacher", teacher), ForceField("student", student)
            teacher_ms.append(ms_per_step(slow, atoms, seconds=0.0, samples=1, in_ase=True))
            student_ms.append(ms_per_step(fast, atoms, seconds=0.02, samples=1, in_ase=True))
        pair = statistics.median(teacher_ms), statistics.median(student_ms)
        rows.append(
            {
                "system": atoms.get_chemical_formula(),
                "n_atoms": n_atoms,
                "device": device,
                "teacher_ms_per_step": pair[0],
                "student_ms_per_step": pair[1],
                "speedup": pair[0] / pair[1],
            }
        )
        on_row(index + 1, len(systems))
    return rows
