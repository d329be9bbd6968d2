"""What a structure is, which decides what can be asked of it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from ase import Atoms

Kind = Literal["molecule", "liquid", "crystal", "slab"]

_VACUUM_A = 8.0
"""A gap so wide holds no atom of a condensed phase."""
_ORDERED = 0.35
"""Share of a perfect Bragg peak's height: what a peak of vibrating atoms still has just below
melting (Debye and Waller). A liquid of n atoms has some (3 + ln 1000) / n."""
_LEAST_ATOMS = 20
"""Below, a liquid's peaks are as high as a crystal's; such small liquids are not simulated."""
_LARGEST_K = 5.0
"""1/Å: beyond it vibrations wash peaks out."""


def kind_of(atoms: Atoms) -> Kind:
    """Molecule: not periodic. Slab: in one or two directions, or with 8 Å of vacuum in one.

    Of what fills its cell a crystal is what has a Bragg peak: for atoms of one element,
    ``|sum_j exp(i k·r_j)|² / n²`` above 0.35 at a reciprocal lattice vector ``k``.
    """
    if not atoms.pbc.any():
        return "molecule"
    if not atoms.pbc.all() or max(_gaps(atoms)) > _VACUUM_A:
        return "slab"
    return "crystal" if _is_ordered(atoms) else "liquid"


def _gaps(atoms: Atoms) -> list[float]:
    """Widest empty layer along each lattice direction, Å."""
    heights = 1.0 / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
    gaps = []
    for axis, height in enumerate(heights):
        place = np.sort(atoms.get_scaled_positions()[:, axis])
        gaps.append(float(np.diff([*place, place[0] + 1.0]).max() * height))
    # Along a cell's short vector a single layer leaves nothing but its images.
    return [gap if gap < 0.999 * height else 0.0 for gap, height in zip(gaps, heights, strict=True)]


def _is_ordered(atoms: Atoms) -> bool:
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    if counts.max() < _LEAST_ATOMS:
        return True
    own = atoms[atoms.numbers == numbers[counts.argmax()]]
    scaled = own.get_scaled_positions()
    reach = np.floor(_LARGEST_K * atoms.cell.lengths() / (2.0 * np.pi)).astype(int)
    waves = [
        np.exp(2j * np.pi * np.outer(scaled[:, axis], np.arange(-reach[axis], reach[axis] + 1)))
        for axis in range(3)
    ]  # (n_atoms, n_k) along each axis
    peaks = np.abs(np.einsum("ja,jb,jc->abc", *waves, optimize=True)) ** 2 / len(own) ** 2
    peaks[tuple(reach)] = 0.0
    return bool(peaks.max() > _ORDERED)
