"""Ways to run a student."""

from mlff_distiller.deploy.calculator import StudentCalculator, resolve_device
from mlff_distiller.deploy.ensembles import Ensemble
from mlff_distiller.deploy.md import MDResult, run_md
from mlff_distiller.deploy.simulation import Simulation

__all__ = [
    "Ensemble",
    "MDResult",
    "Simulation",
    "StudentCalculator",
    "resolve_device",
    "run_md",
]
