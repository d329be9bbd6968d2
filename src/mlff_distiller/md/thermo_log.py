"""The thermodynamic log of a simulation: CSV or JSON lines, a row for each system and instant."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from mlff_distiller.md.simulation import Observables

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
    """A file of such rows; ``mark`` says where it ends, to go on from there."""

    def __init__(self, path: Path, mark: int | None = None) -> None:
        self._is_csv = path.suffix == ".csv"
        self._file = path.open("w" if mark is None else "r+", encoding="utf-8")
        if mark is not None:
            self._file.truncate(mark)
            self._file.seek(mark)
        elif self._is_csv:
            self._file.write(",".join(COLUMNS) + "\n")

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            if self._is_csv:
                cells = ["" if row[name] is None else f"{row[name]!r}" for name in COLUMNS]
                self._file.write(",".join(cells) + "\n")
            else:
                self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def mark(self) -> int:
        """Make all rows durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
