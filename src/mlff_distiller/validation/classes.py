"""What a validated force field may be used for: production, screening, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mlff_distiller.validation.criteria import CRITERIA

Use = Literal["production", "screening", "unsuitable"]

LEAST_FIDELITY = 0.8
"""Of forces, for screening: beyond errors of a fifth of the forces they rank the candidates."""
_FIDELITY = "student_md_forces_fidelity"
_ABOUT_ACCURACY = {"imaginary_frequency_per_cm", "leaked_fraction", "speedup"}


@dataclass(frozen=True)
class Class:
    """One of three uses, and why."""

    name: Use
    why: str


def compares(check: str) -> bool:
    """Whether a check asks how near the teacher it is, and not whether physics holds.

    Leaked test structures are among these: they make a claim of accuracy worthless, not dynamics.
    """
    return "_difference_" in check or "fidelity" in check or check in _ABOUT_ACCURACY


def class_of(verdict: Mapping[str, Any]) -> Class:
    """The use that a ``verdict`` block allows.

    Production: approved. Screening: rejected, but only by checks that compare with the teacher, and
    forces on its own dynamics, if a teacher scored them, are at least 80 % right. Unsuitable: all
    others, for what broke physics once does so in any use. What was not measured has failed.
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
    words = [CRITERIA[name].failure for name, value in failed.items() if value is not None]
    unknown = [name.replace("_", " ") for name, value in failed.items() if value is None]
    return "; ".join([*words, *(["not measured: " + ", ".join(unknown)] if unknown else [])])
