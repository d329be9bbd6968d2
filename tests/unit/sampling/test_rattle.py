"""The rattle-relax tree: laws of its structures, replay, duplicates across the boundary."""

from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff_distiller.errors import DistillerError
from mlff_distiller.sampling.rattle import (
    RattleSettings,
    grow,
    is_duplicate,
    rattle,
)


def emt_label(store: list):
    def one(atoms, provenance):
        atoms = atoms.copy()
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        store.append((atoms, provenance, results))
        return results

    return lambda frames, provenance: list(map(one, frames, provenance))


SEEDS = [bulk("Cu", cubic=True), bulk("Au", cubic=True)]


def test_every_step_is_kept_and_relaxes():
    store = []
    n = grow(SEEDS, emt_label(store), 80, RattleSettings(), seed=1)
    assert n == len(store) == 80
    assert [provenance["source"] for _, provenance, _ in store[:2]] == ["seed", "seed"]
    falls = []
    walks = {}
    for _, p, results in store[2:]:
        walks.setdefault((p["seed"], p["branch"], p["sigma_A"]), []).append((p["step"], results))
    for walk in walks.values():
        assert [step for step, _ in walk] == list(range(1, len(walk) + 1))
        falls += [after["energy"] < before["energy"] for (_, before), (_, after) in pairwise(walk)]
    assert len(falls) > 20
    assert np.mean(falls) > 0.7


def test_both_seeds_grow_and_branches_start_at_the_seed():
    store = []
    grow(SEEDS, emt_label(store), 60, RattleSettings(), seed=2)
    for seed in (0, 1):
        own = [p for _, p, _ in store if p["seed"] == seed]
        assert {p["branch"] for p in own} >= {0, 1, 2}
        first = {p["branch"]: p["generation"] for p in reversed(own) if p["branch"]}
        assert set(first.values()) == {1}


def test_replay_with_looked_up_labels_gives_the_same_tree():
    store = []
    grow(SEEDS, emt_label(store), 40, RattleSettings(), seed=3)
    known = {atoms.positions.tobytes(): results for atoms, _, results in store}
    again, asked = [], []

    def one(atoms, provenance):
        again.append((atoms, provenance))
        if atoms.positions.tobytes() not in known:
            asked.append(atoms)
            return emt_label([])([atoms], [provenance])[0]
        return known[atoms.positions.tobytes()]

    def label(frames, provenance):
        return list(map(one, frames, provenance))

    grow(SEEDS, label, 50, RattleSettings(), seed=3)
    assert len(asked) == 10  # only what was not there
    for (old, p, _), (new, q) in zip(store, again, strict=False):
        assert np.array_equal(old.positions, new.positions)
        assert p == q


def test_all_trees_grow_at_once():
    store, sizes = [], []
    good = emt_label(store)

    def label(frames, provenance):
        sizes.append(len(frames))
        assert len({(p["seed"], p["branch"]) for p in provenance}) == len(frames)
        return good(frames, provenance)

    grow(SEEDS, label, 60, RattleSettings(trees=10), seed=4)
    assert sizes[0] == 2
    assert max(sizes) == 10
    assert sum(sizes) == 60


def test_failed_structures_end_their_branch_only():
    store = []
    good = emt_label(store)
    count = iter(range(10**6))

    def label(frames, provenance):
        return [
            None if next(count) % 5 == 4 else good([atoms], [origin])[0]
            for atoms, origin in zip(frames, provenance, strict=True)
        ]

    n = grow(SEEDS[:1], label, 30, RattleSettings())
    assert n == len(store) == 30


def test_a_seed_without_label_is_an_error():
    with pytest.raises(DistillerError, match="no label for seed structure 0"):
        grow(SEEDS, lambda frames, provenance: [None] * len(frames), 10, RattleSettings())


def test_gives_up_when_nothing_can_be_labelled():
    store = []
    good = emt_label(store)
    with pytest.raises(DistillerError, match="rounds in a row gave none"):
        grow(SEEDS[:1], good, 10, RattleSettings(min_distance_A=3.0))


@pytest.mark.parametrize("pbc", [True, False, [True, True, False]])
def test_rattle_strains_only_periodic_directions(pbc):
    seed = bulk("Cu", cubic=True)
    seed.pbc = pbc
    new = rattle(seed, seed, 0.05, 0.05, np.random.default_rng(0))
    strain = np.linalg.solve(seed.cell.array, new.cell.array) - np.eye(3)
    assert np.allclose(strain, strain.T)
    free = ~seed.pbc
    assert np.allclose(strain[free], 0)
    assert seed.pbc.any() == bool(np.abs(strain).max() > 1e-3)
    assert 0 < np.abs(new.positions - seed.positions).max() < 1.0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-20, 20), pbc=st.booleans())
def test_duplicates_are_seen_across_boundaries(seed, shift, pbc):
    rng = np.random.default_rng(seed)
    cell = 4 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    atoms = Atoms("H5", rng.uniform(0, 4, (5, 3)), cell=cell, pbc=pbc)
    same = atoms.copy()
    same.positions += shift * rng.normal(size=3)
    if pbc:
        same.positions += rng.integers(-3, 4, (5, 3)) @ cell
    assert is_duplicate(same, [atoms], 1e-6)
    other = same.copy()
    other.positions[2] += 0.01
    assert not is_duplicate(other, [atoms], 1e-3)
    assert not is_duplicate(same[[1, 0, 2, 3, 4]], [molecule("H2O")], 1e-3)
    strained = same.copy()
    strained.set_cell(1.01 * cell)
    assert not is_duplicate(strained, [atoms], 1e-3)
