"""NEP4: descriptor, network and gradient. README.md has the equations."""

from mlff_distiller.kernels.nep.reference import (
    Geometry,
    Parameters,
    Repulsion,
    Shape,
    descriptors,
    energies_and_gradients,
)

__all__ = [
    "Geometry",
    "Parameters",
    "Repulsion",
    "Shape",
    "descriptors",
    "energies_and_gradients",
]
