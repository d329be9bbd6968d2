"""Which structures are the same thing turned, moved, renumbered or repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mlff_distiller.sampling.select import descriptors

_SAME = 1e-3
"""Of the spread of features; rounding is at 1e-6, and atoms displaced by 0.01 Å are at 1e-2."""


def find_similar(
    frames: Sequence[Atoms],
    others: Sequence[Atoms] | None = None,
    *,
    tolerance: float = _SAME,
    threads: int = 1,
) -> np.ndarray:
    """Pairs (m, 2) of indices: of ``frames`` and ``others``, or i < j of ``frames`` alone.

    Compared are `descriptors`, which rotation, translation, order of atoms and choice of cell do
    not change, and composition. Cost: some 0.5 ms a structure, then n log n.
    """
    everything = [*frames, *(others or ())]
    if len(everything) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    elements = sorted({int(z) for atoms in everything for z in np.unique(atoms.numbers)})
    features = descriptors(everything, elements, threads=threads).astype(np.float64)
    counts = np.array([[np.mean(a.numbers == z) for z in elements] for a in everything])
    scale = max(float(np.sqrt((features**2).sum(1).mean())), 1e-12)
    points = np.hstack([features / scale, counts])
    along = np.random.default_rng(0).normal(size=points.shape[1])
    shadow = points @ (along / np.linalg.norm(along))
    order = np.argsort(shadow, kind="stable")
    ends = np.searchsorted(shadow[order], shadow[order] + tolerance, side="right")
    pairs = []
    for place, (index, end) in enumerate(zip(order.tolist(), ends.tolist(), strict=True)):
        near = order[place + 1 : end]
        same = np.linalg.norm(points[near] - points[index], axis=1) < tolerance
        pairs += [sorted((index, int(other))) for other in near[same]]
    found = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    if others is None:
        return found
    n = len(frames)
    across = found[(found[:, 0] < n) & (found[:, 1] >= n)]
    across[:, 1] -= n
    return across
