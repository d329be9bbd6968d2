"""The Warp kernels give what the reference gives, in every kind of box, whatever came before."""

import numpy as np
import pytest
import torch
from ase import Atoms
from tests.helpers import random_nep, rattled, structures
from tests.kernels.comparison import (
    FORCE_TOLERANCE,
    LANES,
    assert_same,
    engine,
    expected,
    many_atoms,
    run,
)
from tests.kernels.published import FILES, crystals

from mlff_distiller.engines import nep
from mlff_distiller.engines.nep import NEPEngine
from mlff_distiller.errors import DeviceMemoryError
from mlff_distiller.kernels.nep import warp, warp_simd
from mlff_distiller.kernels.nep.warp_lanes import N_NEAR, WARP
from mlff_distiller.students import NEP, read_nep


@pytest.fixture(scope="module")
def student() -> NEP:
    return random_nep()


@pytest.fixture(scope="module", params=LANES)
def shared_engines(student, request) -> dict[str, NEPEngine]:
    """One engine goes through all structures: nothing of one may remain in the next."""
    return {dtype: engine(student, dtype, lanes=request.param) for dtype in FORCE_TOLERANCE}


@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
@pytest.mark.parametrize("box", list(structures()))
def test_same_as_reference(student, shared_engines, box, dtype):
    atoms = structures()[box]
    for amount in (0.0, 0.08):
        moved = rattled(atoms, amount)
        wanted = expected(student, moved)
        assert_same(run(shared_engines[dtype], moved), wanted, dtype)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
@pytest.mark.parametrize("file", FILES)
def test_same_as_reference_for_published_models(shared, file, dtype, lanes):
    student = read_nep(shared / "data" / "nep" / file)
    one = engine(student, dtype, lanes=lanes)
    largest = []
    for atoms in crystals(FILES[file]).values():
        wanted = expected(student, atoms)
        largest.append(np.abs(wanted[2]).max())
        assert_same(run(one, atoms), wanted, dtype)
    assert max(largest) > 1.0


@pytest.mark.parametrize(("size", "stack"), [(16, 1 << 18), (64, 0)])
def test_other_vectors_and_memory(monkeypatch, student, size, stack):
    """As wide as those of a plain x86 or ARM core, and as AVX-512's; neighbours on the heap."""
    flags = f"-march=native -DMLFFD_BYTES={size} -DMLFFD_STACK={stack}"

    def of_other(*args, **settings):
        return warp_simd.build_options(*args, **settings) | {"cpu_compiler_flags": flags}

    monkeypatch.setattr(warp, "build_options", of_other)
    monkeypatch.setattr(nep, "build", warp.build.__wrapped__)
    dtype = "float32" if size == 64 else "float64"
    atoms = many_atoms(3)
    assert_same(run(engine(student, dtype), atoms), expected(student, atoms), dtype)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("l_max", "flags"), [(1, (False, False)), (3, (True, False))])
