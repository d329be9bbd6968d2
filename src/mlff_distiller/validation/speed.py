"""How long a step takes in the dynamics that a force field was validated with."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.forces import choose_forces
from mlff_distiller.errors import DistillerError
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.structure import default_time_step_fs, thermalise
from mlff_distiller.validation import benchmark
from mlff_distiller.validation.trajectory import ForceField

_WARM_UP, _SECONDS, _SAMPLES = 20, 0.2, 3


def ms_per_step(force_field: ForceField, atoms: Atoms, temperature_K: float) -> float | None:
    """Median wall-clock time (ms) of a step at constant energy; None if it breaks.

    A student runs on its own integrator, for three samples of some 0.2 s; another calculator in
    ASE's, for three of five steps.
    """
    calculator = force_field.calculator
    step_fs = default_time_step_fs(atoms)
    try:
        if not isinstance(calculator, StudentCalculator):
            few = {"n_steps": 5, "warm_up": 2, "repeats": _SAMPLES}
            return benchmark.ms_per_step(atoms, calculator, time_step_fs=step_fs, **few)
        atoms = atoms.copy()
        thermalise(atoms, temperature_K, np.random.default_rng(0))
        ensemble = Ensemble(
            ensemble="nve", temperature_K=(temperature_K,), time_step_fs=step_fs, seed=0
        )
        forces = choose_forces(
            calculator.student, [atoms], force_field.dtype, "auto", ensemble.skin_A
        )
        simulation = Simulation(forces, [atoms], ensemble)
        n = _WARM_UP
        simulation.advance(n)
        n = max(5, min(2000, round(_SECONDS * n / _seconds(simulation, n))))
        return 1e3 * statistics.median(_seconds(simulation, n) / n for _ in range(_SAMPLES))
    except DistillerError:
        return None


def speeds(
    force_field: ForceField,
    atoms: Atoms,
    temperature_K: float,
    device: str,
    teacher_ms: float | None = None,
) -> dict[str, Any]:
    """The ``speed`` block of measurements, on the ``device`` of this name.

    With ``teacher_ms``, what a step of the teacher takes, the teacher's time over the own.
    """
    own, calculator = ms_per_step(force_field, atoms, temperature_K), force_field.calculator
    is_student = isinstance(calculator, StudentCalculator)
    return {
        "n_atoms": len(atoms),
        "dynamics": "run_md" if is_student else "ase",
        "device": device,
        "ms_per_step": own,
        "teacher_ms_per_step": teacher_ms,
        "speedup": teacher_ms / own if teacher_ms and own else None,
    }


def _seconds(simulation: Simulation, n_steps: int) -> float:
    """Of ``n_steps``; `Simulation.advance` ends when the device has ended."""
    began = time.perf_counter()
    simulation.advance(n_steps)
    return time.perf_counter() - began
