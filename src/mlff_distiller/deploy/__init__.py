"""Ways to run a student in other programs."""

from mlff_distiller.deploy.calculator import StudentCalculator

__all__ = ["StudentCalculator"]
