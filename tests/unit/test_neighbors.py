"""The neighbour list against a brute-force sum over images."""

import itertools
import os
import threading
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers import structures

from mlff_distiller import neighbors
from mlff_distiller.batch import Batch
from mlff_distiller.errors import StructureError
from mlff_distiller.neighbors import (
    Neighbors,
    all_images,
    edge_vectors,
    find_pairs,
    neighbor_list,
    pair_vectors,
)


def brute_force(atoms: Atoms, cutoff: float) -> np.ndarray:
    """Sorted distances of all ordered pairs and images; slow and obviously right."""
    cell, pbc = atoms.cell.array, atoms.pbc
    reach = np.zeros(3, dtype=int)
    inverse = np.linalg.pinv(cell)
    span = np.abs((atoms.positions[:, None] - atoms.positions) @ inverse).max((0, 1))
    for axis in np.flatnonzero(pbc):
        height = 1.0 / np.linalg.norm(inverse[:, axis])
        reach[axis] = int(np.ceil(cutoff / height + span[axis])) + 1
    lengths = []
    for image in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = atoms.positions[None] - atoms.positions[:, None] + np.array(image) @ cell
        distances = np.linalg.norm(vectors, axis=2)
        if image == (0, 0, 0):
            np.fill_diagonal(distances, np.inf)
        lengths.append(distances[distances < cutoff])
    return np.sort(np.concatenate(lengths))


SEARCHES = pytest.mark.parametrize("search", [neighbor_list, all_images])


def lengths_of(atoms: Atoms, cutoff: float, search=neighbor_list) -> np.ndarray:
    batch = Batch.from_atoms([atoms])
    return np.sort(edge_vectors(batch, search(batch, cutoff)).norm(dim=1).numpy())


@SEARCHES
@pytest.mark.parametrize("box", structures())
@pytest.mark.parametrize("cutoff", [1.2, 3.0, 5.5])
def test_same_pairs_as_brute_force(box, cutoff, search):
    atoms = structures()[box]
    assert lengths_of(atoms, cutoff, search) == pytest.approx(brute_force(atoms, cutoff), abs=1e-9)


@SEARCHES
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 6),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    size=st.floats(2.0, 8.0),
    skew=st.floats(0.0, 1.2),
)
def test_random_boxes(search, seed, n, pbc, size, skew):
    rng = np.random.default_rng(seed)
    cell = size * (np.eye(3) + skew * np.triu(rng.uniform(-1, 1, (3, 3)), 1))
    cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]  # no vector along an axis
    atoms = Atoms(f"H{n}", rng.uniform(-size, 2 * size, (n, 3)), cell=cell, pbc=pbc)
    assert lengths_of(atoms, 3.5, search) == pytest.approx(brute_force(atoms, 3.5), abs=1e-9)


@SEARCHES
def test_box_just_around_the_cutoff_counts_images_once(search):
    for edge in (2.999, 3.0, 3.001, 5.999, 6.001):
        atoms = Atoms("H", cell=[edge] * 3, pbc=True)
        assert len(lengths_of(atoms, 3.0, search)) == len(brute_force(atoms, 3.0))


def test_sorted_by_i_and_mirrored():
    i, j, shifts = find_pairs(
        *(getattr(structures()["skewed cell"], name) for name in ("positions",)),
        structures()["skewed cell"].cell.array,
        structures()["skewed cell"].pbc,
        4.0,
    )
    assert (np.diff(i) >= 0).all()
    forward = {(a, b, *s) for a, b, s in zip(i, j, shifts.astype(int), strict=True)}
    backward = {(b, a, *(-s)) for a, b, s in zip(i, j, shifts.astype(int), strict=True)}
    assert forward == backward


@SEARCHES
def test_batch_is_the_union_of_its_systems(search, monkeypatch):
    monkeypatch.setattr(neighbors, "_CANDIDATES_AT_ONCE", 1000)  # a system in several portions
    frames = list(structures().values())
    batch = Batch.from_atoms(frames)
    together = search(batch, 4.0)
    parts = [search(own, 4.0) for own in batch.systems()]
    joined = Neighbors.concatenate(parts, [len(atoms) for atoms in frames])
    for name in ("i", "j", "shifts"):
        assert torch.equal(getattr(together, name), getattr(joined, name))


def test_both_searches_find_the_same_images():
    """Every pair and shift, not only the lengths."""
    batch = Batch.from_atoms(list(structures().values()))
    found = [search(batch, 4.0) for search in (neighbor_list, all_images)]
    known, tried = (
        {(i, j, *s) for i, j, s in zip(n.i.tolist(), n.j.tolist(), n.shifts.tolist(), strict=True)}
        for n in found
    )
    assert known == tried
    assert len(known) == len(found[1].i)
    assert (found[1].i.diff() >= 0).all()


