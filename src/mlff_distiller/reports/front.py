"""The accuracy–speed front of students that were tried: what it is, and its plot."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import plotly
import plotly.graph_objects as go
from numpy.typing import NDArray

from mlff_distiller.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Panel,
    figure,
    line,
    log_axis,
    markers,
)
from mlff_distiller.reports.evidence import Array

_LOOKS = ((BLUE, "circle"), (ORANGE, "diamond"), (BLUE, "square"), (ORANGE, "cross"))
"""Of architectures by name, from the first on."""


def non_dominated(points: Array) -> NDArray[np.bool_]:
    """(n,) which of ``points`` (n, m) are not beaten: lower is better in every column.

    One is beaten by another that is nowhere worse and somewhere better; equal ones beat neither.
    """
    no_worse = (points[None, :, :] <= points[:, None, :]).all(2)
    better = (points[None, :, :] < points[:, None, :]).any(2)
    beaten: NDArray[np.bool_] = np.any(no_worse & better, axis=1)
    return ~beaten


def front_panel(
    rows: Sequence[Mapping[str, Any]], limit_ms: float | None, best: int | None, system: str
) -> Panel:
    """Validation force error against time per step: each trial, the front, the limit.

    ``rows`` are the trials of ``tune.json``; those without an error are not drawn. ``best`` is the
    number of the chosen one.
    """
    title = "Accuracy against speed"
    drawn = [row for row in rows if row["forces_mae_meV_per_A"] is not None]
    if not drawn:
        return Panel(title, None)
    times, errors = ([row[key] for row in drawn] for key in ("ms_per_step", "forces_mae_meV_per_A"))
    horizontal = log_axis("time per MD step (ms)", np.array([*times, limit_ms or times[0]]))
    vertical = log_axis("validation force MAE (meV/Å)", np.array(errors))
    front = sorted((row for row in drawn if row["on_front"]), key=lambda row: row["ms_per_step"])
    traces: list[Any] = []
    if limit_ms is not None:
        ends = 10.0 ** np.array(vertical["range"])
        traces.append(line(np.full(2, limit_ms), ends, "limit", GREY, "dash", hoverinfo="skip"))
    if len(front) > 1:
        x, y = _places(front)
        traces.append(line(x, y, "front", GREEN, line_shape="hv", hoverinfo="skip"))
    of = [row["settings"]["student"].partition("-")[0] for row in drawn]
    for architecture, look in zip(sorted(set(of)), cycle(_LOOKS), strict=False):
        own = [row for row, name in zip(drawn, of, strict=True) if name == architecture]
        traces.append(_cloud(own, (architecture, *look)))
    chosen = [row for row in drawn if row["number"] == best]
    if chosen:
        ring = {"symbol": "circle-open", "size": 18, "color": PURPLE, "line": {"width": 2.5}}
        x, y = _places(chosen)
        shown = {"name": "chosen", "mode": "markers", "hoverinfo": "skip"}
        traces.append(go.Scatter(x=x, y=y, marker=ring, **shown))
    note = f"Short trainings; times measured on {system}. Trials drawn: {len(drawn)}."
    if len(rows) > len(drawn):
        note += f" Without an error, and so left out: {len(rows) - len(drawn)}."
    return Panel(title, figure(traces, horizontal, vertical, top=60, height=460), note)


def _places(rows: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    x, y = ([row[key] for row in rows] for key in ("ms_per_step", "forces_mae_meV_per_A"))
    return np.array(x, float), np.array(y, float)


def _cloud(rows: Sequence[Mapping[str, Any]], look: tuple[str, str, str]) -> Any:
    """Trials of one architecture, paler where beaten; pointing at one shows its settings."""
    x, y = _places(rows)
    told = [
        f"trial {row['number']}<br>"
        + "<br>".join(f"{key} {_short(value)}" for key, value in row["settings"].items())
        for row in rows
    ]
    hover = "%{text}<br>%{x:.3g} ms, %{y:.3g} meV/Å<extra></extra>"
    cloud = markers(x, y, look, text=told, hovertemplate=hover)
    opacity = [1.0 if row["on_front"] else 0.4 for row in rows]
    return cloud.update(marker={"size": 9, "opacity": opacity})


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def front_page(panel: Panel, name: str) -> str:
    """One HTML file of the plot, which loads nothing."""
    drawn = "<p>nothing to draw: no trial has an error</p>"
    if panel.figure is not None:
        drawn = plotly.io.to_html(
            panel.figure, full_html=False, include_plotlyjs=True, config={"displaylogo": False}
        )
    style = "body{font-family:system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    title = html.escape(f"{panel.title}: {name}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{style}</style><h1>{title}</h1>"
        f'<div role="img" aria-label="{html.escape(panel.description)}">{drawn}</div>'
        f"<p>{html.escape(panel.note)}</p></html>\n"
    )
