"""A benchmark as one HTML file that needs neither network nor program to be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from mlff_distiller.durable import write_json, write_text
from mlff_distiller.measure.results import Result, speed_ups
from mlff_distiller.plotting import Panel
from mlff_distiller.reports.benchmark_plots import all_panels
from mlff_distiller.reports.page import page_of


def write_result(result: Result, folder: str | Path) -> dict[str, Path]:
    """``benchmark.json`` and ``benchmark.html`` in ``folder``."""
    paths = {name: Path(folder) / f"benchmark.{name}" for name in ("json", "html")}
    write_json(paths["json"], result.content)
    write_page(paths["html"], result)
    return paths


def write_page(path: Path, result: Result) -> None:
    """Write ``result``, its plots and its tables."""
    panels = all_panels(result.cases)
    ups = speed_ups(result)
    teachers = [case["model"] for case in result.cases if case["kind"] == "teacher"]
    models = teachers or [case["model"] for case in result.cases]
    text = page_of(
        template("benchmark.html.jinja"),
        drawn(panels),
        panels=panels,
        about=result.about,
        settings=result.content["settings"],
        cases=result.cases,
        skipped=result.skipped,
        failed=result.failed,
        speed_ups=ups,
        best=max(ups, key=lambda row: row.ratio, default=None),
        reference=models[0] if models else "nothing",
        leaks=[case for case in result.cases if _leaks(case)],
        provenance=list(flat({**result.about, "models": result.content["models"]})),
        raw=json.dumps(result.content, indent=1, ensure_ascii=False),
    )
    write_text(path, text)


def template(name: str) -> str:
    """One of this package's pages."""
    return resources.files("mlff_distiller.reports.pages").joinpath(name).read_text("utf-8")


def drawn(panels: Mapping[str, list[Panel]]) -> dict[str, Any]:
    """The figures by the id of their element."""
    return {
        f"{section}-{number}": json.loads(panel.figure.to_json())
        for section, members in panels.items()
        for number, panel in enumerate(members)
        if panel.figure is not None
    }


def _leaks(case: Mapping[str, Any]) -> bool:
    return any((case["memory"][where] or {}).get("grows") for where in ("host", "gpu"))


def flat(tree: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of ``tree``, each with its path, in words."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flat(value, f"{above} {key}".strip().replace("_", " "))
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        for item in tree:
            yield above, ", ".join(f"{key} {value}" for key, value in item.items())
    else:
        yield above, ", ".join(map(str, tree)) if isinstance(tree, list) else str(tree)
