"""The page of a profile: phases side by side, findings, kernels, memory."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mlff_distiller.durable import write_json
from mlff_distiller.measure.phases import (
    BOOKKEEPING,
    COMPARING,
    GRAPHS,
    INTEGRATOR,
    MEANING,
    MODEL,
    NEIGHBORS,
    PHASES,
    TO_DEVICE,
    TO_HOST,
)
from mlff_distiller.measure.profiling import Profile
from mlff_distiller.plotting import BLUE, CATEGORIES, GREEN, GREY, ORANGE, PURPLE, Panel, figure
from mlff_distiller.reports.page import flat, write

_COLORS = {
    BOOKKEEPING: "#A9B3C0",
    COMPARING: ORANGE,
    INTEGRATOR: PURPLE,
    NEIGHBORS: GREEN,
    TO_DEVICE: "#E3B23C",
    MODEL: BLUE,
    TO_HOST: "#7A5C2E",
    GRAPHS: "#1B4F7A",
}

Case = dict[str, Any]


def write_profile(found: Profile, folder: str | Path) -> dict[str, Path]:
    """``profile.json`` and ``profile.html`` in ``folder``; the traces are there already."""
    paths = {name: Path(folder) / f"profile.{name}" for name in ("json", "html")}
    write_json(paths["json"], found.content)
    write_page(paths["html"], found)
    return paths


def write_page(path: Path, found: Profile) -> None:
    """Write the profile with its plots and tables."""
    cases = found.cases
    panels = {
        "phases": [
            _bars(cases, "Share of each phase", "share of the step (%)", relative=True),
            _bars(cases, "Time of each phase", "ms per step", relative=False),
        ],
        "memory": [_memory(case) for case in cases if _course(case) is not None],
    }
    about = found.content["about"]
    traces = [
        (f"trace of {_name(case)}", f"{case['trace_file']}, for Perfetto or chrome://tracing")
        for case in cases
        if case["trace_file"]
    ]
    write(
        path,
        "profile.html.jinja",
        panels,
        about=about,
        settings=found.content["settings"],
        cases=cases,
        phases=[name for name in PHASES if any(_ms(case, name) for case in cases)],
        meaning=MEANING,
        ms=_ms,
        name=_name,
        provenance_rows=[*flat(about), *traces],
        raw={**found.content, "cases": [_short(case) for case in cases]},
        raw_file="profile.json",
    )


def _name(case: Case) -> str:
    return f"{case['model']}, {case['engine']}, {case['system']}"


def _ms(case: Case, phase: str) -> float | None:
    for row in case["phases"]:
        if row["name"] == phase:
            return float(row["ms"])
    return None


def _short(case: Case) -> Case:
    """Without the courses, which are drawn."""
    allocations = {
        device: {key: value for key, value in row.items() if key != "series"}
        for device, row in case["trace"]["allocations"].items()
    }
    return {**case, "trace": {**case["trace"], "allocations": allocations}}


def _bars(cases: Sequence[Case], title: str, unit: str, *, relative: bool) -> Panel:
    if not cases:
        return Panel(title, None)
    labels = [html.escape(_name(case)) for case in cases]
    traces = []
    for phase, color in _COLORS.items():
        values = [_ms(case, phase) or 0.0 for case in cases]
        if not any(values):
            continue
        if relative:
            values = [100 * v / case["sum_ms"] for v, case in zip(values, cases, strict=True)]
        traces.append(
            go.Bar(x=values, y=labels, orientation="h", name=phase, marker={"color": color})
        )
    if not relative:
        look = {"symbol": "line-ns", "size": 16, "line": {"width": 2, "color": GREY}}
        traces.append(
            go.Scatter(
                x=[case["step_ms"] for case in cases],
                y=labels,
                mode="markers",
                marker=look,
                name="step, measured plainly",
            )
        )
    x: dict[str, Any] = {"title": unit}
    if relative:
        x["range"] = [0, 100]
    below = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    shown = figure(traces, x, CATEGORIES, top=80, barmode="stack", height=170 + 34 * len(cases))
    return Panel(title, shown.update_layout(legend=below, bargap=0.35))


def _course(case: Case) -> tuple[str, dict[str, Any]] | None:
    allocations = case["trace"]["allocations"]
    for device in ("cuda", "cpu"):
        if device in allocations:
            return device, allocations[device]["series"]
    return None


def _memory(case: Case) -> Panel:
    device, series = _course(case) or ("", {"us": [], "MiB": []})
    x, y = 1e-3 * np.array(series["us"]), np.array(series["MiB"])
    line = {"color": BLUE, "width": 1.2, "shape": "hv"}
    trace = go.Scatter(x=x, y=y, mode="lines", line=line, name=device)
    drawn_ = figure([trace], {"title": "time (ms)"}, {"title": "MiB"}, top=10, height=280)
    rows = case["trace"]["allocations"][device]
    note = (
        f"PyTorch's allocator of the {device}: {rows['n']:.0f} allocations per step, "
        f"{rows['bytes'] / 2**20:.3g} MiB; {rows['left_MiB']:+.3g} MiB from first to last."
    )
    return Panel(html.escape(_name(case)), drawn_, note)
