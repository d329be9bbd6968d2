"""The list on the device holds the pairs that vesin finds, in every kind of box."""

import numpy as np
import pytest
import warp as wp
from ase import Atoms
from ase.build import bulk
from tests.helpers import rattled, structures

from mlff_distiller.errors import StructureError
from mlff_distiller.kernels.compiling import warp_device
from mlff_distiller.kernels.neighbors import VerletList
from mlff_distiller.neighbors import find_pairs

CUTOFF, SKIN = 4.0, 0.7


def large() -> dict[str, Atoms]:
    crystal = rattled(bulk("Si", cubic=True) * (3, 3, 4), 0.2)
    skewed, slab, wire, cluster, far = (crystal.copy() for _ in range(5))
    noise = np.random.default_rng(0).normal(0, 2.0, (3, 3))
    skewed.set_cell(crystal.cell.array + noise, scale_atoms=True)
    slab.pbc = [True, False, True]
    wire.pbc = [False, True, False]
    wire.set_cell(skewed.cell)
    cluster.pbc, cluster.cell = False, None
    far.positions += np.random.default_rng(1).integers(-9, 9, (len(far), 3)) @ far.cell.array
    thin = rattled(bulk("Si", cubic=True) * (6, 2, 2), 0.2)  # two bins thick
    thin.pbc = [True, False, False]
    vacuum = slab.copy()
    vacuum.positions[0, 1] += 900.0
    return {
        "crystal": crystal,
        "skewed crystal": skewed,
        "large slab": slab,
        "large wire": wire,
        "thin wire": thin,
        "cluster": cluster,
        "unwrapped crystal": far,
        "one atom far away": vacuum,
    }


BOXES = structures() | large()


@pytest.fixture(scope="module")
def verlet() -> VerletList:
    return VerletList(CUTOFF, SKIN, warp_device("cpu"), n_threads=2)


def table(verlet: VerletList) -> tuple[np.ndarray, ...]:
    """i, j and r_ij of every slot in use."""
    counts, neighbors, images = (
        array.numpy() for array in (verlet.counts, verlet.neighbors, verlet.images)
    )
    i = np.repeat(np.arange(len(counts)), counts)
    slot = np.concatenate([np.arange(count) for count in counts])
    j, image = neighbors[i, slot], images[i, slot]
    inside = verlet.inside.numpy()
    return i, j, inside[j] - inside[i] + verlet.shifts.numpy()[image]


def in_order(i, j, vectors) -> np.ndarray:
    rows = np.column_stack([i, j, np.round(vectors, 6) + 0.0])
    return rows[np.lexsort(rows.T[::-1])]


def expected(atoms: Atoms, cutoff: float) -> np.ndarray:
    i, j, shifts = find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    return in_order(i, j, atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell.array)


def device_positions(atoms: Atoms):
    return wp.array(atoms.positions, dtype=wp.vec3d, device="cpu")


@pytest.mark.parametrize("box", list(BOXES))
def test_same_pairs_as_vesin(verlet, box):
    atoms = BOXES[box]
    verlet.update(device_positions(atoms), atoms.cell.array, atoms.pbc)
    found, wanted = in_order(*table(verlet)), expected(atoms, CUTOFF + SKIN)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max(initial=0.0) < 2e-6


@pytest.mark.parametrize("box", ["skewed cell", "skewed crystal", "cluster"])
def test_slots_are_sorted(verlet, box):
    atoms = BOXES[box]
    verlet.update(device_positions(atoms), atoms.cell.array, atoms.pbc)
    neighbors, images = verlet.neighbors.numpy(), verlet.images.numpy()
    key = neighbors.astype(np.int64) * len(verlet.shifts) + images
    for atom, count in enumerate(verlet.counts.numpy()):
        assert (np.diff(key[atom, :count]) > 0).all()


@pytest.mark.parametrize("box", list(BOXES))
def test_reverse_is_the_same_pair_seen_from_its_other_end(verlet, box):
    atoms = BOXES[box]
    verlet.update(device_positions(atoms), atoms.cell.array, atoms.pbc)
    i, j, vectors = table(verlet)
    slots = [np.arange(count) for count in verlet.counts.numpy()]
    reverse = verlet.reverse.numpy()[i, np.concatenate(slots)]
    place = np.cumsum(verlet.counts.numpy()) - verlet.counts.numpy()
    back = place[j] + reverse
    assert (j[back] == i).all()
    assert np.array_equal(vectors[back], -vectors)
    assert np.array_equal(np.sort(back), np.arange(len(i)))


def test_rebuilt_only_beyond_half_the_skin():
    atoms = BOXES["crystal"].copy()
    verlet = VerletList(CUTOFF, SKIN, warp_device("cpu"))
    positions = device_positions(atoms)
    moved = positions.numpy()
    assert verlet.update(positions, atoms.cell.array, atoms.pbc)
    moved[7, 1] += 0.49 * SKIN
    assert not verlet.update(positions, atoms.cell.array, atoms.pbc)
    moved[7, 1] += 0.02 * SKIN
    assert verlet.update(positions, atoms.cell.array, atoms.pbc)
    assert not verlet.update(positions, atoms.cell.array, atoms.pbc)
    assert verlet.update(positions, 1.001 * atoms.cell.array, atoms.pbc)
    assert verlet.update(positions, 1.001 * atoms.cell.array, np.array([True, True, False]))


def test_every_near_pair_is_listed_between_rebuilds():
    atoms, rng = BOXES["skewed crystal"].copy(), np.random.default_rng(2)
    verlet = VerletList(CUTOFF, SKIN, warp_device("cpu"))
    positions = device_positions(atoms)
    for _ in range(10):
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
        positions.assign(atoms.positions)
        verlet.update(positions, atoms.cell.array, atoms.pbc)
        i, j, vectors = table(verlet)
        near = np.linalg.norm(vectors, axis=1) < CUTOFF
        found, wanted = in_order(i[near], j[near], vectors[near]), expected(atoms, CUTOFF)
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() < 2e-6
    assert 1 < verlet.n_builds < 10


def test_table_grows_and_loses_nothing():
    atoms = BOXES["crystal"].copy()
    verlet = VerletList(CUTOFF, SKIN, warp_device("cpu"))
    for _ in range(4):
        verlet.update(device_positions(atoms), atoms.cell.array, atoms.pbc)
        assert len(table(verlet)[0]) == len(expected(atoms, CUTOFF + SKIN))
        assert verlet.counts.numpy().max() <= verlet.capacity
        atoms.set_cell(0.85 * atoms.cell.array, scale_atoms=True)
    assert verlet.version > 4


@pytest.mark.parametrize("pbc", [True, False])
def test_atoms_on_top_of_each_other_are_an_error_before_memory_is_taken(pbc):
    verlet = VerletList(CUTOFF, SKIN, warp_device("cpu"))
    n, edge = (4000, 20.0) if not pbc else (60, 1.0)
    positions = np.random.default_rng(0).random((n, 3)) * (0.5 if not pbc else edge)
    points = wp.array(positions, dtype=wp.vec3d, device="cpu")
    with pytest.raises(StructureError, match="on top of each other"):
        verlet.update(points, edge * np.eye(3), np.full(3, pbc))
