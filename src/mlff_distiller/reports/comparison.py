"""Several validated students side by side: a table, what each is fit for, and one page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import plotly.graph_objects as go

from mlff_distiller.durable import write_text
from mlff_distiller.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Panel,
    figure,
    line,
    log_axis,
)
from mlff_distiller.reports.front import non_dominated
from mlff_distiller.reports.validation import render
from mlff_distiller.reports.validation_tables import checks_table
from mlff_distiller.validation.checks.conservation import energies
from mlff_distiller.validation.checks.distributions import panel as distribution_panel
from mlff_distiller.validation.classes import Class, class_of

_LOOKS = {
    "production": (GREEN, "circle"),
    "screening": (BLUE, "diamond"),
    "unsuitable": (ORANGE, "x"),
}


@dataclass(frozen=True)
class Validated:
    """What ``validate`` found of one force field."""

    name: str
    """Of its folder beside the page."""
    content: Mapping[str, Any]
    """That of its certificate."""
    series: Mapping[str, Any]
    page: Path = Path("report.html")

    @property
    def certificate(self) -> Path:
        return self.page.parent / "certificate.json"

    @property
    def use(self) -> Class:
        """What it is fit for."""
        return class_of(self.content["verdict"])

    @property
    def row(self) -> dict[str, Any]:
        """Of the table; None where something was not measured."""
        measured = self.content["measurements"]
        errors = (measured.get("teacher") or {}).get("student_md") or {}
        speed = measured.get("speed") or {}
        checks = {check["name"]: check["value"] for check in self.content["verdict"]["checks"]}
        return {
            "name": self.name,
            "status": self.content["verdict"]["status"],
            "drift_meV_per_atom_per_ps": checks.get("nve_drift_meV_per_atom_per_ps"),
            **{key: errors.get(key) for key in _ERRORS},
            **{key: speed.get(key) for key in ("ms_per_step", "speedup")},
            "memory_MB": _memory(measured.get("memory")),
        }


_ERRORS = ("forces_fidelity", "forces_rmse_meV_per_A", "forces_angle_deg")


def _memory(block: Any) -> float | None:
    """The most of a run in MB: the GPU's where there is one, or the process's."""
    for place in ("gpu", "host"):
        marks = ((block or {}).get(place) or {}).get("MB") or []
        if marks:
            return float(max(marks))
    return None


def names_of(students: Sequence[Path]) -> list[str]:
    """A folder's name for each: its own, its run's if it is called student, numbered if taken."""
    names: list[str] = []
    for path in students:
        place = path.resolve()
        if place.name in ("student", "nep.txt"):
            place = place.parent
        base = place.stem if place.is_file() else place.name or "student"
        name, number = base, 1
        while name in names:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def write_comparison(path: Path, found: Sequence[Validated]) -> None:
    """Write the page of ``found``; that of each is ``NAME/report.html`` beside it."""
    first = found[0].content
    rows = [one.row for one in found]
    text = render(
        "comparison.html.jinja",
        {
            "front": [front_panel(found)],
            "energies": [_energies(found)],
            "distributions": _distributions(found),
        },
        found=found,
        rows=rows,
        has_memory=any(row["memory_MB"] is not None for row in rows),
        checks=list(checks_table({one.name: one.content["verdict"] for one in found})),
        first=first,
        teacher=first.get("teacher"),
        teacher_ms=(first["measurements"].get("speed") or {}).get("teacher_ms_per_step"),
        address=lambda name: f"{quote(name)}/report.html",
    )
    write_text(path, text)


def front_panel(found: Sequence[Validated]) -> Panel:
    """Force error on own frames against time a step: each student, and who is not beaten."""
    title = "Accuracy against speed"
    drawn = [
        (one, one.row["ms_per_step"], one.row["forces_rmse_meV_per_A"])
        for one in found
        if (one.row["ms_per_step"] or 0) > 0 and (one.row["forces_rmse_meV_per_A"] or 0) > 0
    ]
    if not drawn:
        return Panel(title, None)
    times, errors = (np.array([row[k] for row in drawn], float) for k in (1, 2))
    teacher = (found[0].content["measurements"].get("speed") or {}).get("teacher_ms_per_step")
    x = log_axis("time of an MD step (ms)", np.r_[times, [teacher or times[0]]])
    y = log_axis("force RMSE (meV/Å)", errors)
    traces: list[Any] = []
    best = np.flatnonzero(non_dominated(np.column_stack([times, errors])))
    best = best[np.argsort(times[best])]
    if best.size > 1:
        traces.append(line(times[best], errors[best], "front", GREY, "dot", line_shape="hv"))
    if teacher:
        ends = 10.0 ** np.array(y["range"])
        traces.append(line(np.full(2, teacher), ends, "teacher’s time", GREY, "dash"))
    for use, (color, symbol) in _LOOKS.items():
        own = [k for k, (one, _, _) in enumerate(drawn) if one.use.name == use]
        if own:
            cloud = go.Scatter(
                x=times[own],
                y=errors[own],
                text=[html.escape(drawn[k][0].name) for k in own],
                name=use,
                mode="markers+text",
                textposition="bottom left",
                marker={"color": color, "symbol": symbol, "size": 12},
                hovertemplate="%{text}<br>%{x:.3g} ms, %{y:.3g} meV/Å<extra></extra>",
                cliponaxis=False,
            )
            traces.append(cloud)
    note = "Lower left is better. Errors are on frames of each one's own MD, times of this machine."
    missing = len(found) - len(drawn)
    note += f" Without an error or a time, and so left out: {missing}." if missing else ""
    return Panel(title, figure(traces, x, y, top=50, showlegend=True), note)


def _energies(found: Sequence[Validated]) -> Panel:
    """At the first temperature."""
    firsts = [(one.name, (one.series.get("runs") or [{}])[0].get("nve")) for one in found]
    return energies([(name, run) for name, run in firsts if run])


def _distributions(found: Sequence[Validated]) -> list[Panel]:
    """The students' means, and the teacher's with its band."""
    blocks = [
        {block["name"]: block for block in _teacher(one).get("distributions") or []}
        for one in found
    ]
    panels = []
    for name in dict.fromkeys(name for block in blocks for name in block):
        own = [
            (one.name, block[name])
            for one, block in zip(found, blocks, strict=True)
            if name in block
        ]
        shown = own[0][1]
        same = [(who, block["student"], None) for who, block in own if block["x"] == shown["x"]]
        curves = [*same, ("teacher", shown["teacher"], shown.get("teacher_error"))]
        panels.append(distribution_panel(shown, curves))
    return panels


def _teacher(one: Validated) -> Mapping[str, Any]:
    return one.content["measurements"].get("teacher") or {}