@pytest.mark.gpu
def test_searched_on_the_gpu_and_large_systems_elsewhere(monkeypatch):
    frames = list(structures().values())
    batch = Batch.from_atoms(frames)
    expected = all_images(batch, 4.0)
    for largest in (neighbors.LARGEST_BY_IMAGES, 1):
        monkeypatch.setattr(neighbors, "LARGEST_BY_IMAGES", largest)
        found = neighbor_list(batch.to("cuda"), 4.0)
        assert found.i.is_cuda
        assert torch.equal(found.i.cpu(), expected.i)


def test_edge_vectors_differentiate_by_positions_and_cell():
    atoms = structures()["small cell"]
    batch = Batch.from_atoms([atoms])
    pairs = neighbor_list(batch, 3.0)

    def vectors(positions, cell):
        return edge_vectors(
            Batch(positions, batch.atomic_numbers, batch.system_idx, cell, batch.pbc), pairs
        )

    inputs = batch.positions.clone().requires_grad_(), batch.cell.clone().requires_grad_()
    assert torch.autograd.gradcheck(vectors, inputs)


def test_pair_vectors_are_those_of_edges():
    atoms = structures()["small cell"]
    batch = Batch.from_atoms([atoms])
    pairs = neighbor_list(batch, 3.0)
    i, j, vectors = pair_vectors(atoms, 3.0)
    assert np.array_equal(i, pairs.i.numpy())
    assert np.array_equal(j, pairs.j.numpy())
    assert np.allclose(vectors, edge_vectors(batch, pairs).numpy(), rtol=0, atol=1e-12)
    moved = pair_vectors(atoms, 3.0, atoms.positions + 50.0)[2]
    assert np.sort(moved, axis=0) == pytest.approx(np.sort(vectors, axis=0), abs=1e-9)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_waits_for_searches_of_other_threads(monkeypatch):
    begun, done = threading.Event(), []

    class Slow:
        def __init__(self, **_):
            pass

        def compute(self, **_):
            begun.set()
            time.sleep(0.2)
            done.append(True)
            return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3))

    monkeypatch.setattr("mlff_distiller.neighbors.NeighborList", Slow)
    nothing = np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool), 3.0
    thread = threading.Thread(target=find_pairs, args=nothing)
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        in_time = len(done)
        find_pairs(*nothing)  # nothing is locked here
        os._exit(in_time)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    thread.join()


@pytest.mark.parametrize("distance", [100.0, 1e4, 9e5])
@pytest.mark.parametrize("pbc", [(1, 0, 0), (1, 1, 0), (0, 0, 0)])
def test_a_far_atom_neighbours_nothing_and_costs_nothing(pbc, distance):
    near = bulk("Si", cubic=True)
    near.pbc = pbc
    far = near + Atoms("Si", positions=[[0, 0, distance]])
    near += Atoms("Si", positions=[[0, 0, 40]])
    assert lengths_of(far, 5.0) == pytest.approx(lengths_of(near, 5.0), abs=1e-8)
    assert lengths_of(near, 5.0) == pytest.approx(brute_force(near, 5.0), abs=1e-9)


def test_an_atom_a_thousand_cells_on_along_a_tilted_wire():
    vector = 4.0 * np.array([np.cos(0.52), np.sin(0.52), 0.0])
    wire = Atoms("C2", positions=[0 * vector, 0.4 * vector], cell=[vector, [0] * 3, [0] * 3])
    wire.pbc = [True, False, False]
    expected = brute_force(wire, 5.0)
    wire.positions[1] += 1000 * vector
    assert lengths_of(wire, 5.0) == pytest.approx(expected, abs=1e-8)


def test_too_many_atoms_in_one_place_are_an_error():
    positions = np.random.default_rng(0).random((3000, 3)) * 0.5
    with pytest.raises(StructureError, match="on top of each other"):
        find_pairs(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), 5.0)


def test_atoms_that_only_wrapping_brings_together_are_too_many_as_well():
    rng = np.random.default_rng(0)
    positions = rng.random((3000, 3)) * 0.5 + 10.0 * rng.integers(-99, 99, (3000, 3))
    with pytest.raises(StructureError, match="on top of each other"):
        find_pairs(positions, np.eye(3) * 10.0, np.ones(3, dtype=bool), 5.0)
