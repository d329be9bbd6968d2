"""Runs at constant pressure: whether the pressure is the one asked for, and the density."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.md import Ensemble
from mlff_distiller.md.compressibility import compressibility
from mlff_distiller.md.record import ForceField, Trajectory
from mlff_distiller.md.statistics import Estimate, mean
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.findings import plain
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_COMPLETED, _PRESSURE = "npt_completed", "npt_pressure_deviation_GPa"
_DENSITY = "density_difference_percent"
_BAROSTAT_FS = 500.0
"""Slow against sound across 100 Å, and 20 times in a run of 10 ps."""
_LEAST_TIMES = 20
_LARGEST_NOISE = 0.01
"""Share of the volume: a pressure known less well than this counts as unknown."""
_MOST_POINTS = 200
"""Points kept of the volume's course."""


def has_pressure(subject: Subject) -> bool:
    """Whether it is a crystal or a liquid whose stress is the derivative of the energy.

    Atoms that are held rule out a cell that changes.
    Where it is not, that is the reason for a rejection; all that follows would only repeat it.
    """
    stress = subject.findings.get("stress_derivative_error", Finding(None)).value
    return (
        subject.kind in ("crystal", "liquid")
        and subject.settings.pressure_GPa is not None
        and not subject.start.constraints
        and stress is not None
        and stress <= subject.limit("stress_derivative_error")
    )


def _pressure(subject: Subject) -> Measured:
    if not subject.nvt[0].completed:
        why = "the run with a thermostat, from which it would begin, broke off"
        return Measured({_COMPLETED: Finding(0.0, why), _PRESSURE: Finding(None, why)})
    begin, time_ps = subject.nvt[0].frame(-1), subject.settings.time_ps
    run = pressure_run(subject, subject.force_field, begin, time_ps, 2000)
    subject.npt = run
    found = {
        _COMPLETED: Finding(float(run.completed), run.why.split("\n")[0]),
        _PRESSURE: pressure_deviation(run, subject.limit(_PRESSURE)),
    }
    return Measured(
        found, {"pressure": {"target_GPa": run.ensemble.pressure_GPa[0], **_block(run)}}
    )


def _density(subject: Subject) -> Measured:
    whole, settings = subject.teacher_run, subject.settings
    begin = whole.frame(-1) if whole.completed else subject.atoms
    time_ps = settings.teacher_npt_ps or 0.5 * settings.time_ps
    theirs = pressure_run(subject, subject.reference, begin, time_ps, 3000)
    finding = density_finding(subject.npt, theirs, subject.limit(_DENSITY))
    return Measured({_DENSITY: finding}, {"teacher": {"pressure": _block(theirs)}})


def pressure_run(
    subject: Subject, force_field: ForceField, atoms: Atoms, time_ps: float, stream: int
) -> Trajectory:
    """NPT at the first temperature, ``time_ps`` long after an equilibration."""
    settings = subject.settings
    ensemble = subject.thermostat(settings.temperature_K[0], stream)
    before, n = subject.steps(2.0 * settings.equilibration_ps), max(1, subject.steps(time_ps))
    barostat = _barostat(force_field, atoms, ensemble, settings.pressure_GPa or 0.0, time_ps)
    show, every = subject.progress(f"constant pressure, {force_field.name}"), settings.record_every
    whole = subject.simulate(force_field, atoms, barostat, before + n, every, show)
    return whole.part(before // every) if whole.completed else whole


def _barostat(
    force_field: ForceField,
    atoms: Atoms,
    ensemble: Ensemble,
    pressure_GPa: float,
    time_ps: float,
) -> Ensemble:
    try:
        soft = compressibility(force_field, atoms)
    except Exception:  # a foreign calculator's: the run will tell
        soft = ensemble.compressibility_per_GPa
    return replace(
        ensemble,
        ensemble="npt",
        pressure_GPa=(pressure_GPa,),
        barostat_time_fs=min(_BAROSTAT_FS, 1e3 * time_ps / _LEAST_TIMES),
        compressibility_per_GPa=soft,
    )


def density_finding(mine: Trajectory | None, theirs: Trajectory, allowed: float) -> Finding:
    """Difference in percent beyond three errors; None where the error exceeds what is allowed."""
    if mine is None or not (mine.completed and theirs.completed):
        why = theirs.why.split("\n")[0]
        return Finding(None, f"the teacher's run broke off: {why}" if why else "a run broke off")
    a, b = mean(mine.density), mean(theirs.density)
    if a is None or b is None:
        return Finding(None, "too short a run")
    error = float(np.hypot(a.error, b.error))
    beyond = 100.0 * Estimate(a.value, error).beyond_noise(b.value) / b.value
    words = f"{a.value:.4g} and {b.value:.4g} ± {error:.2g} g/cm³"
    known = beyond > allowed or 100.0 * error / b.value <= allowed
    return Finding(beyond if known else None, words + ("" if known else "; run longer"))


def _block(run: Trajectory) -> dict[str, Any]:
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


PRESSURE = Check((_COMPLETED, _PRESSURE), _pressure, has_pressure, keep=False)
DENSITY = Check(
    (_DENSITY,), _density, lambda subject: subject.teacher is not None and subject.npt is not None
)
