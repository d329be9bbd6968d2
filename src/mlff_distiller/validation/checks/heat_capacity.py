"""Heat capacity at constant volume, from thermostatted runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import units

from mlff_distiller.md.statistics import Estimate, mean, variance
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.trajectory import Trajectory


def heat_capacity(runs: Sequence[Trajectory]) -> dict[str, Any]:
    """In k_B per atom, with its standard error: 3 for a classical solid of harmonic vibrations.

    ``from_temperatures`` is dE/dT, a line through the mean energies of two temperatures or more,
    weighted by their errors; ``from_fluctuations`` is ``var(E) / (k_B T²)`` of each run, and less
    certain. None of a run that broke off, or was too short.
    """
    rows, energies = [], []
    for run in runs:
        energy = (run.potential + run.kinetic) / len(run.atoms) if run.completed else np.zeros(0)
        average, spread = mean(energy), variance(energy)
        scale = len(run.atoms) / (units.kB * run.temperature_K) ** 2
        rows.append(
            {
                "temperature_K": run.temperature_K,
                "energy_meV_per_atom": average and [1e3 * average.value, 1e3 * average.error],
                "from_fluctuations": spread and [scale * spread.value, scale * spread.error],
            }
        )
        if average is not None:
            energies.append((run.temperature_K, average))
    line = _line(energies)
    return {
        "from_temperatures": line and [line.value / units.kB, line.error / units.kB],
        "runs": rows,
    }


def _line(points: Sequence[tuple[float, Estimate]]) -> Estimate | None:
    """Slope in eV/K, and its error by those of the points."""
    x = np.array([kelvin for kelvin, _ in points])
    if len(np.unique(x)) < 2:
        return None
    y = np.array([one.value for _, one in points])
    weight = np.array([max(one.error, 1e-12) for _, one in points]) ** -2
    centred = x - weight @ x / weight.sum()
    across = float(weight @ centred**2)
    return Estimate(float(weight @ (centred * y)) / across, across**-0.5)


def _measure(subject: Subject) -> Measured:
    numbers: dict[str, Any] = {"heat_capacity": heat_capacity(subject.nvt)}
    if subject.teacher is not None:
        numbers["teacher"] = {"heat_capacity": heat_capacity([subject.teacher_run])}
    return Measured({}, numbers)


CHECK = Check((), _measure)
