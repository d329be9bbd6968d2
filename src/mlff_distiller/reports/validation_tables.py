"""Whatever ``measurements`` hold beyond the curves, as tables: new blocks need no code here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

_DRAWN = {
    "dynamics",
    "error_estimates",
    "scans",
    "short_range.curves",
    "teacher.distributions",
    "teacher.equation_of_state",
    "teacher.frequencies_per_cm",
}
"""What plots show, or tables of their own."""
_IN_CHECKS = {"laws"}
LONGEST_CELL = 12
"""Numbers of a list; longer ones are curves, and in the raw numbers."""


@dataclass(frozen=True)
class Table:
    """``rows`` have a cell a column; a cell is a scalar or a short list of scalars."""

    name: str
    """The path in ``measurements``, with dots."""
    columns: list[str]
    rows: list[list[Any]]


def tables(measured: Mapping[str, Any]) -> list[Table]:
    """One table per list of flat dicts, matrix, and dict with scalars, as they are found.

    Dicts of the teacher stand next to those of the force field: ``teacher.X`` by ``X``, and
    ``X.teacher`` by ``X.student``.
    """
    found = {table.name: table for table in _walked(measured, "")}
    for name in list(found):
        other = name.removesuffix("student") + "teacher"
        partner = found.get(other if name.endswith(".student") else f"teacher.{name}")
        if partner is not None and partner.columns == found[name].columns == ["what", "value"]:
            found[name] = _beside(found[name], found.pop(partner.name))
    return list(found.values())


def _walked(measured: Mapping[str, Any], above: str) -> list[Table]:
    found, single = [], []
    for key, value in measured.items():
        path = f"{above}.{key}" if above else key
        if path in _DRAWN | _IN_CHECKS or value in ("", []):
            continue
        if _is_rows(value):
            columns = list(
                dict.fromkeys(key for row in value for key, own in row.items() if _fits(own))
            )
            found.append(
                Table(path, columns, [[row.get(name) for name in columns] for row in value])
            )
        elif _is_matrix(value):
            columns = ["row", *map(str, range(1, len(value[0]) + 1))]
            found.append(Table(path, columns, [[k + 1, *row] for k, row in enumerate(value)]))
        elif isinstance(value, Mapping):
            found += _walked(value, path)
        elif _fits(value):
            single.append([key, value])
    own = [Table(above or "others", ["what", "value"], single)] if single else []
    return own + found


def _beside(mine: Table, theirs: Table) -> Table:
    own, other = dict(mine.rows), dict(theirs.rows)
    rows = [[key, own.get(key, "–"), other.get(key, "–")] for key in dict.fromkeys([*own, *other])]
    return Table(mine.name, ["what", "student", "teacher"], rows)


def named(all_tables: Sequence[Table], name: str) -> Table | None:
    """The table of this name, if there is one."""
    return next((table for table in all_tables if table.name == name), None)


def checks_table(verdicts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, list[Any]]]:
    """Each check that anybody had, with one check block, or None, for each of ``verdicts``."""
    blocks = [{one["name"]: one for one in own["checks"]} for own in verdicts.values()]
    for name in dict.fromkeys(name for block in blocks for name in block):
        yield name, [block.get(name) for block in blocks]


def _is_rows(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, Mapping) for row in value)
        and any(_fits(cell) for row in value for cell in row.values())
    )


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) and len(row) > 2 and _fits(row) for row in value)
        and len({len(row) for row in value}) == 1
    )


def _fits(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= LONGEST_CELL and all(_is_scalar(own) for own in value)
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | Real)
