"""Observables of a trajectory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mlff_distiller.neighbors import pair_vectors


def rdf(
    frames: Sequence[Atoms], r_max: float = 6.0, bins: int = 150
) -> tuple[np.ndarray, np.ndarray]:
    """Radial distribution function g(r) of all pairs, averaged over ``frames``.

    Returns bin centres (Å) and g. Normalised by the density of the cell; for a structure that is
    not periodic in all directions there is no density, and g is the number of pairs an atom and Å.
    """
    edges = np.linspace(0.0, r_max, bins + 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    total = np.zeros(bins)
    for atoms in frames:
        vectors = pair_vectors(atoms, r_max)[2]
        counts = np.histogram(np.linalg.norm(vectors, axis=1), edges)[0] / len(atoms)
        periodic = bool(atoms.pbc.all())
        total += counts / (shells * len(atoms) / atoms.get_volume() if periodic else np.diff(edges))
    return 0.5 * (edges[1:] + edges[:-1]), total / max(1, len(frames))


def msd(frames: Sequence[Atoms]) -> np.ndarray:
    """Mean squared displacement (Å²) of each frame from the first, (n_frames,).

    Positions must be unwrapped; the motion of the centre of mass is taken out.
    """
    if not frames:
        return np.empty(0)
    positions = np.stack([atoms.positions - atoms.get_center_of_mass() for atoms in frames])
    return np.asarray(((positions - positions[0]) ** 2).sum(2).mean(1))
