"""Dynamics of structure.extxyz at 300 K: ``python run_openmm.py``."""

import sys
from pathlib import Path

from ase.io import read
from openmm import LangevinMiddleIntegrator, app, unit
from openmmml import MLPotential

from mlff_distiller.deploy.openmm import topology_of

here = Path(__file__).parent
atoms = read(here / "structure.extxyz")
topology = topology_of(atoms)
system = MLPotential("mlffd", student=here / "student").createSystem(topology)
integrator = LangevinMiddleIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond
)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(atoms.positions * unit.angstrom)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin)
reported = {"step": True, "potentialEnergy": True, "temperature": True}
simulation.reporters.append(app.StateDataReporter(sys.stdout, 20, **reported))
simulation.step(100)
