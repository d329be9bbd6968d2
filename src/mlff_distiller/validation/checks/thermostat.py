"""Whether a thermostatted run samples the canonical ensemble, in all and element by element.

The kinetic energy of f degrees of freedom at temperature T is distributed as Gamma(f/2, kT): mean
f kT / 2, variance f (kT)² / 2, whatever the potential. A force field that pumps in heat (forces
that are not gradients, noise) or hot and cold parts of one system show here. After Merz and
Shirts, PLoS ONE 13, e0202764 (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from ase import units
from scipy.stats import gamma, kstest

from mlff_distiller import plotting
from mlff_distiller.md.record import Trajectory
from mlff_distiller.md.statistics import (
    Estimate,
    correlation_time,
    mean,
    variance,
)
from mlff_distiller.plotting import GREY, Panel
from mlff_distiller.structure import degrees_of_freedom
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.findings import completed, pair, worst
from mlff_distiller.validation.subject import Subject

_LEAST_INDEPENDENT = 20
"""Samples below which a test of a distribution's shape says nothing."""
_LARGEST_NOISE = 0.05
"""Standard error of a temperature over the temperature: beyond it nothing is known."""


@dataclass(frozen=True)
class Canonical:
    """Temperatures of one NVT run; None where it was too short to say."""

    target_K: float
    temperature_K: Estimate | None
    variance_ratio: Estimate | None
    """Variance of the kinetic energy over that of its mean, if canonical."""
    p_value: float | None
    """p of the Kolmogorov–Smirnov test against the Gamma distribution of the measured mean."""
    n_independent: int
    """Samples so far apart that they are independent: the test's."""
    elements_K: dict[str, Estimate]
    """Kinetic temperature of each element's atoms."""


def canonical(trajectory: Trajectory) -> Canonical:
    """Kinetic energies of a run with Langevin's thermostat, and the canonical distribution."""
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
    free, found = degrees_of_freedom(atoms), {}
    for symbol in dict.fromkeys(atoms.get_chemical_symbols()):
        own = np.asarray(atoms.symbols == symbol)
        if not free[own].sum() > 0.5:
            continue  # held
        # Without a thermostat the centre of mass is at rest, at the cost of all alike.
        degrees = free[own].sum() * trajectory.n_degrees / free.sum()
        temperature = mean(twice[:, own].sum(1) / (degrees * units.kB))
        if temperature is not None:
            found[symbol] = temperature
    return found


def _measure(subject: Subject) -> Measured:
    ensembles = [canonical(run) for run in subject.nvt]
    found = {
        "nvt_completed": completed(subject.nvt),
        "temperature_deviation_percent": worst(
            [_off(one.temperature_K, one.target_K) for one in ensembles], subject
        ),
        "kinetic_energy_p_value": worst([one.p_value for one in ensembles], subject, min),
        "element_temperature_deviation_percent": worst(
            [_elements_off(one) for one in ensembles], subject
        ),
    }
    rows = [_row(run, one) for run, one in zip(subject.nvt, ensembles, strict=True)]
    return Measured(found, {"dynamics": rows})


def _row(run: Trajectory, ensemble: Canonical) -> dict[str, Any]:
    return {
        "temperature_K": run.temperature_K,
        "time_step_fs": run.time_step_fs,
        "nvt_steps": run.n_steps,
        "mean_temperature_K": pair(ensemble.temperature_K),
        "kinetic_variance_ratio": pair(ensemble.variance_ratio),
        "n_independent": ensemble.n_independent,
        "elements_K": {name: pair(one) for name, one in ensemble.elements_K.items()},
        **({"why": run.why} if run.why else {}),
    }


def _off(temperature: Estimate | None, target: float) -> float | None:
    """Deviation in percent beyond noise; None where noise drowns it."""
    if temperature is None:
        return None
    beyond = 100.0 * temperature.beyond_noise(target) / target
    return beyond if beyond > 0 or temperature.error < _LARGEST_NOISE * target else None


def _elements_off(one: Canonical) -> float | None:
    parts = [_off(temperature, one.target_K) for temperature in one.elements_K.values()]
    known = [part for part in parts if part is not None]
    return max(known) if known and len(known) == len(parts) else None


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    runs = [run for run in series.get("runs") or [] if run.get("nvt")]
    return [_temperatures(runs), _histograms(runs)]


def _temperatures(runs: Sequence[Tree]) -> Panel:
    title, traces = "Temperature with a thermostat", []
    for number, run in enumerate(runs):
        columns = (plotting.array(run["nvt"][name]) for name in ("time_ps", "temperature_K"))
        time, kelvin = plotting.finite(*columns)
        if time.size > 1:
            target = np.full(2, run["target_K"])
            name = f"{run['target_K']:g} K"
            traces.append(plotting.line(time, kelvin, name, plotting.look(number)[0]))
            hidden = {"showlegend": False, "hoverinfo": "skip"}
            traces.append(plotting.line(time[[0, -1]], target, "", GREY, "dash", **hidden))
    drawn = plotting.figure(traces, {"title": "time (ps)"}, {"title": "temperature (K)"})
    return Panel(title, drawn if traces else None)


def _histograms(runs: Sequence[Tree]) -> Panel:
    """Temperatures and the canonical ``2 K / (f k)``, K distributed as Gamma(f/2, kT)."""
    title, traces = "Distribution of temperatures", []
    for number, run in enumerate(runs):
        (kelvin,) = plotting.finite(plotting.array(run["nvt"]["temperature_K"]))
        if kelvin.size < 20:
            continue
        heights, edges = np.histogram(kelvin, min(40, kelvin.size // 5), density=True)
        color, half = plotting.look(number)[0], 0.5 * run["n_degrees"]
        name = f"{run['target_K']:g} K"
        middles = 0.5 * (edges[1:] + edges[:-1])
        seen = plotting.line(middles, heights, name, color, line_shape="hvh", fill="tozeroy")
        traces.append(seen.update(fillcolor=plotting.pale(color)))
        expected = gamma(half, scale=run["target_K"] / half)
        low, high = expected.ppf([1e-4, 1 - 1e-4])
        x = np.linspace(low, high, 200)
        traces.append(plotting.line(x, expected.pdf(x), f"{name}, canonical", color, "dash"))
    y = {"title": "density (1/K)", "rangemode": "tozero"}
    return Panel(
        title, plotting.figure(traces, {"title": "temperature (K)"}, y) if traces else None
    )


CHECK = Check(
    (
        "nvt_completed",
        "temperature_deviation_percent",
        "kinetic_energy_p_value",
        "element_temperature_deviation_percent",
    ),
    _measure,
    section="dynamics",
    panels=_panels,
)
