"""The front of accuracy against speed: what it is, its plot, and the page of a search."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from mlff_distiller.plotting import (
    COLORS,
    GREY,
    PURPLE,
    Array,
    Panel,
    figure,
    line,
    log_axis,
    markers,
)
from mlff_distiller.reports.page import write

TITLE = "Accuracy against speed"
_SYMBOLS = ("circle", "diamond", "square", "cross", "x")


def non_dominated(points: Array) -> NDArray[np.bool_]:
    """(n,) which of ``points`` (n, m) are not beaten: lower is better in every column.

    One is beaten by another that is nowhere worse and somewhere better; equal ones beat neither.
    """
    no_worse = (points[None, :, :] <= points[:, None, :]).all(2)
    better = (points[None, :, :] < points[:, None, :]).any(2)
    beaten: NDArray[np.bool_] = np.any(no_worse & better, axis=1)
    return ~beaten


@dataclass(frozen=True)
class Point:
    """One student: time in ms per step, force error in meV/Å."""

    ms: float
    error: float
    kind: str
    text: str
    """Shown next to the point or when it is pointed at; escaped."""
    on_front: bool


def trade_off(
    points: Sequence[Point],
    looks: Mapping[str, tuple[str, str]],
    axes: tuple[str, str],
    mark: tuple[str, float | None],
    **layout: Any,
) -> go.Figure:
    """Error against time on logarithmic axes: a cloud per kind, the front, and a named time.

    ``looks`` are colour and symbol by kind.
    """
    name, at = mark
    times, errors = np.array([(point.ms, point.error) for point in points]).T
    x = log_axis(axes[0], np.r_[times, [at or times[0]]])
    y = log_axis(axes[1], errors)
    traces: list[Any] = []
    if at:
        ends = 10.0 ** np.array(y["range"])
        traces.append(line(np.full(2, at), ends, name, GREY, "dash", hoverinfo="skip"))
    front = sorted((p.ms, p.error) for p in points if p.on_front)
    if len(front) > 1:
        ms, error = np.array(front).T
        traces.append(line(ms, error, "front", GREY, "dot", line_shape="hv", hoverinfo="skip"))
    hover = "%{text}<br>%{x:.3g} ms, %{y:.3g} meV/Å<extra></extra>"
    for kind, look in looks.items():
        own = [point for point in points if point.kind == kind]
        if own:
            ms, error = np.array([(point.ms, point.error) for point in own]).T
            cloud = markers(ms, error, (kind, *look), cliponaxis=False)
            traces.append(cloud.update(text=[point.text for point in own], hovertemplate=hover))
    return figure(traces, x, y, showlegend=True, **layout)


def trials_panel(
    trials: Sequence[Mapping[str, Any]], limit_ms: float | None, best: int | None, system: str
) -> Panel:
    """Validation force error against time per step: each trial, the front, the limit.

    ``trials`` are those of ``tune.json``; those without an error are not drawn. ``best`` is the
    number of the chosen one.
    """
    drawn = [row for row in trials if row["forces_mae_meV_per_A"] is not None]
    if not drawn:
        return Panel(TITLE, None, "Nothing to draw: no trial has an error.")
    points = [_point(row) for row in drawn]
    kinds = sorted({point.kind for point in points})
    looks = dict(zip(kinds, zip(COLORS, _SYMBOLS, strict=True), strict=False))
    axes = ("time per MD step (ms)", "validation force MAE (meV/Å)")
    shown = trade_off(points, looks, axes, ("limit", limit_ms), top=60, height=460)
    for kind in kinds:  # paler where beaten
        opacity = [1.0 if p.on_front else 0.4 for p in points if p.kind == kind]
        shown.update_traces(marker={"size": 9, "opacity": opacity}, selector={"name": kind})
    for point, row in zip(points, drawn, strict=True):
        if row["number"] == best:
            place = np.array([point.ms]), np.array([point.error])
            ring = markers(*place, ("chosen", PURPLE, "circle-open"), hoverinfo="skip")
            shown.add_trace(ring.update(marker={"size": 18, "opacity": 1, "line_width": 2.5}))
    note = f"Short trainings; times measured on {system}. Trials drawn: {len(drawn)}."
    if len(trials) > len(drawn):
        note += f" Without an error, and so left out: {len(trials) - len(drawn)}."
    return Panel(TITLE, shown, note)


def _point(row: Mapping[str, Any]) -> Point:
    """A trial; pointing at it shows its settings."""
    settings = row["settings"]
    lines = [f"trial {row['number']}", *(f"{key} {_short(own)}" for key, own in settings.items())]
    text = "<br>".join(map(html.escape, lines))
    architecture = html.escape(settings["student"].partition("-")[0])
    return Point(
        row["ms_per_step"], row["forces_mae_meV_per_A"], architecture, text, row["on_front"]
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_front(path: Path, found: Mapping[str, Any], name: str) -> None:
    """Write the page of a search; ``found`` is the content of ``tune.json``."""
    system = f"{found['system']['formula']}, {found['device']}"
    trials, best = found["trials"], found["best"]
    panel = trials_panel(trials, found["limit_ms_per_step"], best, system)
    write(path, "front.html.jinja", {"front": [panel]}, name=name, trials=trials, best=best)
