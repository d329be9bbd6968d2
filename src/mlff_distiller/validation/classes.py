"""What a validated force field may be used for: production, screening, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlff_distiller.validation.criteria import COMPARISONS, CRITERIA

Use = Literal["production", "screening", "unsuitable"]

LEAST_FIDELITY = 0.8
"""Smallest force fidelity for screening: larger errors would decide the ranking of candidates."""
MOST_TIMES = 4.0
"""How many times its limit a difference from the teacher may be for screening, likewise."""
_NO_MATTER = ("speedup", "leaked_fraction")
"""For the ranking of candidates."""


@dataclass(frozen=True)
class Class:
    """One of three uses, and why."""

    name: Use
    why: str


def compares(check: str) -> bool:
    """Whether a check asks how close to the teacher it is; unknown ones count as physics."""
    return check in COMPARISONS


def class_of(verdict: Mapping[str, Any]) -> Class:
    """The use that a ``verdict`` block allows.

    Production: approved. Screening: rejected, but only by checks that compare it with the teacher,
    its forces are at least 80 % right, and no difference is more than four times its limit.
    Unsuitable: all others, because broken physics spoils any use. A check without a measurement
    has failed.
    """
    if verdict["status"] == "approved":
        return Class("production", "every check passed")
    failed = {check["name"]: check["value"] for check in verdict["checks"] if not check["passed"]}
    broken = {name: value for name, value in failed.items() if not compares(name)}
    if broken:
        return Class("unsuitable", _in_words(broken))
    if not failed:
        return Class("unsuitable", "nothing was checked")
    limits = {check["name"]: check["limit"] for check in verdict["checks"]}
    for name, value in failed.items():
        if name in _NO_MATTER:
            continue
        if value is None:
            return Class("unsuitable", _in_words({name: None}))
        if name.endswith("forces_fidelity"):
            if value < LEAST_FIDELITY:
                words = f"its forces are {_percent(value)} right; screening needs"
                return Class("unsuitable", f"{words} {_percent(LEAST_FIDELITY)}")
        elif value > MOST_TIMES * limits[name]:
            words = f"{value:.3g} {CRITERIA[name].unit}; screening takes {MOST_TIMES:g} limits of"
            return Class("unsuitable", f"{CRITERIA[name].failure}: {words} {limits[name]:g}")
    return Class("screening", "its physics holds, but " + _in_words(failed))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _in_words(failed: Mapping[str, float | None]) -> str:
    words = [
        CRITERIA[name].failure if name in CRITERIA else f"{name} failed"
        for name, value in failed.items()
        if value is not None
    ]
    missing = [
        CRITERIA[name].title if name in CRITERIA else name
        for name, value in failed.items()
        if value is None
    ]
    return "; ".join([*words, *(["not measured: " + ", ".join(missing)] if missing else [])])
