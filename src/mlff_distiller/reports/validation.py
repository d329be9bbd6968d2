"""A validation as one HTML file that needs neither network nor program to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mlff_distiller.durable import sha256_of_file, write_text
from mlff_distiller.plotting import Panel
from mlff_distiller.reports import validation_plots as plots
from mlff_distiller.reports.page import FILTERS, json_for_script, page_of
from mlff_distiller.reports.validation_tables import Table, label, named, tables
from mlff_distiller.validation.certificate import versions
from mlff_distiller.validation.classes import class_of
from mlff_distiller.validation.criteria import CRITERIA

_LIST = re.compile(r"\[[^\[\]{}\"]*\]")
"""Of numbers in indented JSON, a line each."""
_PLACED = ("incidents", "teacher.differences", "teacher.student_md", "speed")
"""Tables that have their place on the page."""


def write_page(
    path: Path,
    content: Mapping[str, Any],
    series: Mapping[str, Any],
    name: str,
    files: Mapping[str, Path],
) -> None:
    """Write what ``validate`` found: the verdict, why, the evidence, and a viewer of the run.

    ``content`` is that of the certificate, and ``series`` what it has no room for. The file has
    5 to 6 MB, nearly all of it plotly's script, and loads nothing: a content security policy in
    its head forbids it to.
    """
    measured = content.get("measurements") or {}
    found = tables(measured)
    movie = series.get("movie")
    verdict = content.get("verdict") or {}
    values = {check["name"]: check["value"] for check in verdict.get("checks") or []}
    text = render(
        "validation.html.jinja",
        plots.panels(measured, series),
        content=content,
        name=name,
        use=class_of(verdict) if "status" in verdict else None,
        value_of=values.get,
        named=lambda key: named(found, key),
        others=[table for table in found if table.name not in _PLACED],
        movie=movie,
        movie_json=json_for_script(movie),
        broke=any(run.get("why") for run in measured.get("dynamics") or []),
        viewer_script=Markup(_text("viewer.js")),
        provenance=_provenance(content, files),
        raw=_LIST.sub(
            lambda found: " ".join(found[0].split()),
            json.dumps(content, indent=1, ensure_ascii=False),
        ),
    )
    write_text(path, text)


def render(template: str, panels: Mapping[str, Sequence[Panel]], **more: Any) -> str:
    """One of this package's pages, with its style, scripts and plots."""
    drawn = {
        f"{section}-{number}": json.loads(panel.figure.to_json())
        for section, members in panels.items()
        for number, panel in enumerate(members)
        if panel.figure is not None
    }
    return page_of(
        _text("macros.html.jinja") + _text(template),
        drawn,
        own_style=Markup(_text("validation.css")),
        own_script=Markup(_text("page.js")),
        panels=panels,
        limit_of=_limit_of,
        label=label,
        cell=_cell,
        **more,
    )


def _text(name: str) -> str:
    return resources.files("mlff_distiller.reports.pages").joinpath(name).read_text("utf-8")


def _limit_of(check: Mapping[str, Any]) -> Markup:
    shown = FILTERS["quantity"](check["limit"], check["name"])
    criterion = CRITERIA.get(check["name"])
    if criterion is None or "<data" not in shown:
        return Markup(shown)
    return Markup("{} {}").format("at most" if criterion.at_most else "at least", shown)


def _cell(value: Any, table: Table, key: Any = None) -> Markup:
    """Of a table of names and values with the unit that the name says; elsewhere the head does.

    Two floats are a value and its standard error, as everywhere in ``measurements``.
    """
    of_names = table.columns[0] == "what"
    if isinstance(value, str):
        return Markup("{}").format(FILTERS["words"](value) if of_names and key is None else value)
    if isinstance(value, list | tuple):
        *others, last = [_cell(own, table, key) for own in value]
        if len(value) == 2 and all(isinstance(own, float) for own in value):
            return Markup("{} ± {}").format(FILTERS["number"](value[0]), last)
        return Markup(", ").join([*others, last])
    if of_names:
        return Markup(FILTERS["quantity"](value, key))
    return Markup(FILTERS["number" if isinstance(value, bool) else "few"](value))


def _provenance(content: Mapping[str, Any], files: Mapping[str, Path]) -> list[tuple[str, str]]:
    rows = []
    for who in ("calculator", "teacher"):
        for key, value in (content.get(who) or {}).items():
            rows.append((f"{who}, {key.replace('_', ' ')}", "" if value is None else str(value)))
    for key, value in (content.get("settings") or {}).items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        rows.append((f"setting {key}", text))
    rows += [(f"version of {key}", value) for key, value in versions().items()]
    rows += [(f"file {key}, SHA-256", sha256_of_file(path)) for key, path in files.items()]
    return rows
