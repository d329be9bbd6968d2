"""What checks found, in tables: in the folder of an export, and on the model card of a student."""

from __future__ import annotations

import math
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlff_distiller.durable import Lock, read_json, sha256_of_file, write_json, write_text
from mlff_distiller.errors import ExportError
from mlff_distiller.export.target import Row, Target

_MARK = "<!-- the check -->"
_RECORD = "engines.json"
_HEAD = "| | compared | found | limit | |\n|---|---|---|---|---|"


def write_table(out: Path, engine: str, rows: tuple[Row, ...]) -> None:
    """All rows into ``check.json`` and ``README.md`` of the folder of an export."""
    write_json(out / "check.json", {"schema": 1, "engine": engine, "rows": _plain(rows)})
    text = f"## Checked on this machine\n\n{_table(_plain(rows))}\n"
    _append(out / "README.md", text)


def write_on_card(student: Path, target: Target, rows: tuple[Row, ...]) -> None:
    """The largest difference of each kind into ``engines.json`` and the model card.

    It takes the place of an earlier check of the same engine. A folder that cannot be written
    keeps its card, and a warning says so.
    """
    largest: dict[tuple[str, str, float | None], Row] = {}
    for row in rows:
        kind = row.what.partition(",")[0], row.unit, row.limit
        largest[kind] = max(largest.get(kind, row), row, key=_size)
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "versions": _versions(target),
        "rows": _plain(tuple(largest.values())),
    }
    try:
        with Lock(student / _RECORD, in_use=ExportError, refused=ExportError):
            known = checks_of(student)
            known["engines"][target.name] = found
            write_json(student / _RECORD, known)
            _append(student / "README.md", section(student))
    except (OSError, ExportError) as refused:
        warnings.warn(f"the model card stays as it was: {refused}", stacklevel=3)


def _size(row: Row) -> float:
    return row.value if math.isfinite(row.value) else math.inf


def checks_of(student: Path) -> dict[str, Any]:
    """What ``engines.json`` in a student's folder holds; of other weights, nothing."""
    file = student / "weights.safetensors"
    weights = sha256_of_file(file) if file.is_file() else ""
    form = {"schema": 1, "student_sha256": "", "engines": {}}
    known = read_json(student / _RECORD, form, remedy="remove it, and repeat the checks")
    if known and known["student_sha256"] == weights:
        return known
    return {"schema": 1, "student_sha256": weights, "engines": {}}


def keep_checks(student: Path, known: dict[str, Any]) -> None:
    """Write ``known``, if it is of this student, into its folder and on its card."""
    if known["engines"] and known["student_sha256"] == checks_of(student)["student_sha256"]:
        write_json(student / _RECORD, known)
        _append(student / "README.md", section(student))


def section(student: Path) -> str:
    """The section of the model card, in Markdown."""
    parts = [
        f"### {engine}, {own['date']}\n\n"
        f"{', '.join(f'{name} {number}' for name, number in own['versions'].items())}\n\n"
        f"{_table(own['rows'])}\n"
        for engine, own in sorted(checks_of(student)["engines"].items())
    ]
    return "\n".join(
        [
            "## In other engines\n\nThe largest differences from the student's own results, "
            "in float64, by `mlff-distiller export ENGINE STUDENT --out DIR --check`.\n",
            *parts,
        ]
    )


def _versions(target: Target) -> Mapping[str, str]:
    found = {"mlff-distiller": version("mlff-distiller"), "Python": platform.python_version()}
    for name in target.distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "of this machine, not from pip"
    return found


def _plain(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    """The rows for JSON, which has no NaN."""
    return [
        {
            **asdict(row),
            "value": float(row.value) if math.isfinite(row.value) else None,
            "passed": bool(row.passed),
        }
        for row in rows
    ]


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [_HEAD]
    for row in rows:
        limit = "" if row["limit"] is None else f"{row['limit']:g}"
        mark = "" if row["limit"] is None else "✓" if row["passed"] else "✗"
        value = "not a number" if row["value"] is None else f"{row['value']:.3g}"
        lines.append(f"| {mark} | {row['what']} | {value} | {limit} | {row['unit']} |")
    return "\n".join(lines)


def _append(file: Path, text: str) -> None:
    """``text`` at the end of ``file``, in the place of what was appended before."""
    own = file.read_text(encoding="utf-8").partition(_MARK)[0].rstrip()
    write_text(file, f"{own}\n\n{_MARK}\n{text}")
