"""The page of a profile: the parts of a step, findings, kernels, operators, functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from mlff_distiller.durable import write_json
from mlff_distiller.measure.findings import (
    ASE,
    CALCULATOR,
    COMPARING,
    MEANING,
    MODEL,
    NEIGHBORS,
    REMAINDER,
)
from mlff_distiller.measure.profiling import Profile
from mlff_distiller.plotting import (
    BLUE,
    CATEGORIES,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    Panel,
    figure,
    two_lines,
)
from mlff_distiller.reports.page import flat, measured_by, write

_COLORS = {
    ASE: PURPLE,
    COMPARING: ORANGE,
    CALCULATOR: "#E3B23C",
    NEIGHBORS: GREEN,
    MODEL: BLUE,
    REMAINDER: GREY,
}


def write_profile(found: Profile, folder: str | Path) -> dict[str, Path]:
    """``profile.json`` and ``profile.html`` in ``folder``; the traces are there already."""
    paths = {name: Path(folder) / f"profile.{name}" for name in ("json", "html")}
    write_json(paths["json"], found.content)
    write_page(paths["html"], found)
    return paths


def write_page(path: Path, found: Profile) -> None:
    """Write the profile with its plot and tables."""
    about = found.content["about"]
    traces = [
        (f"trace of {_name(case)}", f"{case['trace_file']}, for Perfetto or chrome://tracing")
        for case in found.cases
        if case["trace_file"]
    ]
    write(
        path,
        "profile.html.jinja",
        {"phases": [_shares(found.cases)]},
        about=about,
        settings=found.content["settings"],
        cases=found.cases,
        made=measured_by(about),
        meaning=MEANING,
        parts=[name for name in MEANING if any(_part(case, name) for case in found.cases)],
        part=_part,
        name=_name,
        provenance_rows=[*flat(about), *traces],
        raw=found.content,
        raw_file="profile.json",
    )


def _name(case: dict[str, Any]) -> str:
    return f"{case['model']}, {case['engine']}, {case['system']}"


def _part(case: dict[str, Any], name: str) -> dict[str, Any]:
    """The row of a part of the step; empty if the case does not have it."""
    return next((row for row in case["phases"] if row["name"] == name), {})


def _shares(cases: list[dict[str, Any]]) -> Panel:
    """Bars to 100 %; a remainder below zero is in the table only."""
    labels = [two_lines(*_name(case).rsplit(", ", 1)) for case in cases]
    traces = []
    for phase, color in _COLORS.items():
        values = [_part(case, phase).get("percent", 0.0) for case in cases]
        if not any(values):
            continue
        look = {"orientation": "h", "name": phase, "marker": {"color": color}}
        traces.append(go.Bar(x=[max(0.0, value) for value in values], y=labels, **look))
    x = {"title": "share of the step (%)", "tickangle": 0}
    below = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    shown = figure(traces, x, CATEGORIES, top=80, barmode="stack", height=170 + 44 * len(cases))
    return Panel("Share of each part", shown.update_layout(legend=below, bargap=0.35))
