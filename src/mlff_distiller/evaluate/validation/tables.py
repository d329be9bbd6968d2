"""Whatever ``measurements`` hold beyond the curves, as tables: new blocks need no code here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from mlff_distiller.evaluate.report import FILTERS, UNITS

_DRAWN = {
    "dynamics",
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


def tables(measured: Mapping[str, Any], above: str = "") -> list[Table]:
    """One table a list of flat dicts, and one a dict with scalars, in the order they are found."""
    found, single = [], []
    for key, value in measured.items():
        path = f"{above}.{key}" if above else key
        if path in _DRAWN | _IN_CHECKS:
            continue
        if _is_rows(value):
            columns = list(
                dict.fromkeys(key for row in value for key, own in row.items() if _fits(own))
            )
            rows = [[row.get(column) for column in columns] for row in value]
            if columns:
                found.append(Table(path, columns, rows))
        elif isinstance(value, Mapping):
            found += tables(value, path)
        elif _fits(value):
            single.append([key, value])
    own = [Table(above or "others", ["what", "value"], single)] if single else []
    return own + found


def label(key: str, table: str = "") -> str:
    """A key in words, with the unit that it ends in, or else the table's name does."""
    unit = next((unit for end, unit in UNITS.items() if key.endswith(end)), "")
    if not unit and key == "value":
        unit = next((unit for end, unit in UNITS.items() if table.endswith(end)), "")
    words = str(FILTERS["words"](key))
    return f"{words} ({unit})" if unit else words


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


def _fits(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= LONGEST_CELL and all(_is_scalar(own) for own in value)
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | Real)
