"""Equal structures are found however they are turned, and unequal ones are not."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.sampling import find_similar, near_copies, similar
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


@pytest.mark.parametrize("amount", [0.0, 0.1])
def test_one_moved_atom_among_many_shows(amount):
    crystal = rattled(bulk("Si", cubic=True) * 4, 0, amount)
    frames = [crystal]
    for distance in (0.02, 0.2):
        moved = crystal.copy()
        moved.positions[100] += [0.0, 0.0, distance]
        frames.append(moved)
    vacancy = crystal.copy()
    del vacancy[7]
    frames.append(vacancy)
    assert len(find_similar(frames)) == 0
    rng = np.random.default_rng(1)
    turned = frames[2][rng.permutation(512)]
    turned.positions += [1.0, 2.0, 3.0]
    turned.rotate(33, (1, 2, 3), rotate_cell=True)
    assert find_similar(frames, [turned]).tolist() == [[2, 0]]


def test_one_changed_element_among_many_shows():
    alloy = bulk("Cu", cubic=True) * 6
    alloy.symbols[::2] = "Au"
    other = alloy.copy()
    other.symbols[0] = "Cu"
    assert len(find_similar([alloy, other])) == 0


def test_the_same_environments_in_other_numbers_are_another_structure():
    chain = Atoms(
        "He40", [[2.0 * k, 0, 0] for k in range(20)] + [[0, 50, 3.0 * k] for k in range(20)]
    )
    other = Atoms(
        "He40", [[2.0 * k, 0, 0] for k in range(21)] + [[0, 50, 3.0 * k] for k in range(19)]
    )
    assert len(find_similar([chain, other], tolerance=0.1)) == 0


def test_a_perfect_supercell_is_its_primitive_cell():
    crystal = bulk("NaCl", "rocksalt", 5.64)
    frames = [crystal, crystal * (4, 4, 4), bulk("NaCl", "rocksalt", 5.64, cubic=True) * (3, 2, 1)]
    assert find_similar(frames).tolist() == [[0, 1], [0, 2], [1, 2]]


def test_positions_rounded_to_float32_are_the_same():
    box = rattled(bulk("SiC", "zincblende", 4.36, cubic=True) * 4, 0)
    rounded = box.copy()
    rounded.positions[:] = rounded.positions.astype(np.float32)
    assert find_similar([box, rounded]).tolist() == [[0, 1]]


def test_only_what_is_asked_for_is_compared_atom_by_atom(monkeypatch):
    asked = []
    monkeypatch.setattr(similar, "same_environments", lambda *_: asked.append(1) or True)
    rounded = rattled(bulk("Cu", cubic=True), 0)
    rounded.positions[:] = rounded.positions.round(5)
    copies = [rattled(bulk("Cu", cubic=True), 0)] * 30
    assert len(find_similar(copies)) == 30 * 29 / 2
    assert not asked  # exact copies need no closer look
    assert len(find_similar(copies[:3], [rounded, rounded, *copies[:2]])) == 12
    assert len(asked) == 6  # not the pairs within either


def test_another_element_is_another_structure():
    assert len(find_similar([Atoms("H")], [Atoms("He")])) == 0
    assert find_similar([Atoms("H")], [Atoms("H", [[1, 2, 3]])]).tolist() == [[0, 0]]


def test_nothing_is_like_nothing():
    assert find_similar([]).shape == (0, 2)
    assert find_similar([bulk("Cu")], []).shape == (0, 2)


def test_frames_of_a_shuffled_trajectory_are_near_copies():
    start = bulk("Cu", cubic=True)
    way = rattled(start, 1, 0.3).positions - start.positions
    frames = []
    for k in range(40):
        atoms = start.copy()
        atoms.positions += np.sin(k / 5) * way
        atoms.positions[k % 4] += atoms.cell[0]  # wrapped otherwise
        frames.append(atoms)
    order = np.random.default_rng(0).permutation(40)
    test, training = ([frames[k] for k in part] for part in (order[:8], order[8:]))
    assert near_copies(test, training).tolist() == list(range(8))
    cold = [rattled(start, seed, 0.02) for seed in range(40)]  # near, but independent
    assert len(near_copies(cold[:8], cold[8:])) == 0
    assert len(near_copies([bulk("Al", cubic=True)], training)) == 0
