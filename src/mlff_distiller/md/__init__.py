"""Molecular dynamics."""

from mlff_distiller.md.ensemble import Ensemble
from mlff_distiller.md.run import MDResult, run_md
from mlff_distiller.md.simulation import Simulation

__all__ = ["Ensemble", "MDResult", "Simulation", "run_md"]
