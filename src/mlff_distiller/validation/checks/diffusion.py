"""How fast atoms diffuse in a liquid."""

from __future__ import annotations

import numpy as np

from mlff_distiller.md.record import Trajectory
from mlff_distiller.md.statistics import Estimate
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_NAME = "diffusion_difference_percent"
_ERRORS = 3.0
"""Standard errors that are taken off a difference; as large as the value, they would hide any."""


def diffusion(trajectory: Trajectory, symbol: str, n_blocks: int = 5) -> Estimate | None:
    """Diffusion coefficient of an element in Å²/ps, by Einstein's relation.

    In every block the mean squared displacement over all origins, the centre of mass at rest, is
    fitted from a tenth to a half of the block; ``D`` is a sixth of the slope. None for blocks
    below 20 frames.
    """
    masses = trajectory.atoms.get_masses()
    centre = np.einsum("i,tik->tk", masses, trajectory.positions) / masses.sum()
    own = np.asarray(trajectory.atoms.symbols == symbol)
    moved = trajectory.positions[:, own] - centre[:, None]
    length = len(moved) // n_blocks
    if length < 20:
        return None
    found = []
    for block in range(n_blocks):
        part = moved[block * length : (block + 1) * length]
        lags = np.arange(length // 10, length // 2)
        squared = [float(((part[lag:] - part[:-lag]) ** 2).sum(2).mean()) for lag in lags if lag]
        times = (trajectory.time_ps[1] - trajectory.time_ps[0]) * lags[lags > 0]
        found.append(float(np.polyfit(times, squared, 1)[0]) / 6.0)
    return Estimate(float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(n_blocks)))


def _measure(subject: Subject) -> Measured:
    student, teacher = subject.nvt[0], subject.teacher_run
    if not (student.completed and teacher.completed):
        return Measured({_NAME: Finding(None, "a run broke off, or was too short")})
    return Measured({_NAME: compared(student, teacher)})


def compared(student: Trajectory, teacher: Trajectory) -> Finding:
    """The worst element's, beyond three errors of the difference."""
    worst = Finding(None, "a run broke off, or was too short")
    for symbol in dict.fromkeys(student.atoms.get_chemical_symbols()):
        mine, theirs = diffusion(student, symbol), diffusion(teacher, symbol)
        if mine is None or theirs is None or theirs.value <= 0:
            return Finding(None, f"{symbol}: too short a run")
        error = float(np.hypot(mine.error, theirs.error))
        if _ERRORS * error > theirs.value:
            return Finding(None, f"{symbol}: three error bars exceed the value; run longer")
        beyond = 100.0 * Estimate(mine.value, error).beyond_noise(theirs.value) / theirs.value
        if worst.value is None or beyond > worst.value:
            words = f"{symbol}: {mine.value:.3g} and {theirs.value:.3g} ± {error:.2g} Å²/ps"
            worst = Finding(beyond, words)
    return worst


CHECK = Check(
    (_NAME,), _measure, lambda subject: subject.teacher is not None and subject.kind == "liquid"
)
