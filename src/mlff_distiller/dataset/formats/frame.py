"""What every reader of a foreign format yields, and the units it converts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
from ase import Atoms, units

from mlff_distiller.errors import ConfigError, DatasetError

ENERGY_UNITS = {
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": units.Hartree,
    "ha": units.Hartree,
    "ry": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kj/mol": units.kJ / units.mol,
}
LENGTH_UNITS = {"a": 1.0, "å": 1.0, "angstrom": 1.0, "bohr": units.Bohr, "nm": 10.0}
STRESS_UNITS = {
    **{f"{energy}/{length}^3": ENERGY_UNITS[energy] / LENGTH_UNITS[length] ** 3
       for energy in ENERGY_UNITS for length in LENGTH_UNITS},
    "gpa": units.GPa,
    "mpa": 1e-3 * units.GPa,
    "pa": units.Pascal,
    "kbar": 1e3 * units.bar,
    "bar": units.bar,
}  # fmt: skip
FORCES_UNITS = {
    f"{energy}/{length}": ENERGY_UNITS[energy] / LENGTH_UNITS[length]
    for energy in ENERGY_UNITS
    for length in LENGTH_UNITS
}
"""Factors to eV, Å, eV/Å³ and eV/Å, with the CODATA values that ASE uses. Keys in lower case."""


@dataclass(frozen=True)
class Conventions:
    """What the user says of a file's labels; ``None`` is "not said", and never guessed at."""

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    """or ``"none"``: leave stress and virial out"""
    virial_key: str | None = None
    energy_unit: str | None = None
    forces_unit: str | None = None
    length_unit: str | None = None
    stress_unit: str | None = None
    """of the stress, or of the virial"""
    stress_sign: Literal["tension", "compression"] | None = None
    """the state in which stress, or virial, is positive"""
    voigt_order: str | None = None
    """of six numbers, such as ``"xx,yy,zz,yz,xz,xy"``"""
    type_map: tuple[str, ...] | None = None
    """elements of a DeePMD system without ``type_map.raw``"""

    def __post_init__(self) -> None:
        for name, table in (
            ("energy_unit", ENERGY_UNITS),
            ("forces_unit", FORCES_UNITS),
            ("length_unit", LENGTH_UNITS),
        ):
            self._checked(name, table)
        self._checked("stress_unit", STRESS_UNITS | ENERGY_UNITS)
        if self.stress_sign not in (None, "tension", "compression"):
            raise ConfigError(
                "--stress-sign is wrong",
                expected="tension or compression: the state in which the numbers are positive",
                found=self.stress_sign,
            )
        if self.stress_key is not None and self.virial_key is not None:
            raise ConfigError(
                "both --stress-key and --virial-key are given",
                expected="one of them",
                found=f"{self.stress_key!r} and {self.virial_key!r}",
            )

    def _checked(self, name: str, table: Mapping[str, float]) -> None:
        unit = getattr(self, name)
        if unit is not None and unit.lower() not in table:
            raise ConfigError(f"{option(name)} is unknown", expected=sorted(table), found=unit)

    @property
    def length(self) -> float:
        """Å in the file's unit of length."""
        return LENGTH_UNITS[(self.length_unit or "angstrom").lower()]

    @property
    def energy(self) -> float:
        """eV in the file's unit of energy."""
        return ENERGY_UNITS[(self.energy_unit or "eV").lower()]

    @property
    def forces(self) -> float:
        """eV/Å in the file's unit of forces."""
        return FORCES_UNITS[(self.forces_unit or "eV/angstrom").lower()]

    def only(self, name: str, *allowed: str) -> None:
        """Refuse what format ``name``, whose names and units are fixed, would not look at."""
        given = [
            option(row.name)
            for row in fields(self)
            if getattr(self, row.name) is not None and row.name not in allowed
        ]
        if given:
            raise ConfigError(
                f"format {name} fixes its own names and units",
                expected=f"of these options only {[option(row) for row in allowed]}",
                found=given,
            )


@dataclass(frozen=True)
class Frame:
    """One structure of a file with its labels in our units, or what is wrong with it."""

    index: int
    atoms: Atoms
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    kin: str = ""
    """Frames of one file that name the same kin, a molecule say, are one group."""
    problem: str = ""
    progress: float = 0.0
    """How much of the source has been read, from 0 to 1."""


Reader = Callable[[Path, Conventions], Iterator[Frame]]


def option(name: str) -> str:
    """How the command line spells field ``name`` of ``Conventions``."""
    return "--" + name.replace("_", "-")


def symmetric(tensor: np.ndarray, name: str) -> np.ndarray:
    """(3, 3): the symmetric part; ``DatasetError`` if the rest is more than rounding."""
    if tensor.shape != (3, 3):
        raise DatasetError(f"{name} has the wrong shape", expected=(3, 3), found=tensor.shape)
    scale = np.abs(tensor).max()
    if np.isfinite(scale) and np.abs(tensor - tensor.T).max() > 1e-3 * scale + 1e-8:
        raise DatasetError(
            f"{name} is not symmetric", expected="nine numbers, row by row", found=tensor.tolist()
        )
    symmetrised: np.ndarray = 0.5 * (tensor + tensor.T)
    return symmetrised


def stress_from_virial(virial: np.ndarray, atoms: Atoms, name: str) -> np.ndarray:
    """(3, 3) eV/Å³ from a virial in eV that is positive under compression: σ = −W / V."""
    volume = abs(np.linalg.det(atoms.cell.array))
    if volume == 0.0:
        raise DatasetError(f"{name}: a virial needs a cell with a volume", found="no volume")
    stress: np.ndarray = -symmetric(virial, name) / volume
    return stress
