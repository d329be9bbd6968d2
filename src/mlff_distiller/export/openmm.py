"""OpenMM, by OpenMM-ML: a student for a whole system, or for a part of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from mlff_distiller.export.python import Found, PythonTarget, boxed, drift, run_in_copy
from mlff_distiller.export.target import Row
from mlff_distiller.structure import default_time_step_fs

_STEPS, _STRIDE = 200, 2


class OpenMM(PythonTarget):
    """A script around ``MLPotential("mlffd")``."""

    name = "openmm"
    install = "pip install openmm openmmml"
    modules = ("openmm", "openmmml")
    distributions = ("openmm", "openmmml")

    def start(self, atoms: Atoms) -> Atoms:
        return _periodic_or_not(super().start(atoms))

    def frames(self, start: Atoms) -> Iterator[tuple[str, Atoms]]:
        for what, atoms in super().frames(start):
            yield what, _periodic_or_not(atoms)

    def evaluate(self, out: Path, atoms: Atoms) -> Found:
        context = _context(out, atoms, dtype="float64")
        state = context.getState(energy=True, forces=True)
        kj = units.kJ / units.mol
        energy, forces = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value
        return Found(energy * kj, np.asarray(forces) * (0.1 * kj))

    def run(self, out: Path, start: Atoms) -> list[Row]:
        with run_in_copy(out, "run_openmm.py"):
            pass
        context = _context(out, start, default_time_step_fs(start))
        context.setVelocitiesToTemperature(300.0, 1)
        energies = []
        for _ in range(_STEPS // _STRIDE):
            context.getIntegrator().step(_STRIDE)
            state = context.getState(energy=True)
            energies.append(state.getPotentialEnergy()._value + state.getKineticEnergy()._value)
        in_eV = np.array(energies) * (units.kJ / units.mol)
        return [drift(f"{_STEPS} steps of NVE", in_eV, len(start))]


def _periodic_or_not(atoms: Atoms) -> Atoms:
    """The same, also along vectors with vacuum: OpenMM knows all three or none."""
    atoms.pbc = atoms.pbc.any()
    return boxed(atoms) if atoms.pbc.any() else atoms


def _context(out: Path, atoms: Atoms, time_step_fs: float = 1.0, **options: Any) -> Any:
    """A context of ``atoms`` under the student in ``out``, on the platform of OpenMM's choice."""
    import openmm
    from openmmml import MLPotential

    from mlff_distiller.deploy.openmm import topology_of

    potential = MLPotential("mlffd", student=out / "student", **options)
    system = potential.createSystem(topology_of(atoms))
    context = openmm.Context(system, openmm.VerletIntegrator(1e-3 * time_step_fs))
    context.setPositions(0.1 * atoms.positions)
    return context


TARGET = OpenMM
