"""Approved or rejected: named checks with limits. A check without a measurement fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mlff_distiller.errors import ConfigError
from mlff_distiller.validation.criteria import CRITERIA


@dataclass(frozen=True)
class Finding:
    """The number a check judges, None if it was not measured, and words that explain it."""

    value: float | None
    words: str = ""


def judge(findings: Mapping[str, Finding], limits: Mapping[str, float]) -> dict[str, Any]:
    """``status``, ``checks`` in the order of ``findings``, and ``reasons`` of those that failed.

    ``limits`` replace those of `CRITERIA`.

    Raises
    ------
    ConfigError
        A limit names an unknown check, or is not finite.
    """
    for name, limit in limits.items():
        if name not in CRITERIA:
            raise ConfigError(
                f"there is no check {name!r} to set a limit for",
                expected=", ".join(get_close_matches(name, CRITERIA, 3, 0.4) or CRITERIA),
            )
        if not math.isfinite(limit):
            raise ConfigError(f"the limit of {name} is not finite", found=limit)
    checks, reasons = [], []
    for name, finding in findings.items():
        criterion, value = CRITERIA[name], finding.value
        limit = limits.get(name, criterion.limit)
        measured = value is not None and math.isfinite(value)
        passed = measured and (value <= limit if criterion.at_most else value >= limit)  # type: ignore[operator]
        checks.append(
            {"name": name, "value": value if measured else None, "limit": limit, "passed": passed}
        )
        if passed:
            continue
        if value is None or math.isnan(value):
            reason = f"{name} was not measured, which counts as a failure"
        else:
            order = "at most" if criterion.at_most else "at least"
            reason = f"{criterion.failure}: {name} is {value:.4g}, {order} {limit:g} is allowed"
        reasons.append(reason + (f" ({finding.words})" if finding.words else ""))
    return {
        "status": "rejected" if reasons or not checks else "approved",
        "checks": checks,
        "reasons": reasons,
    }
