"""Time of an MD step, teacher beside student, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.verlet import VelocityVerlet

from mlff_distiller.structure import enlarge, thermalise


def ms_per_step(
    atoms: Atoms,
    calculator: BaseCalculator,
    *,
    n_steps: int,
    warm_up: int,
    repeats: int = 1,
    time_step_fs: float = 0.5,
) -> float:
    """Median wall-clock time (ms) of a velocity Verlet step through ASE, at 300 K.

    One sample is the mean over ``n_steps``; ``repeats`` samples follow ``warm_up`` steps.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    thermalise(atoms, 300.0, np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, time_step_fs * units.fs)
    dynamics.run(warm_up)
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        dynamics.run(n_steps)
        samples.append(1e3 * (time.perf_counter() - start) / n_steps)
    return statistics.median(samples)


def speed_table(
    seed: Atoms,
    teacher: BaseCalculator,
    student: BaseCalculator,
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
            teacher_ms.append(ms_per_step(atoms, teacher, n_steps=1, warm_up=1))
            student_ms.append(ms_per_step(atoms, student, n_steps=20, warm_up=5))
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
