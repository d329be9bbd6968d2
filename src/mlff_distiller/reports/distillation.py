"""The page of a distillation: ``report.json`` and the series behind it, in words and plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.reports.distillation_plots import all_panels, column, rows
from mlff_distiller.reports.evidence import Evidence
from mlff_distiller.reports.page import write
from mlff_distiller.reports.validation import notes_of
from mlff_distiller.reports.words import measured


def write_report(
    path: Path,
    report: dict[str, Any],
    evidence: Evidence,
    certificate: Mapping[str, Any] | None = None,
    movie: Mapping[str, Any] | None = None,
) -> None:
    """Write ``report`` (the content of ``report.json``) and its plots as one HTML file.

    ``certificate`` tells in which structures, at what temperature, and with what errors; ``movie``
    is of the student's run, for ``viewer.js``.
    """
    certificate = certificate or {}
    structures = certificate.get("structures") or []
    observed = (evidence.rdf, evidence.msd)
    run_name = Path(path).resolve().parent.name
    write(
        path,
        "distillation.html.jinja",
        all_panels(report, evidence),
        report=report,
        speed_rows=rows(report),
        speedups=_extremes(column(rows(report), "speedup")),
        structures=structures,
        temperatures=(certificate.get("settings") or {}).get("temperature_K") or [],
        notes=notes_of({**certificate, "verdict": report.get("verdict")}) | _of_speed(report),
        compared=any(curve is not None and curve.teacher is not None for curve in observed),
        movie=movie,
        scalars=_scalars(report.get("observables")),
        run_name=run_name,
        student_path=json.dumps(f"{run_name}/student", ensure_ascii=False),
        raw=report,
        raw_file="report.json",
    )


def _of_speed(report: Mapping[str, Any]) -> dict[str, str]:
    """Which of the sizes the check of speed is about."""
    sizes = column(rows(report), "n_atoms")
    return {"speedup": f"with {sizes[0]:,.0f} atoms"} if sizes.size else {}


def _extremes(values: np.ndarray[Any, Any]) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def _scalars(tree: Any, above: str = "") -> list[tuple[str, Any]]:
    """The single numbers of the observables, each with its path; curves are plotted instead."""
    if isinstance(tree, Mapping):
        return [leaf for k, v in tree.items() for leaf in _scalars(v, f"{above} {k}".strip())]
    return [(above, tree)] if above and (tree is None or measured(tree)) else []
