"""TorchSim: its own validation, our results, many systems in one evaluation."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_stress
from tests.helpers import random_nep, random_painn, rattled, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import UnknownElementError
from mlff_distiller.export import export

torch_sim = pytest.importorskip(
    "torch_sim", reason="TorchSim, which needs Python 3.12, is not installed"
)

MLFFDModel = pytest.importorskip("mlff_distiller.deploy.torchsim").MLFFDModel
MAKERS = {"nep": random_nep, "painn": random_painn}


@pytest.fixture(params=MAKERS)
def student(request):
    return MAKERS[request.param](("Si", "Mg", "Fe", "C", "H", "O"))


def state_of(frames, model):
    return torch_sim.initialize_state(frames, model.device, model.dtype)


def test_its_own_validation_passes(student):
    model = MLFFDModel(student, device="cpu", dtype="float64")
    torch_sim.models.interface.validate_model_outputs(model, torch.device("cpu"), torch.float64)


def test_results_are_those_of_the_calculator(student):
    model = MLFFDModel(student, device="cpu", dtype="float64")
    own = StudentCalculator(student, device="cpu", dtype="float64")
    periodic = [own for own in structures().values() if own.pbc.all()]
    for frames in (periodic, [structures()["molecule"]], [structures()["slab"]]):
        found = {name: value.numpy() for name, value in model(state_of(frames, model)).items()}
        ends = np.cumsum([len(atoms) for atoms in frames])
        forces = np.split(found["forces"], ends[:-1])
        for index, atoms in enumerate(frames):
            assert found["energy"][index] == pytest.approx(own.get_property("energy", atoms))
            np.testing.assert_allclose(forces[index], own.get_property("forces", atoms), atol=1e-9)
            if atoms.cell.rank == 3:
                stress = voigt_6_to_full_3x3_stress(own.get_property("stress", atoms))
                np.testing.assert_allclose(found["stress"][index], stress, atol=1e-9)
            else:
                assert np.isnan(found["stress"][index]).all()


def test_what_is_not_wanted_is_left_out(student):
    model = MLFFDModel(student, device="cpu")
    state = state_of([structures()["molecule"]], model)
    model.compute_stress = model.compute_forces = False
    assert list(model(state)) == ["energy"]


def test_a_state_in_float32_stays_in_it(student):
    model = MLFFDModel(student, device="cpu")
    state = torch_sim.initialize_state([structures()["small cell"]], "cpu", torch.float32)
    assert {value.dtype for value in model(state).values()} == {torch.float32}


def test_an_element_it_lacks(student):
    model = MLFFDModel(student, device="cpu")
    with pytest.raises(UnknownElementError, match="does not know Cu"):
        model(state_of([bulk("Cu")], model))


@pytest.mark.filterwarnings("ignore:All systems have reached the maximum:UserWarning")
def test_it_relaxes_cells(student):
    """Cells change at every step, and systems leave the batch as they converge."""
    model = MLFFDModel(student, device="cpu", dtype="float64")
    frames = [rattled(bulk("Si", cubic=True), 0.1, seed) for seed in range(2)]
    before = model(state_of(frames, model))["energy"]
    relaxed = torch_sim.optimize(
        frames,
        model,
        optimizer=torch_sim.Optimizer.fire,
        max_steps=5,
        init_kwargs={"cell_filter": torch_sim.CellFilter.frechet},
    )
    assert (relaxed.energy < before).all()


@pytest.mark.slow
def test_what_is_exported_runs_and_agrees(silicon, tmp_path):
    done = export("torchsim", silicon, tmp_path / "out", check=True)
    assert done.passed, done.rows
    assert {"virial, a slab of it", "drift of the total energy, 200 steps of NVE"} <= {
        row.what for row in done.rows
    }
