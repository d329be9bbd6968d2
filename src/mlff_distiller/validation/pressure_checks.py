"""What runs at constant pressure say: completion, mean pressure, density."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.md import Ensemble
from mlff_distiller.md.compressibility import compressibility
from mlff_distiller.md.record import ForceField, OnStep, Trajectory, simulate
from mlff_distiller.md.statistics import Estimate, mean
from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.kinds import Kind
from mlff_distiller.validation.runs import Runs, plain, thermostat
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.verdict import Finding, judge

_BAROSTAT_FS = 500.0
"""Slow against sound across 100 Å, and 20 times in a run of 10 ps."""
_LEAST_TIMES = 20
_LARGEST_NOISE = 0.01
"""Of the volume: a pressure that is not known to so much is not known."""
_MOST_POINTS = 200
"""Of the volume's course that are kept."""


def pressure_run(
    force_field: ForceField,
    atoms: Atoms,
    settings: ValidationSettings,
    seed: int,
    on_step: OnStep = lambda done, total: None,
) -> Trajectory:
    """NPT at the first temperature, without its equilibration; ``time_ps`` long."""
    ensemble, n, n_before = thermostat(settings.temperature_K[0], settings, seed)
    whole = simulate(
        force_field,
        atoms,
        _barostat(force_field, atoms, ensemble, settings),
        n_before + n,
        settings.record_every,
        on_step,
    )
    return whole.part(n_before // settings.record_every) if whole.completed else whole


def _barostat(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, settings: ValidationSettings
) -> Ensemble:
    try:
        soft = compressibility(force_field, atoms)
    except Exception:  # of a foreign calculator: the run will tell
        soft = ensemble.compressibility_per_GPa
    return replace(
        ensemble,
        ensemble="npt",
        pressure_GPa=(settings.pressure_GPa or 0.0,),
        barostat_time_fs=min(_BAROSTAT_FS, 1e3 * settings.time_ps / _LEAST_TIMES),
        compressibility_per_GPa=soft,
    )


def has_pressure(kind: Kind, findings: Mapping[str, Finding], settings: ValidationSettings) -> bool:
    """Of crystals and liquids whose stress is the derivative of the energy.

    Where it is not, that is the reason for a rejection; all that follows would only repeat it.
    """
    stress = {"stress_derivative_error": findings.get("stress_derivative_error", Finding(None))}
    return (
        kind in ("crystal", "liquid")
        and settings.pressure_GPa is not None
        and judge(stress, settings.limits)["status"] == "approved"
    )


def under_pressure(
    force_field: ForceField,
    runs: Runs,
    settings: ValidationSettings,
    on_step: OnStep = lambda done, total: None,
) -> tuple[Runs, dict[str, Finding], dict[str, Any]]:
    """The runs with one at constant pressure, from the end of the thermostatted one."""
    completed, name = "npt_completed", "npt_pressure_deviation_GPa"
    if not runs.nvt.completed:
        why = "the run with a thermostat, from which it would begin, broke off"
        return runs, {completed: Finding(0.0, why), name: Finding(None, why)}, {}
    seed = settings.seed + 2000
    run = pressure_run(force_field, runs.nvt.frame(-1), settings, seed, on_step)
    found = {
        completed: Finding(float(run.completed), run.why.split("\n")[0]),
        name: pressure_deviation(run, _allowed(name, settings)),
    }
    measured = {"pressure": {"target_GPa": run.ensemble.pressure_GPa[0], **pressure_block(run)}}
    return replace(runs, npt=run), found, measured


def density_finding(
    mine: Trajectory | None, theirs: Trajectory, settings: ValidationSettings
) -> Finding:
    """Difference in percent beyond three errors; None where the error exceeds what is allowed."""
    if mine is None or not (mine.completed and theirs.completed):
        why = theirs.why.split("\n")[0]
        return Finding(None, f"the teacher's run broke off: {why}" if why else "a run broke off")
    a, b = mean(mine.density), mean(theirs.density)
    if a is None or b is None:
        return Finding(None, "too short a run")
    error = float(np.hypot(a.error, b.error))
    beyond = 100.0 * Estimate(a.value, error).beyond_noise(b.value) / b.value
    allowed = _allowed("density_difference_percent", settings)
    words = f"{a.value:.4g} and {b.value:.4g} ± {error:.2g} g/cm³"
    known = beyond > allowed or 100.0 * error / b.value <= allowed
    return Finding(beyond if known else None, words + ("" if known else "; run longer"))


def pressure_block(run: Trajectory) -> dict[str, Any]:
    """For JSON: means with their errors, and the course of the density."""
    density = mean(run.density) if run.completed else None
    pressure = mean(run.pressure_GPa) if run.completed else None
    keep = np.unique(np.linspace(0, max(0, len(run.volume) - 1), _MOST_POINTS).astype(int))
    keep = keep[: len(run.volume)]
    return {
        "completed": run.completed,
        "why": run.why,
        "density_g_per_cm3": density and [density.value, density.error],
        "pressure_GPa": pressure and [pressure.value, pressure.error],
        "course": {
            "time_ps": plain(run.time_ps[keep]),
            "density_g_per_cm3": plain(run.density[keep]),
        },
    }


def pressure_deviation(run: Trajectory, allowed: float) -> Finding:
    """Beyond noise; None where noise is worth more of the volume than `_LARGEST_NOISE`."""
    pressure = mean(run.pressure_GPa) if run.completed else None
    if pressure is None:
        return Finding(None, "too short a run, or none")
    words = f"{pressure.value:.3g} ± {pressure.error:.2g} GPa"
    beyond = pressure.beyond_noise(run.ensemble.pressure_GPa[0])
    strain = pressure.error * run.ensemble.compressibility_per_GPa
    known = beyond > allowed or strain < _LARGEST_NOISE
    return Finding(beyond if known else None, words + ("" if known else "; run longer"))


def _allowed(name: str, settings: ValidationSettings) -> float:
    return settings.limits.get(name, CRITERIA[name].limit)
