"""What a validated force field may be used for: production, screening, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlff_distiller.validation.criteria import COMPARISONS, CRITERIA

Use = Literal["production", "screening", "unsuitable"]

LEAST_FIDELITY = 0.8
"""Smallest force fidelity for screening: larger errors would decide the ranking of candidates."""
_FIDELITY = "student_md_forces_fidelity"


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
    and its forces on its own dynamics, if a teacher scored them, are at least 80 % right.
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
    fidelity = failed.get(_FIDELITY, 1.0)
    if fidelity is None:
        return Class("unsuitable", "how right its forces are was not measured")
    if fidelity < LEAST_FIDELITY:
        words = f"its forces are {_percent(fidelity)} right; screening needs"
        return Class("unsuitable", f"{words} {_percent(LEAST_FIDELITY)}")
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
