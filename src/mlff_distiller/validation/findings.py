"""Findings that several checks form alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mlff_distiller.md.statistics import Estimate
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.trajectory import Array, Trajectory
from mlff_distiller.validation.verdict import Finding


def completed(parts: Sequence[Trajectory]) -> Finding:
    """1 if every run came to its end, otherwise 0 and why not."""
    whys = [part.why.split("\n")[0] for part in parts if part.why]
    return Finding(float(all(part.completed for part in parts)), "; ".join(whys))


def worst(
    values: Sequence[float | None], subject: Subject, choose: Callable[..., int] = max
) -> Finding:
    """The worst of all temperatures; None if one is missing."""
    temperatures = subject.settings.temperature_K
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        missing = [
            f"{t:g} K" for t, value in zip(temperatures, values, strict=True) if value is None
        ]
        return Finding(None, f"missing at {', '.join(missing)}: the run broke off or was too short")
    place = choose(range(len(known)), key=known.__getitem__)
    return Finding(known[place], f"at {temperatures[place]:g} K")


def pair(estimate: Estimate | None) -> list[float] | None:
    """Value and standard error, for JSON."""
    return None if estimate is None else [estimate.value, estimate.error]


def plain(array: Array) -> list[float | None]:
    """For JSON: NaN and infinity are None."""
    return [round(x, 6) if np.isfinite(x) else None for x in array.tolist()]
