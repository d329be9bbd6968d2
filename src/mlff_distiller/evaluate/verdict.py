"""Approved or rejected: named checks with limits. A check without a measurement fails."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

Positive = Annotated[float, Field(gt=0)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Limits:
    """What a student must reach to be approved."""

    forces_fidelity: Annotated[float, Field(gt=0, lt=1)] = 0.95
    nve_drift_meV_per_atom_per_ps: Positive = 0.01
    speedup: Positive = 5.0


def verdict(report: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The ``verdict`` block for the other blocks of report.json.

    The speed check takes the smallest system: launch and bookkeeping weigh most there.
    """
    accuracy, stability, speed = report["accuracy"], report["stability"], report["speed"]
    drift = stability["nve_drift_meV_per_atom_per_ps"]
    checks = [
        _at_least(
            f"{name}_forces_fidelity", accuracy[name]["forces_fidelity"], limits.forces_fidelity
        )
        for name in ("test", "student_md")
    ]
    checks.append(_at_least("nve_completed", float(stability["completed"]), 1.0))
    checks.append(
        _at_most(
            "nve_drift_meV_per_atom_per_ps",
            None if drift is None else abs(drift),
            limits.nve_drift_meV_per_atom_per_ps,
        )
    )
    checks.append(_at_least("speedup", speed[0]["speedup"] if speed else None, limits.speedup))
    approved = all(check["passed"] for check in checks)
    return {"status": "approved" if approved else "rejected", "checks": checks}


def _at_least(name: str, value: float | None, limit: float) -> dict[str, Any]:
    passed = value is not None and math.isfinite(value) and value >= limit
    return {"name": name, "value": value, "limit": limit, "passed": passed}


def _at_most(name: str, value: float | None, limit: float) -> dict[str, Any]:
    passed = value is not None and math.isfinite(value) and value <= limit
    return {"name": name, "value": value, "limit": limit, "passed": passed}
