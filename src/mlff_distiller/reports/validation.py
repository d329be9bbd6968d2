"""The page of a validation: the verdict, its reasons, and the evidence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from mlff_distiller.durable import sha256_of_file
from mlff_distiller.reports import validation_plots as plots
from mlff_distiller.reports.page import flat, write
from mlff_distiller.reports.validation_tables import Table, named, tables
from mlff_distiller.reports.words import few, number, powers, quantity, words
from mlff_distiller.validation.certificate import versions
from mlff_distiller.validation.classes import class_of
from mlff_distiller.validation.criteria import CRITERIA

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

    ``content`` is that of the certificate, and ``series`` what it has no room for.
    """
    measured = content.get("measurements") or {}
    found = tables(measured)
    verdict = content.get("verdict") or {}
    values = {check["name"]: check["value"] for check in verdict.get("checks") or []}
    write(
        path,
        "validation.html.jinja",
        plots.panels(measured, series),
        content=content,
        name=name,
        notes=notes_of(content),
        reasons=[in_words(reason) for reason in verdict.get("reasons") or []],
        use=class_of(verdict) if "status" in verdict else None,
        value_of=values.get,
        named=lambda key: named(found, key),
        others=[table for table in found if table.name not in _PLACED],
        cell=_cell,
        movie=series.get("movie"),
        broke=any(run.get("why") for run in measured.get("dynamics") or []),
        provenance_rows=_provenance(content, files),
        raw=content,
    )


def notes_of(content: Mapping[str, Any]) -> dict[str, str]:
    """What explains each check's number, of the structure that it is from."""
    notes: dict[str, str] = {}
    verdict = content.get("verdict")
    checks = verdict.get("checks") if isinstance(verdict, Mapping) else None
    for check in checks or []:
        for block in content.get("structures") or []:
            found = block["findings"].get(check["name"])
            if found and found["words"] and found["value"] in (check["value"], None):
                notes.setdefault(check["name"], powers(found["words"]))
    return notes


def in_words(reason: str) -> str:
    """A reason for a rejection, with the names of checks as the page shows them."""
    known = sorted(CRITERIA, key=len, reverse=True)
    return re.sub("|".join(known), lambda found: CRITERIA[found[0]].title, reason)


def _cell(value: Any, table: Table, key: Any = None) -> Markup:
    """One cell, with its unit in a table of names and values; elsewhere the head has the unit.

    Two floats are a value and its standard error, as everywhere in ``measurements``.
    """
    of_names = table.columns[0] == "what"
    if isinstance(value, str):
        return escape(words(value) if of_names and key is None else value)
    if isinstance(value, list | tuple):
        *others, last = [_cell(own, table, key) for own in value]
        if len(value) == 2 and all(isinstance(own, float) for own in value):
            return Markup("{} ± {}").format(number(value[0]), last)
        return Markup(", ").join([*others, last])
    if of_names:
        return quantity(value, key)
    return number(value) if isinstance(value, bool) else few(value)


def _provenance(content: Mapping[str, Any], files: Mapping[str, Path]) -> list[tuple[str, str]]:
    blocks = {who: content.get(who) or {} for who in ("calculator", "teacher")}
    blocks |= {"setting": content.get("settings") or {}, "version of": versions()}
    hashes = [(f"file {key}, SHA-256", sha256_of_file(path)) for key, path in files.items()]
    return [*flat(blocks), *hashes]
