"""The page of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlff_distiller.durable import write_json
from mlff_distiller.measure.results import Result, speed_ups
from mlff_distiller.reports.benchmark_plots import all_panels
from mlff_distiller.reports.page import flat, measured_by, write


def write_result(result: Result, folder: str | Path) -> dict[str, Path]:
    """``benchmark.json`` and ``benchmark.html`` in ``folder``."""
    paths = {name: Path(folder) / f"benchmark.{name}" for name in ("json", "html")}
    write_json(paths["json"], result.content)
    write_page(paths["html"], result)
    return paths


def write_page(path: Path, result: Result) -> None:
    """Write ``result``, its plots and its tables."""
    ups = speed_ups(result)
    teachers = [case["model"] for case in result.cases if case["kind"] == "teacher"]
    models = teachers or [case["model"] for case in result.cases]
    write(
        path,
        "benchmark.html.jinja",
        all_panels(result.cases),
        made=measured_by(result.about),
        about=result.about,
        settings=result.content["settings"],
        cases=result.cases,
        skipped=result.skipped,
        failed=result.failed,
        speed_ups=ups,
        best=max(ups, key=lambda row: row.ratio, default=None),
        least=min(ups, key=lambda row: row.ratio, default=None),
        reference=models[0] if models else "nothing",
        leaks=[case for case in result.cases if _leaks(case)],
        provenance_rows=flat({**result.about, "models": result.content["models"]}),
        raw=result.content,
        raw_file="benchmark.json",
    )


def _leaks(case: Mapping[str, Any]) -> bool:
    return any((case["memory"][where] or {}).get("grows") for where in ("host", "gpu"))
