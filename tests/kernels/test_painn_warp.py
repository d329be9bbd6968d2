"""The kernels of painn give what the student gives in float64, and keep its laws."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from tests.helpers import random_painn, rattled, structures
from tests.kernels.comparison import FORCE_TOLERANCE, assert_same, expected, many_atoms, run

from mlff_distiller.engines.loading import ready_student
from mlff_distiller.engines.painn import PainnEngine
from mlff_distiller.kernels.painn.harmonics import solid_harmonics
from mlff_distiller.kernels.painn.tables import INTERVALS_A_HALF_WAVE, radial_table
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.students import painn
from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.painn_setup import initialise

PRESETS = [(32, 2), (64, 2), (128, 3)]  # channels, layers
TABLES = 1e-7
"""Of the largest force, and of 1 eV/Å: what tables are off by, at most."""


def engine(student: PaiNN, dtype: str = "float64", device: str = "cpu", **settings) -> PainnEngine:
    return PainnEngine(ready_student(copy.deepcopy(student), device, dtype), **settings)


def preset(channels: int, layers: int) -> PaiNN:
    student = PaiNN(("H", "O"), 4.5, channels, layers, 12, 0.2, zbl=random_painn().zbl)
    initialise(student, torch.Generator().manual_seed(channels))
    student.scale.fill_(0.5)
    return student.eval()


def assert_near(found, wanted, dtype: str) -> None:
    """In float64 tables are what is left."""
    if dtype == "float32":
        return assert_same(found, wanted, dtype)
    scale = 1.0 + np.abs(wanted[2]).max()
    assert np.abs(found[2] - wanted[2]).max() < TABLES * scale
    assert np.abs(found[1] - wanted[1]).max() < TABLES * scale
    if wanted[3] is not None:
        assert np.abs(found[3] - wanted[3]).max() < 5 * TABLES * scale * len(wanted[1])
    return None


@pytest.fixture(scope="module")
def student() -> PaiNN:
    return random_painn()


@pytest.fixture(scope="module")
def shared_engines(student) -> dict[str, PainnEngine]:
    """One engine goes through all structures: nothing of one may remain in the next."""
    return {dtype: engine(student, dtype) for dtype in FORCE_TOLERANCE}


@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
@pytest.mark.parametrize("box", list(structures()))
def test_same_as_reference(student, shared_engines, box, dtype):
    for amount in (0.0, 0.08):
        moved = rattled(structures()[box], amount)
        assert_near(run(shared_engines[dtype], moved), expected(student, moved), dtype)


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 1, "max_moment": 1},
        {"layers": 2, "max_moment": 2, "zbl": False},
        {"layers": 2, "max_moment": 5},
        {"layers": 1, "elements": ("H", "C", "O", "Si")},
    ],
)
def test_other_shapes(sizes):
    student, atoms = random_painn(**sizes), rattled(structures()["skewed cell"])
    wanted = expected(student, atoms)
    assert np.abs(wanted[2]).max() > 0.1
    assert_near(run(engine(student), atoms), wanted, "float64")


@pytest.mark.parametrize(("channels", "layers"), PRESETS)
def test_presets_in_single_precision(channels, layers):
    student, atoms = preset(channels, layers), rattled(structures()["small cell"])
    wanted = expected(student, atoms)
    assert np.abs(wanted[2]).max() > 1.0
    assert_same(run(engine(student, "float32"), atoms), wanted, "float32")


@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
@pytest.mark.parametrize(
    "sizes", [{}, {"layers": 1, "max_moment": 1}, {"layers": 2, "max_moment": 4}]
)
def test_one_kernel_between_looks_at_neighbours(sizes, dtype):
    """As a GPU does it with few atoms."""
    student = random_painn(**sizes)
    one = engine(student, dtype, chained=True)
    for box in ("skewed cell", "molecule"):
        atoms = rattled(structures()[box])
        assert_near(run(one, atoms), expected(student, atoms), dtype)
    looks = 2 * sizes.get("layers", 3)
    assert len(one._steps._steps) == 2 * looks - 1


def test_messages_that_do_not_saturate(student):
    config = {**student.config(), "saturates": False}
    plain = PaiNN.from_config(config)
    plain.load_state_dict(student.state_dict())
    near = Atoms("HO", [[0, 0, 0], [0, 0.4, 0.8]])
    wanted = expected(plain.eval(), near)
    assert np.abs(wanted[2] - expected(student, near)[2]).max() > 0.01
    assert_near(run(engine(plain), near), wanted, "float64")


def test_no_neighbours_and_one_atom(student, shared_engines):
    for atoms in (Atoms("OH", [[0, 0, 0], [30, 0, 0]]), Atoms("H"), Atoms("O", [[1e3, 0, 0]])):
        found = run(shared_engines["float64"], atoms)
        assert_near(found, expected(student, atoms), "float64")
        assert (found[2] == 0).all()
        assert (found[3] == 0).all()


def test_forces_are_the_slope_of_the_energy(shared_engines):
    """Of the energy that tables give, and so to more digits than these have."""
    atoms, one, step = rattled(structures()["slab"]), shared_engines["float64"], 1e-4
    forces = run(one, atoms)[2]
    for atom in range(len(atoms)):
        for axis in range(3):
            energies = []
            for sign in (2, 1, -1, -2):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step
                energies.append(run(one, moved)[0])
            slope = (8 * (energies[1] - energies[2]) - energies[0] + energies[3]) / (12 * step)
            assert forces[atom, axis] == pytest.approx(-slope, abs=2e-7)


def test_virial_is_the_slope_by_strain(shared_engines):
    atoms, one, step = rattled(structures()["skewed cell"]), shared_engines["float64"], 1e-5
    virial = run(one, atoms)[3]
    for a in range(3):
        for b in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * step
                strain[b, a] += 0.5 * sign * step
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                energies.append(run(one, moved)[0])
            assert virial[a, b] == pytest.approx(-(energies[0] - energies[1]) / 2 / step, abs=1e-5)


def test_rotation_and_order_of_atoms(shared_engines):
    atoms, one = rattled(structures()["molecule"]), shared_engines["float64"]
    first = run(one, atoms)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = atoms.copy()
    turned.positions = atoms.positions @ turn
    found = run(one, turned)
    assert found[0] == pytest.approx(first[0], abs=1e-9)
    assert np.abs(found[2] - first[2] @ turn).max() < 1e-9
    order = [2, 0, 1]
    found = run(one, atoms[order])
    assert np.abs(found[2] - first[2][order]).max() < 1e-9


def test_smooth_at_the_cutoff_and_nothing_beyond(student, shared_engines):
    """An oxygen far from water: force and its slope vanish at the cutoff, as x^3 and x^2 do."""
    water, one = structures()["molecule"], shared_engines["float64"]

    def pull(beyond: float) -> float:
        atoms = water + Atoms("O", [water.positions[0] + [0, 0, student.cutoff + beyond]])
        return float(run(one, atoms)[2][-1, 2])

    forces = {x: pull(-x) for x in (0.04, 0.02, 0.01)}
    assert abs(forces[0.04]) > 1e-9
    for x in (0.04, 0.02):
        assert forces[x] / forces[x / 2] == pytest.approx(8.0, rel=0.2)
    assert pull(1e-9) == 0.0


def test_in_whatever_mode_the_caller_is(student, shared_engines):
    atoms = rattled(structures()["small cell"])
    wanted = run(shared_engines["float64"], atoms)
    one = engine(student)
    with torch.inference_mode(), torch.device("meta"):
        first = run(one, atoms)
    for found in (first, run(one, atoms)):
        for a, b in zip(found, wanted, strict=True):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_repeats_are_identical(student, n_threads):
    atoms = many_atoms()
    one = engine(student, "float32", n_threads=n_threads)
    first = run(one, atoms)
    assert (first[2].sum(0) == 0).all()
    assert np.abs(first[2]).max() > 0.1
    fresh = engine(student, "float32", n_threads=1)
    for found in (run(one, atoms), run(fresh, atoms)):
        for a, b in zip(found, first, strict=True):
            assert np.array_equal(a, b)


def test_results_do_not_depend_on_what_came_before(student):
    """Atoms that crossed the cell's border, and a list that was made elsewhere."""
    atoms, rng = many_atoms(3), np.random.default_rng(7)
    atoms.set_cell(atoms.cell.array + rng.normal(0, 0.3, (3, 3)), scale_atoms=True)
    one = engine(student, "float32", skin=2.0)
    run(one, atoms)
    for _ in range(3):
        atoms.positions += rng.normal(0.0, 0.1, atoms.positions.shape)
        found = run(one, atoms)
        fresh = run(engine(student, "float32", skin=0.3), atoms)
        for a, b in zip(found, fresh, strict=True):
            assert np.array_equal(a, b)
    assert one.neighbors.n_builds == 1


