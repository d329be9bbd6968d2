"""Whatever the box: what is done to geometry does not depend on how a cell is drawn."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.geometry import find_mic
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.boxes import boxes, rotated, turned
from tests.helpers import random_nep, random_painn

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.kernels.compiling import warp_device
from mlff_distiller.kernels.neighbors import VerletList
from mlff_distiller.neighbors import edge_vectors, find_pairs, neighbor_list
from mlff_distiller.structure import enlarge
from mlff_distiller.testing import assert_ase_conventions, assert_laws

CUTOFF = 3.0
FEW, SOME = settings(max_examples=3), settings(max_examples=40)


def pairs_of(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, j and vectors, which come in no particular order."""
    i, j, shifts = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    return i, j, atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell.array


def census(i: np.ndarray, j: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    rows = np.column_stack([i, j, np.round(vectors, 5) + 0.0])
    return rows[np.lexsort(rows.T[::-1])]


def shortest(atoms: Atoms) -> float:
    return np.linalg.norm(pairs_of(atoms)[2], axis=1).min(initial=CUTOFF)


def clear_of_the_cutoff(atoms: Atoms) -> bool:
    """Rounding decides about no pair."""
    i, j, shifts = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF + 1e-3)
    r = np.linalg.norm(atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell, axis=1)
    return bool((np.abs(r - CUTOFF) > 1e-3).all())


@SOME
@given(boxes(), st.integers(0, 10**6))
def test_neighbours_turn_with_the_box(atoms, seed):
    assume(clear_of_the_cutoff(atoms))
    turn = turned(np.random.default_rng(seed))
    i, j, vectors = pairs_of(atoms)
    again = pairs_of(rotated(atoms, turn))
    assert np.bincount(again[0], minlength=len(atoms)) == pytest.approx(
        np.bincount(i, minlength=len(atoms))
    )
    assert census(*again[:2], again[2] @ turn.T) == pytest.approx(census(i, j, vectors), abs=2e-5)


@SOME
@given(boxes(), st.integers(0, 10**6))
def test_neighbours_do_not_ask_in_which_cell_an_atom_lies(atoms, seed):
    assume(clear_of_the_cutoff(atoms))
    steps = np.random.default_rng(seed).integers(-3, 4, (len(atoms), 3)) * atoms.pbc
    moved = atoms.copy()
    moved.positions += steps @ atoms.cell.array
    assert census(*pairs_of(moved)) == pytest.approx(census(*pairs_of(atoms)), abs=2e-5)


@SOME
@given(boxes(least_atoms=2))
def test_the_nearest_image_is_among_the_neighbours(atoms):
    """Of every two atoms, by ASE's search for the minimum image."""
    i, j, vectors = pairs_of(atoms)
    lengths = np.linalg.norm(vectors, axis=1)
    for a in range(len(atoms)):
        for b in range(a):
            apart = atoms.positions[b] - atoms.positions[a]
            nearest = float(find_mic(apart, atoms.cell, atoms.pbc)[1])
            found = lengths[(i == a) & (j == b)].min(initial=np.inf)
            if nearest < CUTOFF - 1e-6:
                assert found == pytest.approx(nearest, abs=1e-9)
            else:
                assert found > CUTOFF - 2e-6


@pytest.fixture(scope="module")
def verlet() -> VerletList:
    return VerletList(CUTOFF, 0.0, warp_device("cpu"))


@SOME
@given(atoms=boxes())
def test_the_list_on_the_device_holds_the_same(verlet, atoms):
    import warp as wp

    assume(clear_of_the_cutoff(atoms))
    positions = wp.array(atoms.positions, dtype=wp.vec3d, device="cpu")
    verlet.update(positions, atoms.cell.array, atoms.pbc)
    counts = verlet.counts.numpy()
    assert counts.tolist() == np.bincount(pairs_of(atoms)[0], minlength=len(atoms)).tolist()


@SOME
@given(st.lists(boxes(), min_size=1, max_size=4))
def test_a_batch_is_its_frames(frames):
    batch = Batch.from_atoms(frames)
    for before, after in zip(frames, batch.to_atoms(), strict=True):
        assert before.numbers.tolist() == after.numbers.tolist()
        assert np.array_equal(before.positions, after.positions)
        assert np.array_equal(before.cell.array, after.cell.array)
        assert before.pbc.tolist() == after.pbc.tolist()
    pairs = neighbor_list(batch, CUTOFF)
    vectors, i = edge_vectors(batch, pairs), pairs.i
    assert torch.equal(batch.system_idx[i], batch.system_idx[pairs.j])
    first = 0
    for atoms in frames:
        own = (i >= first) & (i < first + len(atoms))
        found = census(i[own] - first, pairs.j[own] - first, vectors[own].numpy())
        assert found == pytest.approx(census(*pairs_of(atoms)), abs=2e-5)
        first += len(atoms)


@SOME
@given(boxes(), st.integers(1, 60))
def test_an_enlarged_structure_is_made_of_copies(atoms, n_atoms):
    large = enlarge(atoms, n_atoms)
    copies, rest = divmod(len(large), len(atoms))
    assert rest == 0
    assert len(large) >= n_atoms
    assert large.pbc.tolist() == atoms.pbc.tolist()
    assert large.numbers.tolist() == atoms.numbers.tolist() * copies
    if atoms.pbc.any():
        assert large.cell.volume == pytest.approx(copies * atoms.cell.volume)
        assume(clear_of_the_cutoff(atoms))
        once = np.bincount(pairs_of(atoms)[0], minlength=len(atoms))
        assert np.bincount(pairs_of(large)[0], minlength=len(large)).tolist() == [*once] * copies


@FEW
@pytest.mark.parametrize("model", [random_nep, random_painn])
@given(atoms=boxes(most_atoms=4, least=3.0))
def test_students_obey_the_laws(model, atoms):
    assume(shortest(atoms) > 0.8)
    calculator = StudentCalculator(model(), device="cpu", dtype="float64")
    assert_laws(calculator, atoms)


def test_atoms_without_neighbours_obey_the_laws():
    """Whose forces do not change where they move."""
    far = Atoms("HOO", [[0, 0, 0], [20.0, 0, 0], [20.0, 0, 1.2]])
    calculator = StudentCalculator(random_nep(), device="cpu", dtype="float64")
    assert_laws(calculator, far)
    assert_laws(calculator, far[:2])


def test_results_of_older_positions_are_caught():
    class Stale(StudentCalculator):
        def _evaluate(self, now):
            self.first = getattr(self, "first", None) or super()._evaluate(now)
            return self.first

    calculator = Stale(random_nep(), device="cpu", dtype="float64")
    with pytest.raises(AssertionError, match="forces: stale"):
        assert_ase_conventions(calculator, Atoms("OH", [[0, 0, 0], [0, 0, 1.2]]))
