"""Neighbour lists on the device, with a skin. README.md says how."""

from mlff_distiller.kernels.neighbors.verlet import VerletList

__all__ = ["VerletList"]
