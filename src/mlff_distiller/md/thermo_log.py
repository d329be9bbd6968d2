"""The thermodynamic log of a simulation: CSV or JSON lines, one row per system and instant."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from mlff_distiller.durable import explaining
from mlff_distiller.errors import DynamicsError
from mlff_distiller.md.files import GrowingText, Mark
from mlff_distiller.md.state import Observables

COLUMNS = (
    "step",
    "time_ps",
    "system",
    "potential_energy",
    "kinetic_energy",
    "total_energy",
    "temperature_K",
    "pressure_GPa",
    "volume",
)
"""Energies in eV, volume in Å³."""
OF_TRUST = ("max_forces_error", "trusted")
"""Where a guard looks: the largest estimate since the last row, eV/Å, and the trusted fraction of
all looks at atoms so far."""
OF_TEACHER = "teacher_steps"
"""How many steps since the last row a teacher has made, where it takes over."""

Row = dict[str, float | int | None]


def rows_of(step: int, time_ps: float, seen: Observables) -> list[Row]:
    """A row for each system; pressure and volume are None without a volume."""
    rows: list[Row] = []
    for system in range(len(seen.volume)):
        potential, kinetic = seen.potential_energy[system], seen.kinetic_energy[system]
        values = (
            potential,
            kinetic,
            potential + kinetic,
            seen.temperature_K[system],
            seen.pressure_GPa[system],
            seen.volume[system],
        )
        numbers = [float(value) if math.isfinite(value) else None for value in values]
        row = (step, round(time_ps, 9), system, *numbers)
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows


class ThermoLog:
    """A file of such rows; ``mark`` says where it ends, to go on from there.

    A CSV file that is continued keeps the columns it has, which may be those of an earlier version.

    Raises
    ------
    DynamicsError
        A row could not be written, this one or an earlier one; or the file is damaged.
    """

    def __init__(self, path: Path, mark: Mark | None = None, extra: Sequence[str] = ()) -> None:
        self._path, self._is_csv = path, path.suffix == ".csv"
        self._columns = [*COLUMNS, *extra]
        with explaining(f"the log {path}", DynamicsError):
            self._file = GrowingText(path, mark)
            if mark is None and self._is_csv:
                self._file.write(",".join(self._columns) + "\n")
            elif self._is_csv:
                with path.open(encoding="utf-8") as file:
                    self._columns = file.readline().strip().split(",")

    def write(self, rows: list[Row]) -> None:
        lines = []
        for row in rows:
            if self._is_csv:
                values = [row.get(name) for name in self._columns]
                cells = ["" if value is None else f"{value!r}" for value in values]
                lines.append(",".join(cells) + "\n")
            else:
                lines.append(json.dumps(row) + "\n")
        with explaining(f"the log {self._path}", DynamicsError):
            self._file.write("".join(lines))

    def mark(self) -> Mark:
        """Make all rows durable."""
        with explaining(f"the log {self._path}", DynamicsError):
            return self._file.mark()

    def close(self) -> None:
        with explaining(f"the log {self._path}", DynamicsError):
            self._file.close()
