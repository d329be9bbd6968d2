"""The turns of a distillation, drawn: what training and labels did to the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlff_distiller import plotting
from mlff_distiller.plotting import BLUE, GREY, ORANGE, Panel

_ERRORS = (
    ("fit_error", "trained on", GREY),
    ("test_error", "held out", BLUE),
    ("own_error", "own MD", ORANGE),
)


def turn_panels(goal: Mapping[str, Any] | None) -> list[Panel]:
    """Errors against labels and against time of training, turn by turn, with what is allowed."""
    if goal is None:
        return []
    turns = goal["turns"]
    allowed = 100.0 * (1.0 - goal["forces_fidelity"])
    axes = {
        "Error against training": (
            "seconds of training, all turns",
            np.cumsum([turn["train_seconds"] for turn in turns]).tolist(),
        ),
        "Error against labels": ("labels", [turn["n_labels"] for turn in turns]),
    }
    panels: list[Panel] = []
    for title, (label, at) in axes.items():
        x = np.array(at, float)
        if panels and x.min() == x.max():
            continue
        traces = [
            plotting.line(x, _percent(turns, key), name, color).update(mode="lines+markers")
            for key, name, color in _ERRORS
        ]
        ends = np.array([x.min(), x.max()])
        traces.append(plotting.line(ends, np.full(2, allowed), "allowed", GREY, "dash"))
        y = {"title": "relative force error (%)", "rangemode": "tozero"}
        panels.append(Panel(title, plotting.figure(traces, {"title": label}, y, showlegend=True)))
    return panels


def _percent(turns: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(n_turns,) NaN where nothing was measured."""
    values = [turn[key] for turn in turns]
    return np.array([np.nan if value is None else 100.0 * value for value in values])