def test_neighbours_are_added_when_the_density_jumps(student, shared_engines):
    atoms, one = many_atoms(3), engine(student)
    run(one, atoms)
    before = one.neighbors.capacity
    atoms.set_cell(0.75 * atoms.cell.array, scale_atoms=True)
    assert_near(run(one, atoms), expected(student, atoms), "float64")
    assert one.neighbors.capacity > before


def test_dynamics_restarts_bit_for_bit(student):
    frames, calm = [many_atoms(2), many_atoms(2)[:9]], copy.deepcopy(student)
    calm.scale.fill_(0.002)

    def simulation() -> Simulation:
        own = engine(calm, "float32").for_frames(frames)
        return Simulation(own, frames, Ensemble(temperature_K=300.0, time_step_fs=0.2, seed=1))

    whole, cut = simulation(), simulation()
    whole.advance(30)
    cut.advance(12)
    state, cut = cut.state(), simulation()
    cut.load(state)
    cut.advance(18)
    assert np.array_equal(whole.state().positions, cut.state().positions)
    assert np.array_equal(whole.state().velocities, cut.state().velocities)


def test_tables_are_as_exact_as_they_say():
    """Of values and slopes, between nodes; both and the curvature vanish at the cutoff."""
    cutoff, n = 5.0, 12
    table = radial_table(painn.bessel, cutoff, n)
    n_intervals = INTERVALS_A_HALF_WAVE * n
    assert table.shape == (n_intervals + 1, 3, n)
    assert (table[-1] == 0).all()
    r = torch.linspace(1e-3, cutoff - 1e-9, 5001, dtype=torch.float64, requires_grad=True)
    place = r / cutoff * n_intervals
    node = place.detach().long()
    x = place - node
    basis = [
        1 - x**3 * (10 - 15 * x + 6 * x**2),
        x - x**3 * (6 - 8 * x + 3 * x**2),
        0.5 * (x**2 - x**3 * (3 - 3 * x + x**2)),
        x**3 * (10 - 15 * x + 6 * x**2),
        -(x**3) * (4 - 7 * x + 3 * x**2),
        0.5 * x**3 * (1 - x) ** 2,
    ]
    rows = [table[node + k // 3, k % 3, -1] for k in range(6)]
    found = sum(weight * row for weight, row in zip(basis, rows, strict=True))
    wanted = painn.bessel(r, cutoff, n)[:, -1]
    assert (found - wanted).abs().max() < 1e-7 * wanted.abs().max()
    slopes = [torch.autograd.grad(own.sum(), r, retain_graph=True)[0] for own in (found, wanted)]
    assert (slopes[0] - slopes[1]).abs().max() < 2e-6 * slopes[1].abs().max()


def test_harmonics_are_those_of_the_student():
    vectors = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y, z = vectors.T
    wanted = painn.solid_harmonics(8, vectors)
    wanted[1] = vectors
    for order, components in enumerate(solid_harmonics(8)):
        for k, own in enumerate(components):
            found = sum(value * x**a * y**b * z**c for (a, b, c), value in own.items())
            assert torch.allclose(found, wanted[order][:, k], rtol=1e-10, atol=1e-10)
