"""Does the student's dynamics hold? A constant-energy run, its drift and its frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from mlff_distiller.errors import DistillerError
from mlff_distiller.structure import at_rest, default_time_step_fs, thermalise

_EQUILIBRATION_FRICTION = 0.02 / units.fs
_EXPLOSION_FACTOR = 8.0
"""Instantaneous temperature over the target's: beyond it something flew apart."""


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
    atoms = atoms.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(seed)
    thermalise(atoms, 2.0 * temperature_K, rng)
    at_rest(atoms)
    step = time_step_fs * units.fs
    n_steps = max(1, round(1e3 * time_ps / time_step_fs))
    n_equilibration = round(1e3 * equilibration_ps / time_step_fs)
    total = n_steps + n_equilibration
    record = min(10, n_steps)
    every = max(record, n_steps // max(1, n_frames) // record * record)
    rows: list[tuple[float, float, float]] = []
    frames: list[Atoms] = []
    done, why = 0, ""
    try:
        thermostat = Langevin(
            atoms,
            step,
            temperature_K=temperature_K,
            friction=_EQUILIBRATION_FRICTION,
            rng=rng,
            fixcm=False,
        )
        for _ in range(n_equilibration // record):
            thermostat.run(record)
            on_step(min(total, thermostat.nsteps), total)
            _check(atoms, temperature_K)
        at_rest(atoms)
        dynamics = VelocityVerlet(atoms, step)
        rows.append((0.0, atoms.get_total_energy(), atoms.get_temperature()))
        while done < n_steps:
            dynamics.run(min(record, n_steps - done))
            done = dynamics.nsteps
            on_step(min(total, n_equilibration + done), total)
            _check(atoms, temperature_K)
            rows.append(
                (1e-3 * done * time_step_fs, atoms.get_total_energy(), atoms.get_temperature())
            )
            if done % every == 0 and len(frames) < n_frames:
                frames.append(_bare(atoms))
    except DistillerError as error:
        why = str(error)
    series = np.array(rows).reshape(-1, 3)
    energy = 1e3 * (series[:, 1] - series[:1, 1]) / len(atoms)
    return Run(
        done >= n_steps,
        done,
        time_step_fs,
        temperature_K,
        series[:, 0],
        energy,
        series[:, 2],
        frames,
        why,
    )


def stays_up(
    atoms: Atoms, calculator: Calculator, temperature_K: float, n_steps: int, seed: int
) -> dict[str, float]:
    """How a short run ends: ``md_steps`` of ``n_steps`` at constant energy, and its mean T in K."""
    step = default_time_step_fs(atoms)
    run = run_nve(
        atoms,
        calculator,
        temperature_K=temperature_K,
        time_ps=1e-3 * step * n_steps,
        time_step_fs=step,
        equilibration_ps=1e-3 * step * n_steps,
        n_frames=1,
        seed=seed,
    )
    mean = float(run.temperatures.mean()) if len(run.temperatures) else 0.0
    return {"md_steps": float(run.n_steps), "md_temperature_K": mean}


def _check(atoms: Atoms, temperature_K: float) -> None:
    temperature = atoms.get_temperature()
    if (
        not np.isfinite(atoms.positions).all()
        or not temperature < _EXPLOSION_FACTOR * temperature_K
    ):
        fastest = int(np.nanargmax(np.linalg.norm(atoms.get_velocities(), axis=1)))
        raise DistillerError(
            f"the run exploded: atom {fastest} ({atoms.symbols[fastest]}) is the fastest",
            expected=f"a temperature near {temperature_K:g} K",
            found=f"{temperature:.0f} K",
        )


def _bare(atoms: Atoms) -> Atoms:
    frame: Atoms = atoms.copy()
    frame.calc = None
    return frame
