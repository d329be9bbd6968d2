"""The plots of a benchmark."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mlff_distiller.plotting import CATEGORIES, COLORS, Panel, figure, log_axis

Case = dict[str, Any]

_ENGINES = {"ase": ("solid", "circle"), "run_md": ("dash", "diamond")}
_MOST_CURVES = 12
"""In one plot; more cannot be told apart."""


def all_panels(cases: Sequence[Case]) -> dict[str, list[Panel]]:
    """The plots by section of the page."""
    colors = {name: COLORS[k % 5] for k, name in enumerate(dict.fromkeys(_of(cases, "model")))}
    ensembles = list(dict.fromkeys(_of(cases, "ensemble")))
    first = [case for case in cases if case["ensemble"] == ensembles[0]] if ensembles else []
    return {
        "latency": [_boxes(cases, colors)],
        "scaling": [
            _scaling(first, colors, "Time per step", "ms per step", _median),
            _scaling(first, colors, "Cost per atom", "µs per atom and step", _per_atom),
        ],
        "memory": [_memory(cases, colors, "host"), _memory(cases, colors, "gpu")],
        "gpu": [_gpu(cases, colors, *words) for words in _GPU],
        "physics": [_physics(cases, colors, *words) for words in _PHYSICS],
    }


_GPU = (
    ("GPU utilisation", "utilisation_percent", "share of time with a kernel running (%)"),
    ("Power", "power_W", "W"),
    ("Clock", "sm_clock_MHz", "SM clock (MHz)"),
)
_PHYSICS = (
    ("Total energy", "total_energy_meV_per_atom", "change of total energy (meV/atom)", ("nve",)),
    ("Temperature", "temperature_K", "temperature (K)", ("nvt", "npt")),
)


def label(case: Case, *, system: bool = True) -> str:
    """A case in a few words."""
    copies = f" × {case['replicas']}" if case["replicas"] > 1 else ""
    words = [case["model"], case["engine"], case["ensemble"].upper()]
    words += [case["system"] + copies] if system else []
    return html.escape(", ".join(words))


def _of(cases: Iterable[Case], name: str) -> list[Any]:
    return [case[name] for case in cases]


def _atoms(case: Case) -> int:
    return int(case["n_atoms"] * case["replicas"])


def _boxes(cases: Sequence[Case], colors: dict[str, str]) -> Panel:
    title = "Latency of a step"
    if not cases:
        return Panel(title, None)
    traces = []
    for case in cases:
        q = case["quantiles_ms"]
        traces.append(
            go.Box(
                y=[label(case)],
                orientation="h",
                lowerfence=[q[1]],
                q1=[q[25]],
                median=[q[50]],
                q3=[q[75]],
                upperfence=[q[99]],
                line={"color": colors[case["model"]], "width": 1.5},
                showlegend=False,
                name=label(case),
            )
        )
    ends = np.array([[case["quantiles_ms"][1], case["quantiles_ms"][99]] for case in cases])
    x = log_axis("ms per step", ends.ravel())
    drawn = figure(traces, x, CATEGORIES, top=16, height=90 + 26 * len(cases))
    note = "Box: the middle half of the steps; line: the median; whiskers: from 1 to 99 %."
    if any(case["steps_a_sample"] > 1 for case in cases):
        note += " A sample of run_md is a mean over many steps, so its boxes are narrower."
    return Panel(title, drawn, note)


def _median(case: Case) -> float:
    return float(case["latency_ms"]["median"])


def _per_atom(case: Case) -> float:
    return 1e3 * _median(case) / _atoms(case)


def _scaling(
    cases: Sequence[Case],
    colors: dict[str, str],
    title: str,
    unit: str,
    value: Callable[[Case], float],
) -> Panel:
    if not cases:
        return Panel(title, None)
    traces = []
    for model, engine in dict.fromkeys((case["model"], case["engine"]) for case in cases):
        own = [case for case in cases if (case["model"], case["engine"]) == (model, engine)]
        own.sort(key=_atoms)
        dash, symbol = _ENGINES[engine]
        traces.append(
            go.Scatter(
                x=[_atoms(case) for case in own],
                y=[value(case) for case in own],
                text=[label(case) for case in own],
                name=html.escape(f"{model}, {engine}"),
                mode="lines+markers",
                line={"color": colors[model], "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 8},
            )
        )
    x = log_axis("atoms", np.array([_atoms(case) for case in cases], float))
    y = log_axis(unit, np.array([value(case) for case in cases]))
    return Panel(title, figure(traces, x, y, top=64), cases[0]["ensemble"].upper())


def _curves(
    cases: Sequence[Case], colors: dict[str, str], points: Callable[[Case], tuple[Any, Any]]
) -> tuple[list[Any], str]:
    """Curves of the largest systems, and what was left out."""
    shown = sorted(cases, key=_atoms, reverse=True)[:_MOST_CURVES]
    alone = len({case["model"] for case in shown}) == 1
    traces = []
    for number, case in enumerate(shown):
        x, y = points(case)
        color = COLORS[number % 5] if alone else colors[case["model"]]
        line = {"color": color, "dash": _ENGINES[case["engine"]][0], "width": 1.5}
        traces.append(go.Scatter(x=x, y=y, name=label(case), mode="lines", line=line))
    left = len(cases) - len(shown)
    return traces, f"The {len(shown)} cases of most atoms; {left} more are in the tables." if (
        left
    ) else ""


def _memory(cases: Sequence[Case], colors: dict[str, str], where: str) -> Panel:
    title = {"host": "Memory of the processes", "gpu": "Memory of the GPU"}[where]
    known = [case for case in cases if (case["memory"] or {}).get(where)]
    if not known:
        return Panel(title, None)

    def points(case: Case) -> tuple[Any, Any]:
        found = case["memory"][where]
        series = found["series"]
        keep = [k for k, step in enumerate(series["step"]) if step >= 0]
        base = series["MiB"][keep[0]] if keep else 0.0
        return [series["step"][k] for k in keep], [series["MiB"][k] - base for k in keep]

    traces, note = _curves(known, colors, points)
    x = {"title": "step after the warm-up"}
    y = {"title": "MiB more than at its end"}
    return Panel(title, figure(traces, x, y, **_legend_below(len(traces))), note)


def _gpu(cases: Sequence[Case], colors: dict[str, str], title: str, key: str, unit: str) -> Panel:
    known = [case for case in cases if (case["gpu"] or {}).get(key)]
    if not known:
        return Panel(title, None)
    traces, note = _curves(
        known, colors, lambda case: (case["gpu"]["time_s"], case["gpu"][key]["series"])
    )
    drawn = figure(traces, {"title": "time (s)"}, {"title": unit}, **_legend_below(len(traces)))
    return Panel(title, drawn, note)


def _physics(
    cases: Sequence[Case],
    colors: dict[str, str],
    title: str,
    key: str,
    unit: str,
    ensembles: tuple[str, ...],
) -> Panel:
    known = [case for case in cases if case["ensemble"] in ensembles]
    if not known:
        return Panel(title, None)

    def points(case: Case) -> tuple[Any, Any]:
        series = case["physics"]["series"]
        return series["time_ps"], series[key]

    traces, note = _curves(known, colors, points)
    drawn = figure(traces, {"title": "time (ps)"}, {"title": unit}, **_legend_below(len(traces)))
    return Panel(title, drawn, note)


def _legend_below(n: int) -> dict[str, Any]:
    """Long names, one below the other."""
    below = {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top", "font": {"size": 11}}
    return {"top": 16, "legend": below, "height": 380 + 12 * n, "margin": {"b": 70 + 12 * n}}
