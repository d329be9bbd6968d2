"""The runs at one temperature that dynamics is judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms

from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import (
    Array,
    ForceField,
    OnStep,
    Trajectory,
    simulate,
)
from mlff_distiller.validation.settings import ValidationSettings


@dataclass(frozen=True, eq=False)
class Runs:
    """At one temperature."""

    nvt: Trajectory
    """Without its equilibration."""
    nve: Trajectory | None
    """None where the run before it broke."""
    npt: Trajectory | None = None
    """None where there is no pressure, or a run or law before it broke."""


def dynamics(
    force_field: ForceField,
    atoms: Atoms,
    kelvin: float,
    settings: ValidationSettings,
    seed: int,
    on_step: OnStep = lambda done, total: None,
) -> Runs:
    """A run with a thermostat, and from its end one at constant energy."""
    ensemble, n, n_before = thermostat(kelvin, settings, seed)
    total = n_before + 2 * n
    every = settings.record_every
    whole = simulate(
        force_field, atoms, ensemble, n_before + n, every, lambda done, _: on_step(done, total)
    )
    nvt = whole.part(n_before // every) if whole.completed else whole
    nve = None
    if whole.completed:
        nve = simulate(
            force_field,
            whole.frame(-1),
            replace(ensemble, ensemble="nve"),
            n,
            every,
            lambda done, _: on_step(n_before + n + done, total),
        )
    return Runs(nvt, nve)


def thermostat(kelvin: float, settings: ValidationSettings, seed: int) -> tuple[Ensemble, int, int]:
    """Settings of the thermostatted run, its steps, and those before."""
    step, every = settings.time_step_fs or 1.0, settings.record_every
    n = max(every, round(1e3 * settings.time_ps / step) // every * every)
    n_before = round(1e3 * settings.equilibration_ps / step) // every * every
    ensemble = Ensemble(
        ensemble="nvt",
        temperature_K=(kelvin,),
        time_step_fs=step,
        friction_per_ps=settings.friction_per_ps,
        seed=seed,
    )
    return ensemble, n, n_before


def some_frames(trajectory: Trajectory, n: int) -> list[Atoms]:
    """At most ``n``, evenly spaced."""
    places = np.unique(np.linspace(0, len(trajectory.time_ps) - 1, n).round().astype(int))
    return [trajectory.frame(k) for k in places.tolist()] if len(trajectory.time_ps) else []


def plain(array: Array) -> list[float | None]:
    """For JSON: NaN and infinity are None."""
    return [round(x, 6) if np.isfinite(x) else None for x in array.tolist()]
