"""What runs at all temperatures say: conservation, the canonical ensemble, incidents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlff_distiller.md.record import (
    ForceField,
    Trajectory,
)
from mlff_distiller.md.statistics import Estimate
from mlff_distiller.validation.canonical import Canonical, canonical
from mlff_distiller.validation.conservation import (
    Conservation,
    conservation,
    fluctuation_ratio,
)
from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.incidents import Incident, incidents
from mlff_distiller.validation.runs import Runs
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.verdict import Finding

_RATIO_STEPS = 200


def dynamic_findings(
    force_field: ForceField, runs: Sequence[Runs], settings: ValidationSettings
) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Of all temperatures the worst."""
    ensembles = [canonical(run.nvt) for run in runs]
    kept = [None if run.nve is None else conservation(run.nve) for run in runs]
    happened = [
        incident
        for run in runs
        for part in (run.nvt, run.nve)
        if part is not None
        for incident in incidents(part)
    ]
    first = runs[0].nve
    ratio = None
    if first is not None and first.completed:
        n = min(_RATIO_STEPS, first.n_steps)
        ratio = fluctuation_ratio(force_field, first.frame(-1), first.ensemble, n, 1)
    findings = {
        "nvt_completed": _completed([run.nvt for run in runs]),
        "nve_completed": _completed([run.nve for run in runs]),
        "incidents": Finding(
            float(len(happened)), "; ".join(incident.text for incident in happened[:3])
        ),
        "nve_drift_meV_per_atom_per_ps": _worst(
            [_drift(one, settings) for one in kept], settings.temperature_K
        ),
        "nve_fluctuation_ratio": Finding(ratio),
        "momentum_change": _worst(
            [None if one is None else one.momentum for one in kept], settings.temperature_K
        ),
        "temperature_deviation_percent": _worst(
            [_off(one.temperature_K, one.target_K) for one in ensembles], settings.temperature_K
        ),
        "kinetic_energy_p_value": _worst(
            [one.p_value for one in ensembles], settings.temperature_K, min
        ),
        "element_temperature_deviation_percent": _worst(
            [_elements_off(one) for one in ensembles], settings.temperature_K
        ),
    }
    measured = {
        "dynamics": [_dynamics_block(*row) for row in zip(runs, ensembles, kept, strict=True)],
        "incidents": [_incident_block(incident) for incident in happened[:100]],
    }
    return findings, measured


def _completed(parts: Sequence[Trajectory | None]) -> Finding:
    whys = [part.why.split("\n")[0] for part in parts if part is not None and part.why]
    return Finding(float(all(part is not None and part.completed for part in parts)), "".join(whys))


def _worst(
    values: Sequence[float | None],
    temperatures: Sequence[float],
    choose: Callable[..., int] = max,
) -> Finding:
    """The worst of all temperatures; None if one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        missing = [
            f"{t:g} K" for t, value in zip(temperatures, values, strict=True) if value is None
        ]
        return Finding(None, f"missing at {', '.join(missing)}: too short a run, or none")
    place = choose(range(len(known)), key=known.__getitem__)
    return Finding(known[place], f"at {temperatures[place]:g} K")


def _drift(one: Conservation | None, settings: ValidationSettings) -> float | None:
    """The drift beyond noise; None where noise is ten times what is allowed."""
    if one is None or one.drift is None:
        return None
    name = "nve_drift_meV_per_atom_per_ps"
    allowed = settings.limits.get(name, CRITERIA[name].limit)
    beyond = one.drift.beyond_noise(0.0)
    return None if one.drift.error > 10.0 * allowed and beyond <= allowed else beyond


_LARGEST_NOISE = 0.05
"""Standard error of a temperature over the temperature: beyond it nothing is known."""


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


def _dynamics_block(runs: Runs, ensemble: Canonical, kept: Conservation | None) -> dict[str, Any]:
    return {
        "temperature_K": runs.nvt.temperature_K,
        "time_step_fs": runs.nvt.time_step_fs,
        "nvt_steps": runs.nvt.n_steps,
        "nve_steps": runs.nve.n_steps if runs.nve is not None else 0,
        "mean_temperature_K": _estimate(ensemble.temperature_K),
        "kinetic_variance_ratio": _estimate(ensemble.variance_ratio),
        "n_independent": ensemble.n_independent,
        "elements_K": {name: _estimate(one) for name, one in ensemble.elements_K.items()},
        "drift_meV_per_atom_per_ps": None if kept is None else _estimate(kept.drift),
        "fluctuation_meV_per_atom": None if kept is None else kept.fluctuation,
        "why": runs.nvt.why or (runs.nve.why if runs.nve is not None else ""),
    }


def _incident_block(incident: Incident) -> dict[str, Any]:
    return {
        "kind": incident.kind,
        "frame": incident.frame,
        "time_ps": incident.time_ps,
        "atom": incident.atom,
        "text": incident.text,
    }


def _estimate(estimate: Estimate | None) -> list[float] | None:
    """Value and standard error."""
    return None if estimate is None else [estimate.value, estimate.error]
