"""How soft a structure is: what a barostat needs to know for its pace."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.geometry import find_mic
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlff_distiller.errors import DynamicsError
from mlff_distiller.md.record import ForceField
from mlff_distiller.structure import bonds_of

_SQUEEZE = 0.01
"""Strain of the two cells between which the resistance is measured."""
_MODULI_GPA = (1.0, 1000.0)
"""From liquid argon to twice diamond."""


def compressibility(force_field: ForceField, atoms: Atoms) -> float:
    """``1 / (V d²E/dV²)`` in 1/GPa, by energies of cells 1 % longer and shorter.

    Molecules keep their shape. Within what matter has; it sets the pace of the barostat only.

    Raises
    ------
    DynamicsError
        An energy is not finite.
    """
    i, j = bonds_of(atoms)
    n = len(atoms)
    bonded = coo_array((np.ones(len(i)), (i, j)), (n, n))
    label = connected_components(bonded, directed=False)[1]
    if np.bincount(label).max() > n // 2:  # a network has no molecules
        label = np.arange(n)
    centre = np.unique(label, return_index=True)[1][label]
    arms = find_mic(atoms.positions - atoms.positions[centre], atoms.cell, atoms.pbc)[0]
    energies = []
    for length in (1.0 - _SQUEEZE, 1.0, 1.0 + _SQUEEZE):
        cell: Atoms = atoms.copy()
        cell.set_cell(atoms.cell.array * length)
        cell.positions = length * atoms.positions[centre] + arms
        energies.append(force_field.energy(cell))
    curvature = (energies[0] - 2.0 * energies[1] + energies[2]) / (3.0 * _SQUEEZE) ** 2
    modulus = curvature / atoms.get_volume() / units.GPa
    if not np.isfinite(modulus):
        raise DynamicsError("energies of a cell 1 % longer and shorter are not finite")
    return 1.0 / float(np.clip(modulus, *_MODULI_GPA))
