"""What Newton's equations keep: energy, up to the integrator's error, and momentum."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from numpy.polynomial import Polynomial

from mlff_distiller import plotting
from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import Array, ForceField, Trajectory, simulate
from mlff_distiller.md.statistics import Estimate, slope
from mlff_distiller.plotting import Panel
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.findings import completed, pair, worst
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_DRIFT = "nve_drift_meV_per_atom_per_ps"
_RATIO_STEPS = 200


@dataclass(frozen=True)
class Conservation:
    """What one run at constant energy kept; None where it was too short to say."""

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
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
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
        )
        if not run.completed or len(run.time_ps) < 8:
            return None
        scatters.append(_scatter(run.time_ps, run.total_energy))
    return scatters[0] / scatters[1] if scatters[1] > 0 else None


def _scatter(time: Array, energy: Array) -> float:
    return float(np.std(energy - Polynomial.fit(time, energy, 1)(time)))


def _measure(subject: Subject) -> Measured:
    kept = [None if run is None else conservation(run) for run in subject.nve]
    found = {
        "nve_completed": completed(
            [
                run if run is not None else before
                for run, before in zip(subject.nve, subject.equilibrations, strict=True)
            ]
        ),
        _DRIFT: _with_error(
            worst([drift_of(one, subject.limit(_DRIFT)) for one in kept], subject), kept
        ),
    }
    rows = [
        _row(before, run, one)
        for before, run, one in zip(subject.equilibrations, subject.nve, kept, strict=True)
    ]
    return Measured(found, {"dynamics": rows})


def _row(before: Trajectory, run: Trajectory | None, kept: Conservation | None) -> dict[str, Any]:
    return {
        "temperature_K": before.temperature_K,
        "time_step_fs": before.time_step_fs,
        "nve_steps": 0 if run is None else run.n_steps,
        "drift_meV_per_atom_per_ps": None if kept is None else pair(kept.drift),
        "fluctuation_meV_per_atom": None if kept is None else kept.fluctuation,
        "why": before.why if run is None else run.why,
    }


def _with_error(drift: Finding, kept: Sequence[Conservation | None]) -> Finding:
    """``drift``, which is beyond noise, with the largest as it is and its standard error."""
    known = [one.drift for one in kept if one is not None and one.drift is not None]
    if drift.value is None or not known:
        return drift
    most = max(known, key=lambda one: abs(one.value))
    return Finding(
        drift.value, f"{most.value:.2g} ± {most.error:.1g} meV/atom/ps {drift.words}".strip()
    )


def drift_of(one: Conservation | None, allowed: float) -> float | None:
    """The drift beyond three standard errors; None where these exceed ten times ``allowed``."""
    if one is None or one.drift is None:
        return None
    beyond = one.drift.beyond_noise(0.0)
    return None if one.drift.error > 10.0 * allowed and beyond <= allowed else beyond


def _integration(subject: Subject) -> Measured:
    first, ratio = subject.nve[0], None
    if first is not None and first.completed:
        n = min(_RATIO_STEPS, first.n_steps)
        ratio = fluctuation_ratio(subject.force_field, first.frame(-1), first.ensemble, n, 1)
    found = {"nve_fluctuation_ratio": Finding(ratio)}
    if not subject.start.constraints:  # what holds an atom takes up momentum
        momenta = [None if run is None else conservation(run).momentum for run in subject.nve]
        found["momentum_change"] = worst(momenta, subject)
    return Measured(found)


def energies(named: Sequence[tuple[str, Tree]]) -> Panel:
    """Total energy at constant energy over time, of each of ``named`` series."""
    title, traces = "Total energy at constant energy", []
    for number, (name, run) in enumerate(named):
        time, energy = plotting.finite(
            plotting.array(run["time_ps"]), plotting.array(run["total_energy_meV_per_atom"])
        )
        if time.size > 1:
            color = plotting.look(number)[0]
            traces.append(plotting.line(time, energy, html.escape(name), color))
    y = {"title": "change of energy (meV/atom)"}
    note = "Without a thermostat it must neither climb nor fall."
    drawn = plotting.figure(traces, {"title": "time (ps)"}, y) if traces else None
    return Panel(title, drawn, note)


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    runs = series.get("runs") or []
    return [energies([(f"{run['target_K']:g} K", run["nve"]) for run in runs if run.get("nve")])]


CHECK = Check(("nve_completed", _DRIFT), _measure, short=True, section="dynamics", panels=_panels)
INTEGRATION = Check(("nve_fluctuation_ratio", "momentum_change"), _integration)
