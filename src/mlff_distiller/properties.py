"""The one table of physical properties: it drives the HDF5 schema, labels, units and tests.

Conventions are ASE's. Energies are absolute, as the teacher gives them. ``forces = -dE/dr``.
``stress = (1/V) dE/dstrain``, positive under tension, symmetric 3x3 inside the package and
Voigt (xx yy zz yz xz xy) only in ASE calculators. The virial is ``-V * stress``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Property:
    """One row: ``shape`` is that of a single atom's or a single system's value."""

    per: Literal["atom", "system"]
    shape: tuple[int, ...]
    unit: str
    dtype: str
    meaning: str
    required: bool = False


STRUCTURE: dict[str, Property] = {
    "positions": Property("atom", (3,), "Å", "float64", "Cartesian positions", required=True),
    "atomic_numbers": Property("atom", (), "1", "uint8", "proton numbers Z", required=True),
    "cell": Property("system", (3, 3), "Å", "float64", "lattice vectors as rows", required=True),
    "pbc": Property("system", (3,), "1", "bool", "periodic along each vector", required=True),
    "charge": Property("system", (), "e", "float64", "total charge"),
    "spin": Property("system", (), "1", "float64", "spin multiplicity"),
    "initial_charges": Property("atom", (), "e", "float64", "charges a calculator starts from"),
    "initial_magmoms": Property("atom", (), "µB", "float64", "magnetic moments, likewise"),
}
"""What defines a structure."""

LABELS: dict[str, Property] = {
    "energy": Property("system", (), "eV", "float64", "total energy", required=True),
    "forces": Property("atom", (3,), "eV/Å", "float32", "-dE/dr", required=True),
    "stress": Property("system", (3, 3), "eV/Å³", "float64", "(1/V) dE/dstrain, tension > 0"),
    "forces_spread": Property("atom", (), "eV/Å", "float32", "sqrt(mean_k |F_k - mean_k F_k|²)"),
    "energies": Property("atom", (), "eV", "float64", "the atoms' shares; their sum is energy"),
}
"""What a teacher says of it. A missing optional label is NaN.

``forces_spread`` is what a committee's members k, whose mean the forces are, disagree about.
"""

SUM_WITHIN = 1e-6
"""eV per atom by which ``energies`` may miss ``energy``; else they are not shares of it."""


def add_up(energies: np.ndarray, energy: float) -> bool:
    """Whether ``energies`` (n_atoms,) sum to ``energy``; never if one is not finite."""
    missed = abs(float(np.sum(energies, dtype=np.float64)) - energy)
    return missed <= SUM_WITHIN * len(energies)
