"""The plots of a benchmark."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mlff_distiller.plotting import CATEGORIES, COLORS, Panel, figure, log_axis, two_lines

Case = dict[str, Any]

_ENGINES = {"ase": ("solid", "circle"), "run_md": ("dash", "diamond")}


def all_panels(cases: Sequence[Case]) -> dict[str, list[Panel]]:
    """The plots by section of the page."""
    models = dict.fromkeys(case["model"] for case in cases)
    colors = {name: COLORS[k % 5] for k, name in enumerate(models)}
    first = [case for case in cases if case["ensemble"] == cases[0]["ensemble"]]
    return {
        "latency": [_boxes(cases, colors)],
        "scaling": [
            _scaling(first, colors, "Time per step", "ms per step", _median),
            _scaling(first, colors, "Cost per atom", "µs per atom and step", _per_atom),
        ],
        "memory": [
            _courses(cases, colors, title, _MEMORY_AXES, partial(_memory, where))
            for title, where in _MEMORY
            if where == "host" or any(case["memory"][where] for case in cases)
        ],
        "gpu": [
            _courses(cases, colors, title, ("time (s)", unit), partial(_gpu, key))
            for title, unit, key in _GPU
        ],
        "physics": [
            _courses(cases, colors, title, ("time (ps)", unit), partial(_physics, key, ensembles))
            for title, unit, key, ensembles in _PHYSICS
        ],
    }


_MEMORY = (("Memory of the processes", "host"), ("Memory of the GPU", "gpu"))
_MEMORY_AXES = ("step", "MiB more than after the warm-up")
_GPU = (
    ("GPU utilisation", "share of time with a kernel running (%)", "utilisation_percent"),
    ("Power", "W", "power_W"),
    ("Clock", "SM clock (MHz)", "sm_clock_MHz"),
)
_PHYSICS = (
    ("Total energy", "change of total energy (meV/atom)", "total_energy_meV_per_atom", ("nve",)),
    ("Temperature", "temperature (K)", "temperature_K", ("nvt", "npt")),
)


def label(case: Case) -> str:
    """A case in a few words."""
    return html.escape(", ".join([case["model"], case["engine"], *_where(case)]))


def _where(case: Case) -> list[str]:
    copies = f" × {case['replicas']}" if case["replicas"] > 1 else ""
    return [case["ensemble"].upper(), case["system"] + copies]


def _atoms(case: Case) -> int:
    return int(case["n_atoms"] * case["replicas"])


def _boxes(cases: Sequence[Case], colors: dict[str, str]) -> Panel:
    title = "Latency of a step"
    if not cases:
        return Panel(title, None)
    traces = []
    for case in cases:
        q = case["quantiles_ms"]
        name = two_lines(f"{case['model']}, {case['engine']}", ", ".join(_where(case)))
        traces.append(
            go.Box(
                y=[name],
                orientation="h",
                lowerfence=[q[1]],
                q1=[q[25]],
                median=[q[50]],
                q3=[q[75]],
                upperfence=[q[99]],
                line={"color": colors[case["model"]], "width": 1.5},
                showlegend=False,
                name=name,
            )
        )
    ends = np.array([[case["quantiles_ms"][1], case["quantiles_ms"][99]] for case in cases])
    x = log_axis("ms per step", ends.ravel())
    drawn = figure(traces, x, CATEGORIES, top=16, height=90 + 40 * len(cases))
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


def _courses(
    cases: Sequence[Case],
    colors: dict[str, str],
    title: str,
    axes: tuple[str, str],
    points: Callable[[Case], tuple[Any, Any] | None],
) -> Panel:
    """A curve per model and engine, of its largest system: colour and dash tell them apart.

    ``points`` gives x and y, or None if there are none.
    """
    known = [(case, course) for case in cases if (course := points(case)) is not None]
    if not known:
        return Panel(title, None)
    shown: dict[tuple[str, str], tuple[Case, tuple[Any, Any]]] = {}
    for case, course in sorted(known, key=lambda one: -_atoms(one[0])):
        shown.setdefault((case["model"], case["engine"]), (case, course))
    traces = []
    for case, (x, y) in shown.values():
        line = {"color": colors[case["model"]], "dash": _ENGINES[case["engine"]][0], "width": 1.5}
        traces.append(go.Scatter(x=x, y=y, name=label(case), mode="lines", line=line))
    left, n = len(known) - len(shown), len(traces)
    note = f"The largest system of each; {left} more cases are in the tables." if left else ""
    # Long names, one below the other.
    below = {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top", "font": {"size": 11}}
    room = {"legend": below, "height": 380 + 12 * n, "margin": {"b": 70 + 12 * n}}
    x_axis, y_axis = ({"title": title} for title in axes)
    return Panel(title, figure(traces, x_axis, y_axis, top=16, **room), note)


def _memory(where: str, case: Case) -> tuple[Any, Any] | None:
    """Memory beyond that at the end of the warm-up."""
    found = (case["memory"] or {}).get(where)
    if not found:
        return None
    series = found["series"]
    keep = [k for k, step in enumerate(series["step"]) if step >= 0]
    base = series["MiB"][keep[0]] if keep else 0.0
    return [series["step"][k] for k in keep], [series["MiB"][k] - base for k in keep]


def _gpu(key: str, case: Case) -> tuple[Any, Any] | None:
    found = case["gpu"] or {}
    return (found["time_s"], found[key]["series"]) if found.get(key) else None


def _physics(key: str, ensembles: Sequence[str], case: Case) -> tuple[Any, Any] | None:
    series = case["physics"]["series"]
    return (series["time_ps"], series[key]) if case["ensemble"] in ensembles else None
