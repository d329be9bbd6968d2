"""The plots of a validation: what is in ``measurements`` and ``series``, each beside its teacher.

Whatever is missing gives a panel without a figure, which the page calls "not measured".
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from scipy.stats import gamma

from mlff_distiller import plotting
from mlff_distiller.plotting import BLUE, COLORS, GREY, Panel, curve_look, figure, pale
from mlff_distiller.reports.validation_tables import LONGEST_CELL
from mlff_distiller.reports.words import label, words
from mlff_distiller.validation.evidence import Array

Tree = Mapping[str, Any]
_BAND = 2.0
"""Standard errors to each side: 95 %."""


def panels(measured: Tree, series: Tree) -> dict[str, list[Panel]]:
    """Every plot, by section of the page."""
    short = measured.get("short_range") or {}
    teacher = measured.get("teacher") or {}
    runs = series.get("runs") or []
    return {
        "dynamics": [energies(_by_temperature(runs)), _temperatures(runs), _histograms(runs)],
        "laws": [
            _scans(measured.get("scans") or []),
            _short_range(short.get("curves") or [], dimers=True),
            _short_range(short.get("curves") or [], dimers=False),
        ],
        "distributions": [_distribution(one) for one in teacher.get("distributions") or []],
        "statics": [
            _equation_of_state(teacher.get("equation_of_state")),
            *_frequencies(teacher.get("frequencies_per_cm")),
        ],
        "others": others(measured),
    }


def _by_temperature(runs: Sequence[Tree]) -> list[tuple[str, Tree]]:
    return [(f"{run['target_K']:g} K", run["nve"]) for run in runs if run.get("nve")]


def energies(named: Sequence[tuple[str, Tree]]) -> Panel:
    """Total energy at constant energy over time, of each of ``named`` series."""
    title, traces = "Total energy at constant energy", []
    for number, (name, run) in enumerate(named):
        time, energy = plotting.finite(
            _array(run["time_ps"]), _array(run["total_energy_meV_per_atom"])
        )
        if time.size > 1:
            traces.append(plotting.line(time, energy, html.escape(name), COLORS[number % 5]))
    y = {"title": "change of energy (meV/atom)"}
    note = "Without a thermostat it must neither climb nor fall."
    return Panel(title, figure(traces, {"title": "time (ps)"}, y) if traces else None, note)


def _temperatures(runs: Sequence[Tree]) -> Panel:
    title, traces = "Temperature with a thermostat", []
    for number, run in enumerate(runs):
        columns = (_array(run["nvt"][name]) for name in ("time_ps", "temperature_K"))
        time, kelvin = plotting.finite(*columns)
        if time.size > 1:
            target = np.full(2, run["target_K"])
            name = f"{run['target_K']:g} K"
            traces.append(plotting.line(time, kelvin, name, COLORS[number % 5]))
            hidden = {"showlegend": False, "hoverinfo": "skip"}
            traces.append(plotting.line(time[[0, -1]], target, "", GREY, "dash", **hidden))
    drawn = figure(traces, {"title": "time (ps)"}, {"title": "temperature (K)"})
    return Panel(title, drawn if traces else None)


def _histograms(runs: Sequence[Tree]) -> Panel:
    """Temperatures beside the canonical ``2 K / (f k)``, K distributed as Gamma(f/2, kT)."""
    title, traces = "Distribution of temperatures", []
    for number, run in enumerate(runs):
        (kelvin,) = plotting.finite(_array(run["nvt"]["temperature_K"]))
        if kelvin.size < 20:
            continue
        heights, edges = np.histogram(kelvin, min(40, kelvin.size // 5), density=True)
        color, half = COLORS[number % 5], 0.5 * run["n_degrees"]
        name = f"{run['target_K']:g} K"
        middles = 0.5 * (edges[1:] + edges[:-1])
        seen = plotting.line(middles, heights, name, color, line_shape="hvh", fill="tozeroy")
        traces.append(seen.update(fillcolor=pale(color)))
        expected = gamma(half, scale=run["target_K"] / half)
        low, high = expected.ppf([1e-4, 1 - 1e-4])
        x = np.linspace(low, high, 200)
        traces.append(plotting.line(x, expected.pdf(x), f"{name}, canonical", color, "dash"))
    y = {"title": "density (1/K)", "rangemode": "tozero"}
    return Panel(title, figure(traces, {"title": "temperature (K)"}, y) if traces else None)


def _scans(scans: Sequence[Tree]) -> Panel:
    title = "Energy along straight lines"
    traces = _curves(scans, "energy_eV")
    x = {"title": "displacement of one atom (Å)"}
    note = "A smooth curve; a step in it is a jump, as at a hard cutoff."
    drawn = figure(traces, x, {"title": "change of energy (eV)"}) if traces else None
    return Panel(title, drawn, note)


def _short_range(curves: Sequence[Tree], *, dimers: bool) -> Panel:
    title = "Two atoms in vacuum" if dimers else "Compression of the whole structure"
    squeezed = [str(curve.get("name")).startswith("compression") for curve in curves]
    own = [curve for curve, whole in zip(curves, squeezed, strict=True) if whole != dimers]
    traces = _curves(own, "energy_eV")
    x = {"title": "distance (Å)" if dimers else "factor on all lengths"}
    y = {"title": "energy (eV)" if dimers else "energy (eV/atom)"}
    note = "From the shortest distance of the data on: towards the left it must rise."
    return Panel(title, figure(traces, x, y) if traces else None, note)


def _curves(curves: Sequence[Tree], key: str) -> list[Any]:
    traces: list[Any] = []
    for curve in curves:
        x, y = plotting.finite(_array(curve["x"]), _array(curve[key]))
        if x.size > 1:
            name = html.escape(str(curve.get("name", "")))
            traces.append(plotting.line(x, y, name, *curve_look(len(traces)), showlegend=True))
    return traces


def _distribution(one: Tree) -> Panel:
    """Student and teacher, each with its band."""
    curves = [(who, one[who], one.get(f"{who}_error")) for who in ("student", "teacher")]
    return distribution_panel(one, curves)


def distribution_panel(one: Tree, curves: Sequence[tuple[str, Any, Any]]) -> Panel:
    """``curves`` (name, mean, standard error or None) over the ``x`` of ``one``; the last dashed.

    The last is the teacher's.
    """
    kind, _, rest = str(one["name"]).partition(" ")
    title = {"rdf": "Radial distribution, ", "angle": "Angle "}.get(kind, kind + " ") + rest
    title = title[:1].upper() + title[1:]
    x = _array(one["x"])
    bands, traces, tops = [], [], [0.0]
    for number, (name, mean, error) in enumerate(curves):
        last = number == len(curves) - 1
        color = GREY if last and len(curves) > 2 else COLORS[number % 5]
        y = _array(mean)
        if y.size != x.size or not np.isfinite(y).any():
            continue
        tops.append(float(np.nanmax(y)))
        if error is not None:
            spread = _BAND * _array(error)
            bands.append(_band(x, y - spread, y + spread, color))
        dash = "dash" if last else "solid"
        traces.append(plotting.line(x, y, html.escape(name), color, dash).update(line_width=2))
    label = {"rdf": "g(r)", "angle": "density (1/°)"}.get(kind, "density")
    axes = {"title": f"{_AXES.get(kind, 'x')} ({html.escape(str(one.get('unit', '')))})"}
    drawn = figure([*bands, *traces], axes, {"title": label, "rangemode": "tozero"})
    return Panel(title, drawn if max(tops) > 0 else None)


_AXES = {"rdf": "distance", "angle": "angle", "vibrational": "frequency"}


def _band(x: Array, low: Array, high: Array, color: str) -> Any:
    x, low, high = plotting.finite(x, low, high)
    around = {"x": np.r_[x, x[::-1]], "y": np.r_[high, np.maximum(low, 0.0)[::-1]]}
    look = {"fill": "toself", "fillcolor": pale(color), "line": {"width": 0}}
    return go.Scatter(**around, **look, mode="lines", showlegend=False, hoverinfo="skip")


def _equation_of_state(both: Sequence[Tree] | None) -> Panel:
    title, traces = "Equation of state", []
    for number, (who, one) in enumerate(zip(("student", "teacher"), both or [], strict=False)):
        x, y = plotting.finite(
            _array(one.get("volumes_A3_per_atom")), _array(one.get("energies_eV_per_atom"))
        )
        if x.size:
            trace = plotting.line(x, 1e3 * (y - y.min()), who, *curve_look(number))
            symbol = ("circle", "diamond")[number]
            traces.append(trace.update(mode="lines+markers", marker={"symbol": symbol, "size": 7}))
    y_axis = {"title": "energy above the lowest (meV/atom)"}
    drawn = figure(traces, {"title": "volume (Å³/atom)"}, y_axis) if traces else None
    return Panel(title, drawn)


def _frequencies(both: Sequence[Any] | None) -> list[Panel]:
    """Each frequency beside the teacher's, and how many there are at each."""
    titles = ("Frequencies, one by one", "Density of frequencies")
    mine, theirs = (_array(one) for one in both or [[], []])
    if not mine.size or mine.shape != theirs.shape:
        return [Panel(title, None) for title in titles]
    mine, theirs = plotting.finite(mine, theirs)
    low, high = min(mine.min(), theirs.min()), max(mine.max(), theirs.max())
    ends = np.array([low - 0.03 * (high - low) - 1.0, high + 0.03 * (high - low) + 1.0])
    hidden = {"showlegend": False, "hoverinfo": "skip"}
    keep = plotting.thinned(mine.size, mine - theirs)
    cloud = plotting.markers(theirs[keep], mine[keep], ("frequencies", BLUE, "circle"))
    parity = figure(
        [plotting.line(ends, ends, "", GREY, "dash", **hidden), cloud],
        {"title": "teacher's (cm⁻¹)", "range": list(ends)},
        {"title": "student's (cm⁻¹)", "range": list(ends)},
        showlegend=False,
    )
    edges = np.linspace(ends[0], ends[1], min(60, max(10, mine.size // 4)) + 1)
    middles = 0.5 * (edges[1:] + edges[:-1])
    traces = [
        plotting.line(
            middles, np.histogram(own, edges)[0], who, *curve_look(number), line_shape="hvh"
        )
        for number, (who, own) in enumerate((("student", mine), ("teacher", theirs)))
    ]
    counts = figure(traces, {"title": "frequency (cm⁻¹)"}, {"title": "number"})
    note = "Imaginary frequencies are drawn as negative."
    return [Panel(titles[0], parity, note), Panel(titles[1], counts)]


def others(measured: Tree) -> list[Panel]:
    """Every other block of equally long columns, over the first: new ones need no code here.

    A curve where the first column ascends, otherwise a cloud, as of two force fields' forces. The
    teacher's, ``teacher.X``, is drawn into the plot of ``X``.
    """
    blocks = dict(_blocks(measured, ""))
    panels = []
    for path, (first, *rest) in ((path, list(block)) for path, block in blocks.items()):
        if path.startswith("teacher.") and path.removeprefix("teacher.") in blocks:
            continue
        shown = [(label(name), blocks[path][first], blocks[path][name]) for name in rest]
        theirs = blocks.get(f"teacher.{path}", {})
        both = [name for name in rest if name in theirs and first in theirs]
        shown += [(f"teacher's {label(name)}", theirs[first], theirs[name]) for name in both]
        traces = []
        for number, (name, *columns) in enumerate(shown):
            x, y = plotting.finite(*columns)
            if (np.diff(x) > 0).all():
                traces.append(plotting.line(x, y, html.escape(name), *curve_look(number)))
            else:
                look = (html.escape(name), COLORS[number % 5], "circle")
                traces.append(plotting.markers(x, y, look))
        axes = [{"title": html.escape(label(name))} for name in (first, rest[0])]
        panels.append(Panel(words(path), figure(traces, *axes)))
    return panels


def _blocks(measured: Tree, above: str) -> Iterator[tuple[str, dict[str, Array]]]:
    """Two columns or more, equally long, by their path."""
    for key, block in measured.items():
        if not isinstance(block, Mapping):
            continue
        path = f"{above}.{key}" if above else key
        yield from _blocks(block, path)
        columns = {name: _array(values) for name, values in block.items() if _is_column(values)}
        if len(columns) > 1 and len({len(values) for values in columns.values()}) == 1:
            yield path, columns


def _is_column(values: Any) -> bool:
    long = isinstance(values, list) and len(values) > LONGEST_CELL
    return long and all(value is None or isinstance(value, int | float) for value in values)


def _array(values: Any) -> Array:
    """None in it is NaN, and None itself empty."""
    return np.array([] if values is None else values, dtype=float)
