"""How every plot looks: its axes, colours, number of points and description.

Colours differ in brightness as in hue, for readers who see few hues, and a second cue (symbol,
dash or hatching) always goes with them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

Array = NDArray[np.float64]


MAX_POINTS, WORST = 4000, 100
"""Points drawn per trace, more only slow the browser down; of them, the largest errors."""

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2A83C8", "#DD6B20", "#009E73", "#B5689A", "#8792A2"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
BAND = 2.0
"""Standard errors to each side of a band: 95 %."""
CATEGORIES = {"title": "", "type": "category", "autorange": "reversed", "showgrid": False}
"""A vertical axis of names, the first at the top."""


@dataclass(frozen=True)
class Panel:
    """A plot with its words; ``figure`` is None if there is nothing to draw."""

    title: str
    figure: go.Figure | None
    note: str = ""

    @property
    def description(self) -> str:
        """What a screen reader says."""
        if self.figure is None:
            return f"{self.title}: not measured"
        axes = self.figure.layout
        names = ", ".join(html.unescape(t.name) for t in self.figure.data if t.name)
        return (
            f"Plot: {self.title}. Horizontal axis: {axes.xaxis.title.text}. "
            f"Vertical axis: {axes.yaxis.title.text}." + (f" Series: {names}." if names else "")
        )


def thinned(n: int, error: Array | None = None) -> NDArray[np.int64]:
    """At most MAX_POINTS of ``range(n)``, in order: those of largest error, the rest at random.

    The choice is the same every time.
    """
    if n <= MAX_POINTS:
        return np.arange(n)
    worst = np.argsort(np.zeros(0) if error is None else np.abs(error))[-WORST:]
    others = np.setdiff1d(np.arange(n), worst)
    drawn = np.random.default_rng(0).choice(others, MAX_POINTS - worst.size, replace=False)
    return np.sort(np.concatenate([worst, drawn]))


def thinning_note(counts: Mapping[str, int], *, with_worst: bool = False) -> str:
    """What to say below a plot that ``thinned`` left points out of."""
    large = [f"{n:,} ({name})" for name, n in counts.items() if n > MAX_POINTS]
    if not large:
        return ""
    how = f"the {WORST} of largest error, the others" if with_worst else "chosen"
    return f"Drawn: {MAX_POINTS:,} points, {how} at random, of {' and of '.join(large)}."


def finite(*columns: Array) -> tuple[Array, ...]:
    """The columns where all of them are finite."""
    arrays = [np.asarray(values, float).ravel() for values in columns]
    keep = np.logical_and.reduce([np.isfinite(values) for values in arrays])
    return tuple(values[keep] for values in arrays)


def figure(
    traces: list[Any], x: dict[str, Any], y: dict[str, Any], *, top: int = 40, **layout: Any
) -> go.Figure:
    """A plot with titled axes; ``top`` leaves pixels for the legend. The page adapts colours."""
    ink, grid = "#27313F", "#DDE2E9"
    axis = {"gridcolor": grid, "zeroline": False, "linecolor": grid, "automargin": True}
    axis |= {"ticks": "outside", "tickcolor": grid, "ticklen": 4, "hoverformat": ".4~g"}
    axes = [axis | a | {"title": {"text": a["title"], "standoff": 8}} for a in (x, y)]
    legend: dict[str, Any] = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    if any(trace.type == "scatter" and trace.mode == "markers" for trace in traces):
        legend["itemsizing"] = "constant"
    style: dict[str, Any] = {
        "template": "none",
        "height": 380,
        "font": {"family": "system-ui, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": ink},
        "margin": {"l": 60, "r": 16, "t": top, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "legend": legend,
        "hoverlabel": {"bgcolor": ink, "font": {"color": "#FFFFFF"}},
        "showlegend": sum(trace.showlegend is not False for trace in traces) > 1,
    }
    return go.Figure(traces, style | {"xaxis": axes[0], "yaxis": axes[1]}).update_layout(layout)


def two_lines(first: str, second: str) -> str:
    """A name of `CATEGORIES` that leaves room for the plot on a narrow screen."""
    return f"{html.escape(first)}<br>{html.escape(second)}"


def log_axis(title: str, values: Array) -> dict[str, Any]:
    """A logarithmic axis with room at both ends and plain numbers at its ticks."""
    low, high = np.log10([values.min(), values.max()])
    pad = max(0.06 * (high - low), (0.8 - high + low) / 2)
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    decades = range(int(np.floor(low - pad)), int(np.ceil(high + pad)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    every = 1 if high - low < 3.5 else 2  # decades; a narrow screen has no room for more names
    names = [f"{tick:,g}" if round(np.log10(tick)) % every == 0 else "" for tick in ticks]
    labels = {"tickvals": ticks, "ticktext": names}
    room = {"range": [low - pad, high + pad], "tickangle": 0}
    return {"title": title, "type": "log"} | room | labels


def line(x: Array, y: Array, name: str, color: str, dash: str = "solid", **more: Any) -> Any:
    """A curve, thin if it is dense."""
    look = {"color": color, "dash": dash, "width": 1 if x.size > 1000 else 2.5}
    return go.Scatter(x=x, y=y, name=name, mode="lines", line=look, **more)


def markers(x: Array, y: Array, look: tuple[str, str, str], **more: Any) -> Any:
    """A cloud of points; ``look`` is its name, colour and symbol."""
    name, color, symbol = look
    marker = {"color": color, "symbol": symbol, "size": 5, "opacity": 0.55}
    return go.Scatter(x=x, y=y, name=name, mode="markers", marker=marker, **more)


def look(number: int) -> tuple[str, str]:
    """Colour and dash of the curve of this number."""
    return COLORS[number % 5], _DASHES[number % 5]


def pale(color: str) -> str:
    """The same colour for areas."""
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"


def array(values: Any) -> Array:
    """Numbers of a JSON list; None in it is NaN, and None itself empty."""
    return np.array([] if values is None else values, dtype=float)


def band(x: Array, low: Array, high: Array, color: str) -> Any:
    """The area between two curves that are nowhere negative."""
    x, low, high = finite(x, low, high)
    around = {"x": np.r_[x, x[::-1]], "y": np.r_[high, np.maximum(low, 0.0)[::-1]]}
    shape = {"fill": "toself", "fillcolor": pale(color), "line": {"width": 0}}
    return go.Scatter(**around, **shape, mode="lines", showlegend=False, hoverinfo="skip")


def curves(found: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Lines of ``key`` over ``x``, named; those with fewer than two points are left out."""
    traces: list[Any] = []
    for one in found:
        x, y = finite(array(one["x"]), array(one[key]))
        if x.size > 1:
            name = html.escape(str(one.get("name", "")))
            traces.append(line(x, y, name, *look(len(traces)), showlegend=True))
    return traces
