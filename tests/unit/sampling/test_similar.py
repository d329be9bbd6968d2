"""Equal structures are found however they are turned, and unequal ones are not."""

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.sampling import find_similar
from mlff_distiller.testing import random_rotation


def rattled(atoms, seed, amount=0.1):
    atoms = atoms.copy()
    atoms.rattle(amount, seed=seed)
    return atoms


def test_disguises_of_one_structure():
    rng = np.random.default_rng(0)
    crystal = rattled(bulk("SiC", "zincblende", 4.36, cubic=True), 0)
    turn = random_rotation(rng)
    turned = crystal.copy()
    turned.set_cell(crystal.cell.array @ turn.T)
    turned.positions = crystal.positions @ turn.T
    moved = crystal[rng.permutation(8)]
    moved.positions += [7.0, -3.0, 0.4]
    moved.wrap()
    skewed = crystal.copy()
    skewed.cell[1] += crystal.cell[0]
    disguises = [turned, moved, crystal * (2, 1, 1), skewed]
    others = [rattled(crystal, seed, 0.01) for seed in range(1, 30)]
    others += [rattled(molecule("CH3OH"), seed, 0.01) for seed in range(30)]
    assert find_similar([crystal], [*others, *disguises]).tolist() == [
        [0, len(others) + k] for k in range(4)
    ]
    assert len(find_similar(others)) == 0
    assert len(find_similar([crystal, *disguises])) == 10


def test_another_element_is_another_structure():
    assert len(find_similar([Atoms("H")], [Atoms("He")])) == 0
    assert find_similar([Atoms("H")], [Atoms("H", [[1, 2, 3]])]).tolist() == [[0, 0]]


def test_nothing_is_like_nothing():
    assert find_similar([]).shape == (0, 2)
    assert find_similar([bulk("Cu")], []).shape == (0, 2)
