"""Which structures are the same thing turned, moved, renumbered or repeated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from mlff_distiller.sampling.select import densities, descriptors

_SAME = 1e-3
"""Share of the features' spread; rounding gives 1e-6, atoms displaced by 0.01 Å give 1e-2."""
_AT_ONCE = 512
"""Atoms whose distances to all others are in memory together."""


def find_similar(
    frames: Sequence[Atoms],
    others: Sequence[Atoms] | None = None,
    *,
    tolerance: float = _SAME,
) -> np.ndarray:
    """Pairs (m, 2) of indices: of ``frames`` and ``others``, or i < j of ``frames`` alone.

    Compared are composition and `descriptors`, which rotation, translation, order of atoms and
    choice of cell do not change. They are means, in which one atom among many would not show, so
    where they agree every atom's environment must be as frequent in one structure as in the other.
    Cost: some 2 ms per structure of 64 atoms, then n log n, and n_atoms² for each pair that agrees.
    """
    everything = [*frames, *(others or ())]
    if len(everything) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    elements = sorted({int(z) for atoms in everything for z in np.unique(atoms.numbers)})
    features = descriptors(everything, elements).astype(np.float64)
    counts = np.array([[np.mean(a.numbers == z) for z in elements] for a in everything])
    scale = max(float(np.sqrt((features**2).sum(1).mean())), 1e-12)
    points = np.hstack([features / scale, counts])
    along = np.random.default_rng(0).normal(size=points.shape[1])
    shadow = points @ (along / np.linalg.norm(along))
    order = np.argsort(shadow, kind="stable")
    ends = np.searchsorted(shadow[order], shadow[order] + tolerance, side="right")
    is_other = np.arange(len(everything)) >= len(frames)
    pairs = []
    for place, (index, end) in enumerate(zip(order.tolist(), ends.tolist(), strict=True)):
        near = order[place + 1 : end]
        if others is not None:
            near = near[is_other[near] != is_other[index]]
        alike = np.linalg.norm(points[near] - points[index], axis=1) < tolerance
        pairs += [
            sorted((index, other))
            for other in near[alike].tolist()
            if np.array_equal(points[index], points[other])  # an exact copy, bit for bit
            or same_environments(everything[index], everything[other], elements, tolerance * scale)
        ]
    found = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    if others is not None:
        found[:, 1] -= len(frames)
    return found


def near_copies(
    frames: Sequence[Atoms], others: Sequence[Atoms], *, within_A: float = 0.1
) -> np.ndarray:
    """Indices (m,) of ``frames`` that are neighbours in time of one of ``others``, if shuffled.

    Every atom, and the cell, is ``within_A`` of where it is in the other, and three times nearer
    there than in a usual one: those of a cold crystal are all near each other. Atoms are compared
    in order. Cost: n_frames times n_others, some 1 µs a pair of 64 atoms.
    """
    known: dict[bytes, list[np.ndarray]] = {}
    for atoms in others:
        known.setdefault(_kind(atoms), []).append(_places(atoms))
    tables = {kind: np.stack(places) for kind, places in known.items()}
    found = []
    for number, atoms in enumerate(frames):
        table = tables.get(_kind(atoms))
        if table is None:
            continue
        away = table - _places(atoms)
        lattice = atoms.cell.array * atoms.pbc[:, None]
        if atoms.pbc.any():  # an atom may have been wrapped
            away[:, 3:] -= np.round(away[:, 3:] @ np.linalg.pinv(lattice)) @ lattice
        farthest = np.abs(away).max((1, 2))
        if farthest.min() < min(within_A, np.median(farthest) / 3.0):
            found.append(number)
    return np.array(found, dtype=np.int64)


def _kind(atoms: Atoms) -> bytes:
    kind: bytes = atoms.pbc.tobytes() + atoms.numbers.astype(np.int64).tobytes()
    return kind


def _places(atoms: Atoms) -> np.ndarray:
    """(3 + n_atoms, 3): periodic vectors, then positions."""
    return np.vstack([atoms.cell.array * atoms.pbc[:, None], atoms.positions])


def same_environments(
    first: Atoms, second: Atoms, elements: Sequence[int], tolerance: float
) -> bool:
    """Whether every atom's surroundings are as frequent in one structure as in the other.

    For every atom i, among the atoms of its element::

        #{k of its own : |rho_k - rho_i| < t/2} / n  <=  #{k of the other : |rho_k - rho_i| < t} / m

    with `densities` rho and t the ``tolerance``. Half of it on the left lets rounding, which moves
    each rho by less than t/4, never part what is equal.
    """
    sizes = len(first), len(second)
    rho = [densities(atoms, elements).astype(np.float64) for atoms in (first, second)]
    for z in elements:
        one, two = (
            part[atoms.numbers == z] for part, atoms in zip(rho, (first, second), strict=True)
        )
        if len(one) * sizes[1] != len(two) * sizes[0]:
            return False
        if not _as_frequent(one, two, tolerance) or not _as_frequent(two, one, tolerance):
            return False
    return True


def _as_frequent(own: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether each row of ``own`` is in ``other`` as often, for its number of rows."""
    for start in range(0, len(own), _AT_ONCE):
        part = own[start : start + _AT_ONCE]
        here = (_squared_distances(part, own) < (0.5 * tolerance) ** 2).sum(1)
        there = (_squared_distances(part, other) < tolerance**2).sum(1)
        if (here * len(other) > there * len(own)).any():
            return False
    return True


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.einsum("ij,ij->i", a, a)[:, None] + np.einsum("ij,ij->i", b, b)
    return np.asarray(squares - 2.0 * (a @ b.T))
