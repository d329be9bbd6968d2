"""The rattle-relax tree: diverse, physical structures from a few seeds, without running MD.

Follows Gardner et al., "Distillation of atomistic foundation models across architectures and
chemical domains" (2025). Each expansion picks a parent with

    P_i = (1 - beta) exp(-(e_i - e_0)/kT) / Z + beta (g_i + 1) / sum_j (g_j + 1)

(e energy per atom, g generation), strains the seed's cell, displaces every atom by N(0, sigma)
and walks back along the forces, ``r_a += (sigma/i) F_a/|F_a|``, i = 1..M. Every step on the way
is labelled and kept: the forces had to be computed anyway.

Several trees grow from each seed, in turn. Two trees share nothing but the seed, so they are what
a split into training and test data may separate; within one, structures are near copies.

Every expansion draws from a generator of its own, seeded by its number, and depends only on
labels: growing a tree again, with labels looked up instead of computed, gives the same tree. That
is how an interrupted run continues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from ase import Atoms, units
from ase.geometry import complete_cell
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.errors import DistillerError
from mlff_distiller.structure import bare, shortest_distance

Positive = Annotated[float, Field(gt=0)]

Labels = dict[str, np.ndarray]
"""``energy`` (eV), ``forces`` (eV/Å), perhaps ``stress`` (eV/Å³)."""
Labeler = Callable[[Sequence[Atoms], Sequence[dict[str, Any]]], list[Labels | None]]
"""Structures and their provenance -> their labels; None for one that has none."""
_Expansion = Generator[tuple[Atoms, dict[str, Any]], Labels | None, None]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class RattleSettings:
    """Settings of the trees. ``temperature_K`` are taken in turn, one an expansion.

    ``trees`` is how many grow in all, at least one a seed. A periodic seed with fewer than
    ``min_atoms`` is repeated first: in a cell shorter than the cutoff, images move together.
    ``relax_above_eV_per_A``: ``distill`` relaxes a seed with larger forces first; None never.
    """

    temperature_K: Annotated[tuple[Positive, ...], Field(min_length=1)] = (300.0,)
    trees: Annotated[int, Field(ge=3)] = 20
    min_atoms: Annotated[int, Field(ge=1)] = 32
    relax_above_eV_per_A: Positive | None = 5.0
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    sigma_range_A: tuple[Positive, Positive] = (0.01, 0.1)
    sigma_cell: Annotated[float, Field(ge=0, le=0.2)] = 0.01
    max_force_eV_per_A: Positive = 30.0
    min_distance_A: Positive = 0.5
    max_steps: Annotated[int, Field(ge=1)] = 20
    duplicate_tolerance_A: Annotated[float, Field(ge=0)] = 1e-3


@dataclass
class _Tree:
    """Structures grown from ``seed``. ``ends`` may become parents; ``seen`` is everything."""

    seed_index: int
    branch: int
    seed: Atoms
    ends: list[tuple[Atoms, float, int]]
    """structure, energy per atom (eV), generation"""
    seen: list[Atoms]


def grow(
    seeds: Sequence[Atoms],
    label: Labeler,
    n_labels: int,
    settings: RattleSettings,
    seed: int = 0,
    on_label: Callable[[int], None] = lambda n: None,
) -> int:
    """Grow trees from ``seeds`` until ``n_labels`` structures are labelled; returns the count.

    All trees grow at once, each by one expansion a round, in step, so that ``label`` is asked for
    as many structures at a time as there are trees. Provenance handed to it: ``seed``, ``branch``
    (the tree's number among this seed's; 0 is the seed alone), ``generation``, ``step``,
    ``sigma_A``, ``temperature_K``.
    """
    roots = _label_seeds(seeds, label)
    n = len(roots)
    on_label(n)
    trees = [
        _Tree(index, branch, root[0], [root], [root[0]])
        for branch in range(1, math.ceil(settings.trees / len(seeds)) + 1)
        for index, root in enumerate(roots)
    ]
    grown, fruitless = 0, 0
    while n < n_labels:
        before = n
        growing = [
            _expand(tree, grown * len(trees) + k, settings, seed) for k, tree in enumerate(trees)
        ]
        for count in _in_step(growing, label, n_labels - n):
            n += count
            on_label(n)
        grown += 1
        fruitless = fruitless + 1 if n == before else 0
        if fruitless >= 50:
            raise DistillerError(
                f"sampling stopped at {n} labels: {fruitless} rounds in a row gave none",
                expected=f"{n_labels} labels",
                remedy="widen sigma_range_A, lower min_distance_A, or see the teacher's failures",
            )
    return n


def _label_seeds(seeds: Sequence[Atoms], label: Labeler) -> list[tuple[Atoms, float, int]]:
    origins = [
        {"source": "seed", "seed": index, "branch": 0, "generation": 0, "step": 0}
        for index in range(len(seeds))
    ]
    roots = []
    for index, (atoms, results) in enumerate(zip(seeds, label(seeds, origins), strict=True)):
        if results is None:
            raise DistillerError(
                f"the teacher gave no label for seed structure {index} "
                f"({atoms.get_chemical_formula()})",
                found=getattr(label, "news", None) or None,
                remedy="choose structures the teacher can evaluate",
            )
        roots.append((atoms, float(results["energy"]) / len(atoms), 0))
    return roots


def _in_step(growing: Sequence[_Expansion], label: Labeler, most: int) -> Iterator[int]:
    """Advance expansions together, a structure of each at a time; yields how many got a label."""
    waiting = [(expansion, next(expansion, None)) for expansion in growing]
    while most > 0:
        asking = [(expansion, asked) for expansion, asked in waiting if asked is not None][:most]
        if not asking:
            return
        answers = label([asked[0] for _, asked in asking], [asked[1] for _, asked in asking])
        count = sum(results is not None for results in answers)
        most -= count
        yield count
        waiting = []
        for (expansion, _), results in zip(asking, answers, strict=True):
            try:
                waiting.append((expansion, expansion.send(results)))
            except StopIteration:
                continue


def _expand(tree: _Tree, expansion: int, settings: RattleSettings, seed: int) -> _Expansion:
    """Rattle one parent and relax it; yields what is to be labelled, and is sent the label."""
    rng = np.random.default_rng([seed, expansion])
    temperature = settings.temperature_K[expansion % len(settings.temperature_K)]
    kT = units.kB * temperature
    parent, parent_energy, generation = _pick_parent(tree, kT, settings.beta, rng)
    low, high = settings.sigma_range_A
    sigma = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    atoms = rattle(parent, tree.seed, sigma, settings.sigma_cell, rng)
    for step in range(1, settings.max_steps + 1):
        too_close = shortest_distance(atoms) < settings.min_distance_A
        if too_close or is_duplicate(atoms, tree.seen, settings.duplicate_tolerance_A):
            break
        provenance = {
            "source": "rattle",
            "seed": tree.seed_index,
            "branch": tree.branch,
            "generation": generation + 1,
            "step": step,
            "sigma_A": sigma,
            "temperature_K": temperature,
        }
        results = yield atoms, provenance
        if results is None:
            break
        tree.seen.append(atoms)
        energy = float(results["energy"]) / len(atoms)
        forces = np.asarray(results["forces"], dtype=np.float64)
        sizes = np.linalg.norm(forces, axis=1)
        stop = min(0.25, np.exp(min(0.0, -(energy - parent_energy) / kT)))
        ended = rng.random() < stop or step == settings.max_steps
        if ended and sizes.max() < settings.max_force_eV_per_A:
            tree.ends.append((atoms, energy, generation + 1))
            break
        atoms = atoms.copy()
        moved = sigma / step * forces / np.maximum(sizes, 1e-12)[:, None]
        atoms.set_positions(atoms.positions + moved)  # as constraints allow


def _pick_parent(
    tree: _Tree, kT: float, beta: float, rng: np.random.Generator
) -> tuple[Atoms, float, int]:
    energies = np.array([energy for _, energy, _ in tree.ends])
    generations = np.array([generation for _, _, generation in tree.ends])
    boltzmann = np.exp(-(energies - energies.min()) / kT)
    probabilities = (1 - beta) * boltzmann / boltzmann.sum()
    probabilities += beta * (generations + 1) / (generations + 1).sum()
    return tree.ends[rng.choice(len(tree.ends), p=probabilities / probabilities.sum())]


def rattle(
    parent: Atoms, seed: Atoms, sigma: float, sigma_cell: float, rng: np.random.Generator
) -> Atoms:
    """``parent`` in the seed's cell strained by N(0, sigma_cell), atoms moved by N(0, sigma) Å.

    Only periodic directions are strained; the strain is symmetric, so nothing turns. Where
    constraints hold atoms the cell stays, and the others move as these allow.
    """
    atoms = bare(parent)
    strain = rng.normal(0.0, sigma_cell, (3, 3))
    strain = 0.5 * (strain + strain.T) * np.outer(seed.pbc, seed.pbc)
    if seed.pbc.any() and not atoms.constraints:
        atoms.set_cell(seed.cell.array @ (np.eye(3) + strain), scale_atoms=bool(seed.pbc.all()))
    atoms.set_positions(atoms.positions + rng.normal(0.0, sigma, (len(atoms), 3)))
    return atoms


def is_duplicate(atoms: Atoms, others: Sequence[Atoms], tolerance: float) -> bool:
    """Whether ``atoms`` is one of ``others`` up to a rigid shift and lattice translations.

    Atoms must be in the same order. Two structures are the same when no atom is farther than
    ``tolerance`` (Å) from its counterpart and no lattice vector differs by more.
    """
    others = [
        other
        for other in others
        if len(other) == len(atoms)
        and np.array_equal(other.numbers, atoms.numbers)
        and np.array_equal(other.pbc, atoms.pbc)
        and np.abs(other.cell.array - atoms.cell.array).max() <= tolerance
    ]
    if not others:
        return False
    moved = np.stack([other.positions for other in others]) - atoms.positions
    moved -= moved[:, :1]  # relative to the first atom, so a rigid shift is gone before wrapping
    if atoms.pbc.any():
        cell = complete_cell(atoms.cell.array)
        fractional = moved @ np.linalg.inv(cell)
        fractional -= np.round(fractional) * atoms.pbc
        moved = fractional @ cell
    moved -= moved.mean(1, keepdims=True)
    return bool((np.linalg.norm(moved, axis=2).max(1) <= tolerance).any())
