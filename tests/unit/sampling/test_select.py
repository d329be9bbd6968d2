"""Descriptors are invariant and tell structures apart; selection covers."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.sampling import descriptors, select


def box(seed=0):
    rng = np.random.default_rng(seed)
    return Atoms("O2H4", rng.uniform(0, 5, (6, 3)), cell=5 * np.eye(3), pbc=True)


def test_descriptors_do_not_see_what_is_not_physical():
    atoms = box()
    same = atoms.copy()
    same.rotate(40, (1, 2, 3), rotate_cell=True)
    same.positions += 0.7
    same.wrap()
    same = same[[3, 1, 5, 0, 2, 4]]
    doubled = atoms.repeat((2, 1, 1))
    other = atoms.copy()
    other.positions[0] += 0.05
    first, again, large, moved = descriptors([atoms, same, doubled, other])
    assert again == pytest.approx(first, abs=1e-4)
    assert large == pytest.approx(first, abs=1e-4)
    assert np.abs(moved - first).max() > 1e-3


def test_descriptors_of_anything():
    frames = [Atoms("H"), Atoms("HO", [[0, 0, 0], [0, 0, 1]]), molecule("CH3CH2OH"), bulk("Si")]
    features = descriptors(frames)
    assert features.shape == (4, 2 * 16 * 4**2)
    assert np.isfinite(features).all()
    assert np.array_equal(features[1:2], descriptors(frames[1:2], elements=[1, 6, 8, 14]))
    assert np.array_equal(features, descriptors(frames, threads=2))
    assert descriptors([], elements=[1]).shape == (0, 32)


def test_selection_covers_what_random_choice_misses():
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.1, (2000, 5))
    rare = rng.normal(0, 0.1, (5, 5)) + 10 * np.eye(5)
    features = np.vstack([common, rare])
    chosen = select(features, 10)
    assert set(range(2000, 2005)) <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == 10


def test_selection_keeps_away_from_what_is_chosen():
    features = np.linspace(0, 1, 101)[:, None]
    assert select(features, 1, chosen=[0])[0] == 100
    assert set(select(features, 2, chosen=[0, 100]).tolist()) & {49, 50, 51}
    assert set(select(features, 200, chosen=[3]).tolist()) == set(range(101)) - {3}


def test_selection_of_constant_features():
    assert len(select(np.ones((5, 3)), 3)) == 3
