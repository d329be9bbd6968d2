"""On a GPU: painn's kernels give what the reference gives, in one graph, and so does dynamics."""

import numpy as np
import pytest
from tests.helpers import random_painn, rattled, structures
from tests.kernels.comparison import FORCE_TOLERANCE, expected, many_atoms, run
from tests.kernels.test_painn_warp import PRESETS, assert_near, engine, preset

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.engines.painn import FEW_ATOMS
from mlff_distiller.md import Ensemble, Simulation

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(scope="module")
def student():
    return random_painn()


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("dtype", FORCE_TOLERANCE)
def test_same_as_reference(student, dtype, chained):
    one = engine(student, dtype, DEVICE, chained=chained)
    for atoms in [*structures().values(), many_atoms(3)]:
        for amount in (0.0, 0.08):
            moved = rattled(atoms, amount)
            assert_near(run(one, moved), expected(student, moved), dtype)


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize(("channels", "layers"), PRESETS)
def test_presets(channels, layers, chained):
    own, atoms = preset(channels, layers), rattled(structures()["small cell"])
    found = run(engine(own, "float32", DEVICE, chained=chained), atoms)
    assert_near(found, expected(own, atoms), "float32")


@pytest.mark.parametrize("n", [4, 11])
def test_repeats_are_identical_and_recorded(student, n):
    """Whatever the list holds beyond the cutoff; a warp or more share an atom's neighbours."""
    atoms, rng = many_atoms(n), np.random.default_rng(7)
    assert (len(atoms) <= FEW_ATOMS) == (n == 4)
    one = engine(student, "float32", DEVICE, skin=2.0)
    for _ in range(4):
        atoms.positions += rng.normal(0.0, 0.05, atoms.positions.shape)
        found = run(one, atoms)
        assert (found[2].sum(0) == 0).all()
        fresh = engine(student, "float32", DEVICE, skin=0.3)
        for other in (run(one, atoms), run(fresh, atoms)):
            for a, b in zip(found, other, strict=True):
                assert np.array_equal(a, b)
    assert one._graph is not None


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_dynamics_restarts_bit_for_bit(ensemble):
    own = ready_student(random_painn(), DEVICE, "float32")
    own.scale.fill_(0.002)
    frames = [many_atoms(2), many_atoms(2)]
    settings = Ensemble(ensemble=ensemble, temperature_K=300.0, time_step_fs=0.2, seed=1)

    def simulation() -> Simulation:
        return Simulation(choose_engine(own, frames, backend="warp"), frames, settings)

    whole, cut = simulation(), simulation()
    whole.advance(150)
    cut.advance(70)
    state, cut = cut.state(), simulation()
    cut.load(state)
    cut.advance(80)
    assert whole._with_graphs
    for name in ("positions", "velocities", "cell"):
        assert np.array_equal(getattr(whole.state(), name), getattr(cut.state(), name)), name
