"""``MLPotential("mlffd", student=...)`` of OpenMM-ML, which finds it by its entry point.

OpenMM-ML imports this module whenever it is imported, whatever potential is wanted: what takes long
is imported when a potential is made. Import OpenMM-ML, not this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from openmm import app, unit
from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

from mlff_distiller.errors import StudentError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff_distiller.deploy.calculator import StudentCalculator


class StudentPotentialFactory(MLPotentialImplFactory):
    """Makes the potential that OpenMM-ML knows as ``mlffd``."""

    def createImpl(self, name: str, **options: Any) -> StudentPotential:
        """A potential of ``student`` (a folder, ``nep.txt`` or `Student`).

        ``options`` are those of `StudentCalculator`.

        Raises
        ------
        StudentError
            There is no ``student``, or it cannot be read.
        """
        from mlff_distiller.deploy.calculator import StudentCalculator

        student = options.pop("student", None)
        if student is None:
            raise StudentError(
                f"the potential {name!r} needs a student",
                remedy=f"MLPotential({name!r}, student='RUN/student')",
            )
        return StudentPotential(StudentCalculator(student, **options))


class StudentPotential(MLPotentialImpl):
    """A student for a whole system of OpenMM, or for some of its atoms."""

    def __init__(self, calculator: StudentCalculator) -> None:
        self.calculator = calculator

    def getMLLongRange(self) -> bool:
        """No: beyond its cutoff a student sees nothing."""
        return False

    def addForces(
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **_: Any,
    ) -> None:
        """Add a force on ``atoms``, or on all. Particles without an element are left out.

        Raises
        ------
        UnknownElementError
            The student does not know an element.
        """
        import torch
        from ase import Atoms

        elements = [atom.element for atom in topology.atoms()]
        chosen = range(len(elements)) if atoms is None else atoms
        chosen = [index for index in chosen if elements[index] is not None]  # not virtual sites
        numbers = [elements[index].atomic_number for index in chosen]
        student = self.calculator.student
        student.types(torch.tensor(numbers, device=student.device))
        periodic = (
            topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
        )
        force = openmm.PythonForce(_Compute(self.calculator, Atoms(numbers, pbc=periodic)))
        force.setForceGroup(forceGroup)
        force.setUsesPeriodicBoundaryConditions(periodic)
        if len(chosen) < system.getNumParticles():
            force.setParticles(chosen)
        system.addForce(force)


class _Compute:
    """Energy (kJ/mol) and forces (n_atoms, 3; kJ/mol/nm) of a state; OpenMM may pickle it."""

    def __init__(self, calculator: StudentCalculator, atoms: Atoms) -> None:
        self.calculator, self.atoms = calculator, atoms

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        from ase import units

        eV = units.mol / units.kJ
        atoms = self.atoms
        atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        if atoms.pbc.any():
            atoms.cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
        energy = self.calculator.get_property("energy", atoms)
        return energy * eV, self.calculator.get_property("forces", atoms) * (10.0 * eV)
