"""Whether a thermostatted run samples the canonical ensemble, in all and element by element.

The kinetic energy of f degrees of freedom at temperature T is distributed as Gamma(f/2, kT): mean
f kT / 2, variance f (kT)² / 2, whatever the potential. A force field that pumps in heat (forces
that are no gradient, noise) or hot and cold parts of one system show here. After Merz and Shirts,
PLoS ONE 13, e0202764 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from ase import units
from scipy.stats import gamma, kstest

from mlff_distiller.md.record import Trajectory
from mlff_distiller.md.statistics import (
    Estimate,
    correlation_time,
    mean,
    variance,
)

_LEAST_INDEPENDENT = 20
"""Samples below which a test of a distribution's shape says nothing."""


@dataclass(frozen=True)
class Canonical:
    """Temperatures of one NVT run; None where it was too short to say."""

    target_K: float
    temperature_K: Estimate | None
    variance_ratio: Estimate | None
    """Variance of the kinetic energy over that of its mean, if canonical."""
    p_value: float | None
    """Of Kolmogorov and Smirnov, for the shape: the Gamma distribution of the measured mean."""
    n_independent: int
    """Samples so far apart that they are independent: the test's."""
    elements_K: dict[str, Estimate]
    """Kinetic temperature of each element's atoms."""


def canonical(trajectory: Trajectory) -> Canonical:
    """Kinetic energies of a run with Langevin's thermostat beside the canonical distribution."""
    kinetic, degrees = trajectory.kinetic, trajectory.n_degrees
    if len(kinetic) < 2:
        return Canonical(trajectory.temperature_K, None, None, None, 0, {})
    temperature = mean(trajectory.temperatures)
    spread = variance(kinetic)
    expected = 2.0 / degrees * float(kinetic.mean()) ** 2  # f (kT)²/2 with kT = 2 <K> / f
    ratio = spread and Estimate(spread.value / expected, spread.error / expected)
    independent = kinetic[:: ceil(2.0 * correlation_time(kinetic))]
    p_value = None
    if len(independent) >= _LEAST_INDEPENDENT:
        shape = gamma(0.5 * degrees, scale=2.0 * kinetic.mean() / degrees)
        p_value = float(kstest(independent, shape.cdf).pvalue)
    return Canonical(
        trajectory.temperature_K,
        temperature,
        ratio,
        p_value,
        len(independent),
        _by_element(trajectory),
    )


def _by_element(trajectory: Trajectory) -> dict[str, Estimate]:
    atoms = trajectory.atoms
    twice = np.einsum("i,tik,tik->ti", atoms.get_masses(), *2 * [trajectory.velocities])
    found = {}
    for symbol in dict.fromkeys(atoms.get_chemical_symbols()):
        own = np.asarray(atoms.symbols == symbol)
        # Without a thermostat the centre of mass is at rest, at the cost of all alike.
        degrees = 3 * own.sum() * trajectory.n_degrees / (3 * len(atoms))
        temperature = mean(twice[:, own].sum(1) / (degrees * units.kB))
        if temperature is not None:
            found[symbol] = temperature
    return found
