"""Structures of ASE for OpenMM. The potential itself is ``MLPotential("mlffd", student=...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openmm import app, unit

if TYPE_CHECKING:
    from ase import Atoms


def topology_of(atoms: Atoms) -> app.Topology:
    """One residue of all ``atoms``, and their cell if they are periodic.

    The cell must be as OpenMM wants it: reduced, a along x and b in the xy plane.
    """
    topology = app.Topology()
    residue = topology.addResidue("ALL", topology.addChain())
    for symbol in atoms.symbols:
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.any():
        topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
    return topology
