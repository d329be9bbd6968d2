"""What a simulation needs to know of a structure before it begins: size, time step, momenta."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation


def enlarge(atoms: Atoms, n_atoms: int) -> Atoms:
    """About ``n_atoms`` atoms: a supercell, or a grid of copies of a molecule 15 Å apart.

    A cell smaller than the cutoff shows a student only copies of itself.
    """
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


def default_time_step_fs(atoms: Atoms) -> float:
    """0.5 fs with hydrogen, else 1 fs."""
    return 0.5 if (atoms.numbers == 1).any() else 1.0


def thermalise(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution."""
    spread = np.sqrt(units.kB * temperature_K * atoms.get_masses())
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])


def at_rest(atoms: Atoms) -> None:
    """Take out the motion of the centre of mass and, in vacuum, rotation."""
    Stationary(atoms)
    if not atoms.pbc.any() and len(atoms) > 2:
        ZeroRotation(atoms)
