"""Does the student's dynamics hold? A constant-energy run, its drift and its frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, simulate
from mlff_distiller.structure import thermalise

_EQUILIBRATION_FRICTION_PER_PS = 20.0


@dataclass(frozen=True, eq=False)
class Run:
    """A constant-energy trajectory; arrays have one entry a recorded step."""

    completed: bool
    n_steps: int
    time_step_fs: float
    temperature_K: float
    time_ps: np.ndarray
    total_energy: np.ndarray  # meV/atom, relative to the first
    temperatures: np.ndarray  # K
    frames: list[Atoms]  # without calculator, momenta kept
    why: str = ""

    @property
    def drift(self) -> float | None:
        """Slope of the total energy, meV/atom/ps, by least squares; None below three points."""
        if len(self.time_ps) < 3:
            return None
        return float(np.polyfit(self.time_ps, self.total_energy, 1)[0])

    @property
    def fluctuation(self) -> float | None:
        """Standard deviation of the total energy around that slope, meV/atom."""
        if len(self.time_ps) < 3:
            return None
        fit = np.polyval(np.polyfit(self.time_ps, self.total_energy, 1), self.time_ps)
        return float((self.total_energy - fit).std())


def run_nve(
    atoms: Atoms,
    calculator: Calculator,
    *,
    temperature_K: float,
    time_ps: float,
    time_step_fs: float,
    equilibration_ps: float,
    n_frames: int,
    seed: int,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Run:
    """Langevin equilibration at ``temperature_K``, then velocity Verlet at constant energy.

    Stops early, ``completed`` False, if the student fails (NaN) or the system explodes. Frames
    are evenly spaced over the constant-energy part; the energy is recorded every 10 steps.
    """
    n_steps = max(1, round(1e3 * time_ps / time_step_fs))
    n_before = round(1e3 * equilibration_ps / time_step_fs)
    record = min(10, n_steps)
    stride = max(1, n_steps // max(1, n_frames) // record)
    field, start = ForceField("student", calculator), atoms.copy()
    thermalise(start, 2.0 * temperature_K, np.random.default_rng(seed))
    before = Ensemble(
        ensemble="nvt",
        temperature_K=(temperature_K,),
        time_step_fs=time_step_fs,
        friction_per_ps=_EQUILIBRATION_FRICTION_PER_PS,
        seed=seed,
    )
    run = simulate(
        field, start, before, n_before, record, lambda done, _: on_step(done, n_before + n_steps)
    )
    if not run.completed:
        none = np.empty(0)
        return Run(False, 0, time_step_fs, temperature_K, none, none, none, [], run.why)
    run = simulate(
        field,
        run.frame(-1),
        replace(before, ensemble="nve"),
        n_steps,
        record,
        lambda done, _: on_step(n_before + done, n_before + n_steps),
    )
    frames = [run.frame(k) for k in range(stride, len(run.time_ps), stride)]
    return Run(
        run.completed,
        run.n_steps,
        time_step_fs,
        temperature_K,
        run.time_ps,
        run.total_energy,
        run.temperatures,
        frames[:n_frames],
        run.why,
    )
