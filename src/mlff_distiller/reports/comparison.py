"""The page of several validated students: a table, what each is fit for, their plots."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mlff_distiller.plotting import BLUE, GREEN, ORANGE, Panel
from mlff_distiller.reports.front import TITLE, Point, non_dominated, trade_off
from mlff_distiller.reports.page import write
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
    """The name of its folder next to the page."""
    content: Mapping[str, Any]
    """The content of its certificate."""
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
        """Its row of the table; None where something was not measured."""
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
    """The peak of a run in MB: the GPU's if there is one, otherwise the process's."""
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
    """Write the page of ``found``; each student's own is ``NAME/report.html`` next to it."""
    first = found[0].content
    rows = [one.row for one in found]
    write(
        path,
        "comparison.html.jinja",
        {
            "front": [students_panel(found)],
            "energies": [_energies(found)],
            "distributions": _distributions(found),
        },
        found=found,
        movie=found[0].series.get("movie"),
        rows=rows,
        has_memory=any(row["memory_MB"] is not None for row in rows),
        checks=list(checks_table({one.name: one.content["verdict"] for one in found})),
        first=first,
        teacher=first.get("teacher"),
        teacher_ms=(first["measurements"].get("speed") or {}).get("teacher_ms_per_step"),
        address=lambda name: f"{quote(name)}/report.html",
    )


def students_panel(found: Sequence[Validated]) -> Panel:
    """Force error on own frames against time per step: each student, and those not beaten."""
    known = [
        (one, float(one.row["ms_per_step"]), float(one.row["forces_rmse_meV_per_A"]))
        for one in found
        if (one.row["ms_per_step"] or 0) > 0 and (one.row["forces_rmse_meV_per_A"] or 0) > 0
    ]
    if not known:
        return Panel(TITLE, None)
    best = non_dominated(np.array([places for _, *places in known]))
    points = [
        Point(ms, error, one.use.name, html.escape(one.name), bool(on_front))
        for (one, ms, error), on_front in zip(known, best, strict=True)
    ]
    teacher = (found[0].content["measurements"].get("speed") or {}).get("teacher_ms_per_step")
    axes = ("time per MD step (ms)", "force RMSE (meV/Å)")
    shown = trade_off(points, _LOOKS, axes, ("teacher’s time", teacher), top=50)
    named = {"mode": "markers+text", "textposition": "bottom left"}
    shown.update_traces(**named, marker={"size": 12, "opacity": 1}, selector={"mode": "markers"})
    shown.update_layout(legend_itemsizing="trace")
    note = "Lower left is better. Errors are on frames of each one's own MD, times of this machine."
    missing = len(found) - len(known)
    note += f" Without an error or a time, and so left out: {missing}." if missing else ""
    return Panel(TITLE, shown, note)


def _energies(found: Sequence[Validated]) -> Panel:
    """The runs at the first temperature."""
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
