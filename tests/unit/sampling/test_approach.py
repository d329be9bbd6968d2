"""Pairs pushed together: which, how far, and what they take along."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.sampling import ApproachSettings, approach

SETTINGS = ApproachSettings(atoms_per_pair=1000, compressed=0.0)


def dimer(distance):
    """Two water molecules, their oxygens so far apart."""
    one, other = molecule("H2O"), molecule("H2O")
    other.positions += [0.0, 0.0, distance]
    return one + other


def test_molecules_move_as_rigid_bodies_and_pairs_of_elements_are_equally_frequent():
    seed, halves = dimer(3.4), (slice(0, 3), slice(3, 6))
    frames, origins = approach([seed], 200, SETTINGS, 1)
    assert len(frames) == 200
    rigid = 0
    for atoms, origin in zip(frames, origins, strict=True):
        assert origin["source"] == "approach"
        (made,) = origin["distance_A"]
        moved = np.abs(atoms.positions - seed.positions).max(1) > 1e-9
        if moved.all():
            rigid += 1
            for own in halves:
                assert np.allclose(atoms[own].get_all_distances(), seed[own].get_all_distances())
            assert np.isclose(atoms.get_all_distances()[:3, 3:], made, atol=1e-3).any()
        else:
            i, j = np.flatnonzero(moved)
            assert atoms.get_distance(i, j) == pytest.approx(made, abs=1e-3)
            assert made < seed.get_distance(i, j)
    assert rigid == pytest.approx(120, abs=20)  # O-O, O-H, H-H; within a molecule O-H, H-H


def test_atoms_of_a_crystal_move_alone():
    seed = bulk("Si", cubic=True).repeat(2)
    shortest = seed.get_all_distances(mic=True)[0, 1:].min()
    frames, _ = approach([seed], 10, SETTINGS, 0)
    for atoms in frames:
        assert (np.abs(atoms.positions - seed.positions).max(1) > 1e-6).sum() == 2
        distances = atoms.get_all_distances(mic=True) + 9.0 * np.eye(len(atoms))
        assert 0.8 * shortest <= distances.min() < shortest


def test_repeats_by_seed_and_the_given_structure_stays():
    seed = dimer(3.2)
    before = seed.positions.copy()
    first, second = (approach([seed], 5, SETTINGS, 3)[0] for _ in range(2))
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(first, second, strict=True))
    other = approach([seed], 5, SETTINGS, 4)[0]
    assert not np.array_equal(first[0].positions, other[0].positions)
    assert np.array_equal(seed.positions, before)


def test_some_are_compressed_with_all_their_lengths():
    seed = bulk("Si", cubic=True)
    frames, origins = approach([seed], 100, ApproachSettings(compressed=0.3), 2)
    factors = [origin.get("factor", 1.0) for origin in origins]
    assert sum(factor < 1.0 for factor in factors) == pytest.approx(30, abs=12)
    for atoms, factor in zip(frames, factors, strict=True):
        assert 0.8 <= factor <= 1.0
        assert np.allclose(atoms.cell.array, factor * seed.cell.array, rtol=1e-4)
        if factor < 1.0:
            assert np.allclose(atoms.get_scaled_positions(), seed.get_scaled_positions())


@pytest.mark.parametrize("atoms", [Atoms("Ar"), Atoms("Ar2", [[0, 0, 0], [9, 0, 0]])])
def test_nothing_to_push(atoms):
    assert approach([atoms], 5, ApproachSettings()) == ([], [])


def test_across_the_boundary():
    seed = Atoms("Ar2", [[0.1, 0, 0], [9.5, 0, 0]], cell=[10, 10, 10], pbc=True)
    seed.positions[1, 0] = 7.0  # 3.1 Å through the boundary
    frames, origins = approach([seed], 3, SETTINGS)
    for atoms, origin in zip(frames, origins, strict=True):
        assert atoms.get_distance(0, 1, mic=True) == pytest.approx(
            origin["distance_A"][0], abs=1e-3
        )
