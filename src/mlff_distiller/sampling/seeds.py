"""Structures made larger: a cell smaller than the cutoff shows a student only copies of itself."""

from __future__ import annotations

import numpy as np
from ase import Atoms


def enlarge(atoms: Atoms, n_atoms: int) -> Atoms:
    """About ``n_atoms`` atoms: a supercell, or a grid of copies of a molecule 15 Å apart."""
    large: Atoms = atoms.copy()
    if len(atoms) >= n_atoms:
        return large
    pbc = atoms.pbc
    if not pbc.any():
        size = np.ptp(atoms.positions, axis=0) + 15.0
        large.cell = size
    axes = np.flatnonzero(pbc) if pbc.any() else np.arange(3)
    repeat = np.ones(3, dtype=int)
    while len(atoms) * repeat.prod() < n_atoms:
        lengths = large.cell.lengths() * repeat
        repeat[axes[lengths[axes].argmin()]] += 1
    large = large.repeat(repeat)
    large.pbc = pbc
    if not pbc.any():
        large.cell = None
    return large
