"""What Newton's equations keep: energy, up to the integrator's error, and momentum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms
from numpy.polynomial import Polynomial

from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import (
    Array,
    ForceField,
    OnStep,
    Trajectory,
    simulate,
)
from mlff_distiller.md.statistics import Estimate, slope


@dataclass(frozen=True)
class Conservation:
    """Of one run at constant energy; None where it was too short to say."""

    drift: Estimate | None
    """meV/atom/ps."""
    fluctuation: float | None
    """Standard deviation about that slope, meV/atom."""
    momentum: float | None
    """Largest change of the total momentum, as a fraction of the mean of ``sum_i |p_i|``."""


def conservation(trajectory: Trajectory) -> Conservation:
    """Drift, fluctuation and change of momentum of a run at constant energy."""
    n = len(trajectory.time_ps)
    drift = slope(trajectory.time_ps, trajectory.total_energy)
    fluctuation = _scatter(trajectory.time_ps, trajectory.total_energy) if n > 2 else None
    if n < 2:
        return Conservation(drift, fluctuation, None)
    momenta = trajectory.atoms.get_masses()[:, None] * trajectory.velocities  # (n, n_atoms, 3)
    total = momenta.sum(1)
    change = np.linalg.norm(total - total[0], axis=1).max()
    scale = np.linalg.norm(momenta, axis=2).sum(1).mean()
    return Conservation(drift, fluctuation, float(change / scale) if scale > 0 else None)


def fluctuation_ratio(
    force_field: ForceField,
    atoms: Atoms,
    ensemble: Ensemble,
    n_steps: int,
    every: int,
    on_step: OnStep = lambda done, total: None,
) -> float | None:
    """Fluctuation of the energy with the ensemble's time step over that with half of it.

    Velocity Verlet conserves a Hamiltonian that differs from the true one by O(dt²), so for smooth
    forces the ratio is 4. It falls towards 1 where something that does not depend on the step
    scatters the energy: noise, jumps at a cutoff, lost digits. Both runs begin alike and last as
    long, ``n_steps`` of the longer step. None if one did not complete.
    """
    dt = ensemble.time_step_fs
    if dt is None:
        raise ValueError("the ensemble needs a time step")
    scatters = []
    for factor in (1, 2):
        run = simulate(
            force_field,
            atoms,
            replace(ensemble, ensemble="nve", time_step_fs=dt / factor),
            factor * n_steps,
            factor * every,
            on_step,
        )
        if not run.completed or len(run.time_ps) < 8:
            return None
        scatters.append(_scatter(run.time_ps, run.total_energy))
    return scatters[0] / scatters[1] if scatters[1] > 0 else None


def _scatter(time: Array, energy: Array) -> float:
    return float(np.std(energy - Polynomial.fit(time, energy, 1)(time)))
