"""On a GPU: kernels give what the reference gives, the same every time, and so does dynamics."""

import numpy as np
import pytest
from ase.build import bulk
from tests.helpers import random_nep, rattled, structures
from tests.kernels.comparison import (
    FORCE_TOLERANCE,
    assert_same,
    engine,
    expected,
    many_atoms,
    run,
)
from tests.kernels.published import FILES, crystals

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.students import read_nep

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(scope="module")
def student():
    return random_nep()


@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
def test_same_as_reference(student, dtype):
    one = engine(student, dtype, device=DEVICE)
    for atoms in [*structures().values(), many_atoms()]:
        for amount in (0.0, 0.08):
            moved = rattled(atoms, amount)
            assert_same(run(one, moved), expected(student, moved), dtype)


@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
@pytest.mark.parametrize("file", FILES)
def test_same_as_reference_for_published_models(shared, file, dtype):
    student = read_nep(shared / "data" / "nep" / file)
    one = engine(student, dtype, device=DEVICE)
    for atoms in crystals(FILES[file]).values():
        assert_same(run(one, atoms), expected(student, atoms), dtype)


def test_repeats_are_identical_whatever_the_list(student):
    atoms, rng = many_atoms(4), np.random.default_rng(7)
    one = engine(student, "float32", device=DEVICE, skin=2.0)
    for _ in range(4):
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
        found = run(one, atoms)
        assert (found[2].sum(0) == 0).all()
        fresh = engine(student, "float32", device=DEVICE, skin=0.3)
        for other in (run(one, atoms), run(fresh, atoms)):
            for a, b in zip(found, other, strict=True):
                assert np.array_equal(a, b)
    assert one.neighbors.n_builds == 1


def simulation(student, frames, **settings) -> Simulation:
    ensemble = Ensemble(temperature_K=900.0, **settings)
    return Simulation(choose_engine(student, frames), frames, ensemble)


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_dynamics_repeats_and_restarts_bit_for_bit(shared, ensemble):
    student = read_nep(shared / "data" / "nep" / "Si_2022_NEP4_3body.txt")
    student = ready_student(student, DEVICE, "float32")
    frames = [bulk("Si", cubic=True) * (2, 2, 2), bulk("Si", cubic=True) * (1, 2, 3)]
    ends = []
    for cut in (False, False, True):
        dynamics = simulation(student, frames, ensemble=ensemble)
        dynamics.advance(150)
        if cut:
            state = dynamics.state()
            dynamics = simulation(student, frames, ensemble=ensemble)
            dynamics.load(state)
        dynamics.advance(150)
        assert dynamics._with_graphs == (DEVICE == "cuda")
        ends.append(dynamics.state())
    for end in ends[1:]:
        for name in ("positions", "velocities", "cell"):
            assert np.array_equal(getattr(end, name), getattr(ends[0], name)), name


def test_energy_is_conserved(shared):
    student = read_nep(shared / "data" / "nep" / "Si_2022_NEP4_3body.txt")
    student = ready_student(student, DEVICE, "float32")
    dynamics = simulation(student, [bulk("Si", cubic=True) * (2, 2, 2)], time_step_fs=0.5)
    energies = []
    for _ in range(20):
        dynamics.advance(50)
        seen = dynamics.observables()
        energies.append(float(seen.potential_energy[0] + seen.kinetic_energy[0]) / 64)
    assert np.ptp(energies) < 1e-3  # eV per atom
    assert seen.temperature_K[0] > 200.0
