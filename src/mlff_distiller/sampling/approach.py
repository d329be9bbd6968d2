"""Atoms pushed together: how hard they repel each other where dynamics seldom leads.

A student that never saw two molecules collide takes the weak repulsion before the collision for
all there is, and one fast encounter in some 10 ps of a liquid is enough to fall into the hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from ase import Atoms
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlff_distiller.neighbors import pair_vectors
from mlff_distiller.structure import BONDED, bare, radii_of_pairs

_REACH_A = 4.0
_FAR = 1.6
"""In units of the shortest distance: pairs farther apart are not pushed together."""
_TRIES = 20

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""i, j, the vectors from i to j (n_pairs, 3) in Å, and the body of each atom (n_atoms,)."""
Contacts = dict[tuple[int, int, bool], float]
"""Elements of a pair, whether it is within one body -> shortest distance, Å."""


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class ApproachSettings:
    """How near: ``range`` in units of the shortest distance of such a pair in the seeds.

    ``share`` is the part of the labels that such structures get. ``compressed`` of them are seeds
    with all lengths scaled by a factor within ``range``; in each of the others one pair of every
    ``atoms_per_pair`` atoms is pushed together.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    range: tuple[Annotated[float, Field(gt=0.2)], Annotated[float, Field(le=1.0)]] = (0.8, 1.0)
    atoms_per_pair: Annotated[int, Field(ge=1)] = 48
    compressed: Annotated[float, Field(ge=0, le=1)] = 0.2


def approach(
    seeds: Sequence[Atoms], n: int, settings: ApproachSettings, seed: int = 0
) -> tuple[list[Atoms], list[dict[str, Any]]]:
    """``n`` structures made of the seeds in turn, and their provenance.

    Pairs are drawn such that each pair of elements is as frequent as any other. Atoms of different
    molecules take these along as rigid bodies; those of one move alone, for a crystal is one. What
    constraints hold stays, and is approached; nor are lengths of such a structure scaled.
    Provenance: ``source`` (approach), ``seed``, ``branch`` (0, for they are akin to the seed), and
    ``distance_A``, those made, or ``factor`` of lengths. Fewer than ``n`` where there is nothing to
    push together.
    """
    pairs = [_pairs(atoms) for atoms in seeds]
    shortest: Contacts = {}
    for atoms, (i, j, vectors, bodies) in zip(seeds, pairs, strict=True):
        for kind, r in zip(
            _kinds(atoms, i, j, bodies), np.linalg.norm(vectors, axis=1), strict=True
        ):
            shortest[kind] = min(r, shortest.get(kind, np.inf))
    frames, origins = [], []
    for k in range(n):
        rng, index = np.random.default_rng([seed, k]), k % len(seeds)
        if not len(pairs[index][0]):
            continue
        found: Atoms | None
        made: dict[str, Any]
        if rng.random() < settings.compressed and not seeds[index].constraints:
            factor = float(rng.uniform(*settings.range))
            found, made = _scaled(seeds[index], factor), {"factor": round(factor, 4)}
        else:
            tries = (
                _push(seeds[index], pairs[index], shortest, settings, rng) for _ in range(_TRIES)
            )
            found, distances = next((one for one in tries if one is not None), (None, []))
            made = {"distance_A": distances}
        if found is not None:
            frames.append(found)
            origins.append({"source": "approach", "seed": index, "branch": 0, **made})
    return frames, origins


def _pairs(atoms: Atoms) -> Pairs:
    """Pairs within reach, i < j, the vectors between them, and the body of each atom."""
    i, j, vectors = pair_vectors(atoms, _REACH_A)
    own = i < j
    i, j, vectors = i[own], j[own], vectors[own]
    bonded = np.linalg.norm(vectors, axis=1) < BONDED * radii_of_pairs(atoms.numbers, i, j)
    graph = coo_array((np.ones(bonded.sum()), (i[bonded], j[bonded])), shape=2 * (len(atoms),))
    return i, j, vectors, connected_components(graph, directed=False)[1]


def _kinds(
    atoms: Atoms, i: np.ndarray, j: np.ndarray, bodies: np.ndarray
) -> list[tuple[int, int, bool]]:
    elements = np.sort(atoms.numbers[np.stack([i, j])], axis=0).T
    return [
        (int(a), int(b), bool(one))
        for (a, b), one in zip(elements, bodies[i] == bodies[j], strict=True)
    ]


def _scaled(atoms: Atoms, factor: float) -> Atoms:
    """All lengths times ``factor``."""
    scaled = bare(atoms)
    scaled.positions *= factor
    scaled.set_cell(factor * atoms.cell.array)
    return scaled


def _push(
    atoms: Atoms,
    pairs: Pairs,
    shortest: Contacts,
    settings: ApproachSettings,
    rng: np.random.Generator,
) -> tuple[Atoms, list[float]] | None:
    """None if something else collided."""
    i, j, vectors, bodies = pairs
    lengths = np.linalg.norm(vectors, axis=1)
    kinds = _kinds(atoms, i, j, bodies)
    held = np.zeros(len(atoms), dtype=bool)
    held[[index for one in atoms.constraints for index in one.get_indices()]] = True
    bound = np.isin(bodies, bodies[held])
    alone = np.array([kind[2] for kind in kinds], dtype=bool)
    # The share (n_pairs, 2) of the way that each of a pair goes.
    goes = ~np.where(alone[:, None], held[np.stack([i, j], 1)], bound[np.stack([i, j], 1)])
    share = goes / np.maximum(1, goes.sum(1, keepdims=True))
    near = [
        k for k, kind in enumerate(kinds) if lengths[k] < _FAR * shortest[kind] and goes[k].any()
    ]
    pushed = bare(atoms)
    moved: set[int] = set()
    made: list[float] = []
    for _ in range(max(1, len(atoms) // settings.atoms_per_pair)):
        free = [k for k in near if not {int(i[k]), int(j[k])} & moved]
        if not free:
            break
        present = sorted({kinds[k] for k in free})
        kind = present[rng.integers(len(present))]
        k = int(rng.choice([k for k in free if kinds[k] == kind]))
        r = float(rng.uniform(*settings.range)) * shortest[kind]
        step = (lengths[k] - r) * vectors[k] / lengths[k]
        for atom, by in ((i[k], share[k, 0] * step), (j[k], -share[k, 1] * step)):
            taken = [atom] if kind[2] else np.flatnonzero(bodies == bodies[atom])
            pushed.positions[taken] += by
            moved.update(int(one) for one in taken)
        made.append(round(r, 4))
    if not made:
        return None
    i, j, vectors = pair_vectors(pushed, _REACH_A)
    r = np.linalg.norm(vectors, axis=1)
    least = np.array(
        [settings.range[0] * shortest.get(k, 0.0) for k in _kinds(pushed, i, j, bodies)]
    )
    return None if (r < 0.999 * least).any() else (pushed, made)
