"""What is known of a structure by itself."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones

from mlff_distiller.structure import (
    bonds_of,
    default_time_step_fs,
    enlarge,
    radii_of_pairs,
    random_rotation,
    shortest_distance,
)


def test_enlarge():
    assert len(enlarge(bulk("Si", cubic=True), 60)) == 64
    assert len(enlarge(bulk("Si", cubic=True), 8)) == 8
    slab = bulk("Si", cubic=True)
    slab.pbc = [True, True, False]
    assert enlarge(slab, 30).cell.lengths()[2] == slab.cell.lengths()[2]
    many = enlarge(molecule("H2O"), 20)
    assert len(many) >= 20
    assert not many.pbc.any()
    alone, together = molecule("H2O"), many
    for atoms in (alone, together):
        atoms.calc = LennardJones(rc=6.0)
    expected = alone.get_potential_energy() * len(many) / 3
    assert together.get_potential_energy() == pytest.approx(expected)


def test_time_step_follows_hydrogen():
    assert default_time_step_fs(molecule("H2O")) == 0.5
    assert default_time_step_fs(bulk("Si")) == 1.0


def test_shortest_distance_sees_images():
    assert shortest_distance(Atoms("H", cell=[0.7, 9, 9], pbc=True)) == pytest.approx(0.7)
    assert shortest_distance(
        Atoms("H2", [[0, 0, 0], [0, 0, 8.5]], cell=[9, 9, 9], pbc=True)
    ) == pytest.approx(0.5)
    assert shortest_distance(Atoms("H")) == np.inf


def test_bonds_are_those_of_nonmetals():
    ethanol = molecule("CH3CH2OH")
    assert len(bonds_of(ethanol)[0]) == 8
    assert (radii_of_pairs(ethanol.numbers, *bonds_of(ethanol)) < 1.6).all()
    split = molecule("H2O", cell=[6, 6, 6], pbc=True)
    split.positions[1] += [6.0, 0, -6.0]
    assert set(zip(*bonds_of(split), strict=True)) == {(0, 1), (0, 2)}
    assert not len(bonds_of(bulk("Cu", cubic=True))[0])


def test_random_rotations_are_proper_and_uniform():
    rng = np.random.default_rng(0)
    turns = np.stack([random_rotation(rng) for _ in range(2000)])
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(turns), 1.0)
    assert np.abs(turns.mean(0)).max() < 5 * (3 * 2000) ** -0.5
    assert np.abs((turns**2).mean(0) - 1 / 3).max() < 0.04