def test_other_shapes(l_max, flags, lanes):
    full = random_nep(zbl=False)
    shape = type(full.shape)(0, 1, 0, 1, l_max, *flags, 3)
    student = NEP(("H", "O"), shape, ((4.0, 3.0), (3.5, 4.5)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double() * 0.4)
    atoms = rattled(structures()["skewed cell"])
    wanted = expected(student.eval(), atoms)
    assert np.abs(wanted[2]).max() > 0.01
    assert_same(run(engine(student, lanes=lanes), atoms), wanted)


def test_repulsion_ends_at_the_angular_cutoff():
    base = random_nep()
    universal = base.zbl[0][0][2:]
    row = ((1.0, 4.2, *universal),) * 2
    student = NEP(base.elements, base.shape, base.cutoffs, (row, row))
    student.load_state_dict(base.state_dict())
    atoms = rattled(structures()["small cell"])
    assert_same(run(engine(student), atoms), expected(student, atoms))


def test_no_neighbours_and_one_atom(student, shared_engines):
    for atoms in (Atoms("OH", [[0, 0, 0], [30, 0, 0]]), Atoms("H"), Atoms("O", [[1e3, 0, 0]])):
        found = run(shared_engines["float64"], atoms)
        assert_same(found, expected(student, atoms))
        assert (found[2] == 0).all()
        assert (found[3] == 0).all()


def test_forces_are_the_slope_of_the_energy(student, shared_engines):
    atoms = rattled(structures()["slab"])
    one, step = shared_engines["float64"], 1e-4
    forces = run(one, atoms)[2]
    for atom in range(len(atoms)):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step
                energies.append(run(one, moved)[0])
            slope = (energies[0] - energies[1]) / (2 * step)
            assert forces[atom, axis] == pytest.approx(-slope, abs=1e-5)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_repeats_are_identical(student, n_threads):
    atoms = many_atoms()
    one = engine(student, "float32", n_threads=n_threads)
    first = run(one, atoms)
    for _ in range(3):
        for a, b in zip(run(one, atoms), first, strict=True):
            assert np.array_equal(a, b)
    fresh = run(engine(student, "float32", n_threads=1), atoms)
    for a, b in zip(fresh, first, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
def test_forces_add_up_to_exactly_zero(student, dtype, lanes):
    """They are sums of numbers on a grid, which float64 adds without rounding."""
    forces = run(engine(student, dtype, lanes=lanes), many_atoms())[2]
    assert np.abs(forces).max() > 0.1
    assert (forces.sum(0) == 0).all()


def test_more_slots_than_a_warp_picks_near_ones_from(student):
    atoms = many_atoms(4)
    atoms.set_cell(0.8 * atoms.cell.array, scale_atoms=True)
    one = engine(student, "float64", skin=4.0, lanes=WARP)
    found = run(one, atoms)
    assert one.neighbors.counts.numpy().min() > N_NEAR
    assert_same(found, expected(student, atoms))
    few = engine(student, "float64", skin=0.1, lanes=WARP)
    assert_same(run(few, atoms), found)
    assert few.neighbors.counts.numpy().max() < N_NEAR


def test_translation_by_lattice_vectors(student, shared_engines):
    atoms = rattled(structures()["skewed cell"])
    moved = atoms.copy()
    whole = np.random.default_rng(0).integers(-50, 50, (len(atoms), 3))
    moved.positions += whole @ atoms.cell.array
    one = shared_engines["float64"]
    assert_same(run(one, moved), run(one, atoms))


@pytest.mark.parametrize("lanes", LANES)
def test_results_do_not_depend_on_what_came_before(student, lanes):
    """Atoms that crossed the cell's border, and a list that was made elsewhere."""
    atoms, rng = many_atoms(4), np.random.default_rng(7)
    atoms.set_cell(atoms.cell.array + rng.normal(0, 0.3, (3, 3)), scale_atoms=True)
    one = engine(student, "float32", skin=2.0, lanes=lanes)
    run(one, atoms)
    for _ in range(3):
        atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
        found = run(one, atoms)
        fresh = run(engine(student, "float32", skin=0.3, lanes=lanes), atoms)
        for a, b in zip(found, fresh, strict=True):
            assert np.array_equal(a, b)
    assert one.neighbors.n_builds == 1


def test_list_with_a_skin_equals_a_fresh_one_along_a_walk(student):
    atoms, rng = many_atoms(4), np.random.default_rng(4)
    one = engine(student, "float64", skin=0.6)
    builds = []
    for _ in range(12):
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
        assert_same(run(one, atoms), expected(student, atoms))
        builds.append(one.neighbors.n_builds)
    assert 1 < builds[-1] < len(builds)


def test_neighbours_are_added_when_the_density_jumps(student):
    atoms = many_atoms(4)
    one = engine(student, "float64")
    run(one, atoms)
    before = one.neighbors.capacity
    atoms.set_cell(0.7 * atoms.cell.array, scale_atoms=True)
    assert_same(run(one, atoms), expected(student, atoms))
    assert one.neighbors.capacity > before
    run(one, atoms)


def test_a_crowd_within_an_unchanged_box(student):
    """Neighbours beyond the table's capacity by motion alone."""
    atoms = many_atoms(4)
    one = engine(student, "float64")
    run(one, atoms)
    centre = atoms.positions.mean(0)
    atoms.positions = centre + 0.8 * (atoms.positions - centre)
    assert_same(run(one, atoms), expected(student, atoms))


@pytest.mark.parametrize("where", ["_allocate", "neighbors.rebuild", "neighbors._set_capacity"])
def test_the_next_structure_works_after_lack_of_memory(student, monkeypatch, where):
    one, small, large = engine(student), many_atoms(3), many_atoms(4)
    large.set_cell(0.8 * large.cell.array, scale_atoms=True)
    run(one, small)
    *path, name = where.split(".")
    owner = one.neighbors if path else NEPEngine

    def fail(*args):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(MemoryError):
            run(one, large)
    for atoms in (small, large):
        assert_same(run(one, atoms), expected(student, atoms))


def test_only_types_present_matter(student, shared_engines):
    one = shared_engines["float64"]
    oxygen = Atoms("O2", [[0, 0, 0], [0, 0.3, 1.1]], cell=[3, 3, 3], pbc=True)
    for atoms in (oxygen, structures()["molecule"], oxygen):
        assert_same(run(one, atoms), expected(student, atoms))


def test_memory_stays_when_sizes_do(student):
    atoms = many_atoms(4)
    one = engine(student)
    run(one, atoms)
    arrays = [one.positions.ptr, one.forces.ptr, one.neighbors.neighbors.ptr]
    for _ in range(3):
        atoms.positions += 0.01
        run(one, atoms)
    assert arrays == [one.positions.ptr, one.forces.ptr, one.neighbors.neighbors.ptr]


def test_a_recorded_evaluation_gives_the_same(student):
    """In a graph, as on a GPU; Warp records on CPUs as well."""
    atoms, rng = many_atoms(2), np.random.default_rng(4)
    plain, graph = (engine(student, "float32", skin=0.4, n_threads=1) for _ in range(2))
    graph._with_graphs = True
    recorded = []
    for _ in range(12):
        atoms.positions += rng.normal(0.0, 0.04, atoms.positions.shape)
        for a, b in zip(run(graph, atoms), run(plain, atoms), strict=True):
            assert np.array_equal(a, b)
        recorded.append(graph._graph is not None)
    assert sum(recorded) > 8
    assert 1 < graph.neighbors.n_builds < 12


def test_a_gpu_without_memory_is_an_error_that_names_it(student, monkeypatch):
    one = engine(student)

    def fail(*args):
        raise RuntimeError("Failed to allocate 17179869184 bytes on device 'cuda:0'")

    with monkeypatch.context() as patch:
        patch.setattr(NEPEngine, "_allocate", fail)
        with pytest.raises(DeviceMemoryError, match="54 atoms do not fit"):
            run(one, many_atoms(3))
    assert_same(run(one, many_atoms(2)), expected(student, many_atoms(2)))
