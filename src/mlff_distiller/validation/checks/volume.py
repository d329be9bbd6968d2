"""Whether the teacher would keep the volume that the force field takes at constant pressure.

A short run at constant pressure, at the end of which the teacher is asked for its pressure. Where
it differs by dp from the force field's, the teacher's volume differs by dp times compressibility:
to first order that is the difference of densities, without any dynamics of the teacher.
"""

from __future__ import annotations

import numpy as np
from ase import units

from mlff_distiller.md.compressibility import compressibility
from mlff_distiller.validation.accuracy import Answers, answers
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.checks.density import pressure_run
from mlff_distiller.validation.subject import Subject, some_frames
from mlff_distiller.validation.verdict import Finding

NAME = "npt_volume_difference_percent"
_FRAMES = 12
_SQUEEZED = 6
"""Frames whose bulk modulus is taken: that of a hot, expanded solid is not that of a cold one."""
_LARGEST_CHANGE = 0.3
"""Share of the volume: what grows or shrinks by more has evaporated or collapsed."""


def _applies(subject: Subject) -> bool:
    """Whether it is a crystal or a liquid without held atoms, whose dynamics has gone well."""
    held = subject.findings.get("nve_completed", Finding(None)).value
    return (
        subject.teacher is not None
        and subject.kind in ("crystal", "liquid")
        and subject.settings.pressure_GPa is not None
        and not subject.start.constraints
        and held == 1.0
    )


def _measure(subject: Subject) -> Measured:
    begin, time_ps = subject.equilibrations[0].frame(-1), subject.settings.constant_energy_ps
    run = pressure_run(subject, subject.force_field, begin, time_ps, 4000)
    if not run.completed or not len(run.time_ps):
        why = run.why.split("\n")[0]
        return Measured({NAME: Finding(None, f"the run at constant pressure broke off: {why}")})
    change = float(run.volume[-1] / begin.get_volume() - 1.0)
    if abs(change) > _LARGEST_CHANGE:
        return Measured({NAME: Finding(100.0 * abs(change), f"the volume changed by {change:.0%}")})
    last_half = run.part(len(run.time_ps) // 2)
    frames, theirs = subject.scored(some_frames(last_half, _FRAMES))
    apart = _pressures(theirs) - _pressures(answers(subject.force_field, frames))
    apart = apart[np.isfinite(apart)]
    if not len(apart):
        return Measured()  # a teacher without stress: nothing to compare
    some = some_frames(last_half, _SQUEEZED)
    modulus = float(np.mean([1.0 / compressibility(subject.force_field, own) for own in some]))
    value = 100.0 * abs(float(apart.mean())) / modulus
    error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else np.nan
    words = (
        f"the teacher's pressure is {apart.mean():+.3g} ± {error:.1g} GPa beyond the student's; "
        f"bulk modulus {modulus:.3g} GPa"
    )
    return Measured({NAME: Finding(value, words)}, {"volume": {"change_percent": 100.0 * change}})


def _pressures(found: Answers) -> np.ndarray:
    """(n_frames,) GPa, without the kinetic part, which is the same for both."""
    return np.asarray(-np.trace(found.stress, axis1=1, axis2=2) / 3.0 / units.GPa)


CHECK = Check((NAME,), _measure, _applies, short=True)
