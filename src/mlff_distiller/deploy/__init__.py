"""Ways to run a student."""

from mlff_distiller.deploy.calculator import StudentCalculator, resolve_device

__all__ = ["StudentCalculator", "resolve_device"]
