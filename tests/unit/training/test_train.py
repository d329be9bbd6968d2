"""The loop learns, resumes to the bit, and leaves global state alone."""

import importlib

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from safetensors.torch import load_file

from mlff_distiller.batch import Batch
from mlff_distiller.errors import TrainingError
from mlff_distiller.students import NEPSettings, nep_for
from mlff_distiller.training import LossSettings, Spread, TrainingSettings, loss, train
from mlff_distiller.training.train import schedule

SMALL = NEPSettings(
    n_max_radial=3,
    n_max_angular=2,
    basis_size_radial=5,
    basis_size_angular=4,
    neurons=8,
    cutoff_radial_A=4.0,
)


def frames(n: int, seed: int = 0) -> list[Batch]:
    rng, out = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.numbers[rng.integers(4)] = 79
        atoms.positions += rng.normal(0, 0.1, (4, 3))
        atoms.calc = EMT()
        atoms.get_stress()
        out.append(Batch.from_atoms([atoms]))
    return out


def state(student) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


def test_learns():
    training, validation = frames(24), frames(8, seed=1)
    student = nep_for(training, SMALL, 0)
    history = train(student, training, validation, TrainingSettings(epochs=30, atoms_per_batch=8))
    assert (
        history[-1]["validation_forces_fidelity"] > 0.6 > history[0]["validation_forces_fidelity"]
    )


@pytest.mark.gpu
def test_learns_on_the_gpu_from_frames_on_the_cpu():
    training, validation = frames(24), frames(8, seed=1)
    student = nep_for(training, SMALL, 0).to("cuda")
    history = train(student, training, validation, TrainingSettings(epochs=30, atoms_per_batch=8))
    assert history[-1]["validation_forces_fidelity"] > 0.6


class Killed(Exception):
    pass


@pytest.mark.parametrize("dies_at", [0, 3, 6])
def test_resume_is_bit_identical(tmp_path, dies_at):
    training, validation = frames(10), frames(4, seed=1)
    settings = TrainingSettings(epochs=8, atoms_per_batch=8, checkpoint_seconds=0.0)
    straight = nep_for(training, SMALL, 0)
    history = train(straight, training, validation, settings)

    def die(row, epochs):
        if row["epoch"] == dies_at:
            raise Killed

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        train(
            nep_for(training, SMALL, 0),
            training,
            validation,
            settings,
            checkpoint=checkpoint,
            on_epoch=die,
        )
    resumed = nep_for(training, SMALL, 0)
    again = train(resumed, training, validation, settings, checkpoint=checkpoint)
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in history]
    for name, value in state(straight).items():
        assert torch.equal(value, state(resumed)[name]), name
    load_file(checkpoint)  # no pickle


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "c").write_bytes(b"\x80\x04nonsense")
    training = frames(4)
    with pytest.raises(TrainingError, match="is damaged"):
        train(
            nep_for(training, SMALL, 0),
            training,
            training,
            TrainingSettings(epochs=2),
            checkpoint=tmp_path / "c",
        )


def test_early_stop_keeps_the_best(monkeypatch):
    training, validation = frames(6), frames(2, seed=1)
    student = nep_for(training, SMALL, 0)
    seen = iter([5.0, 3.0, *[9.0] * 50])
    module = importlib.import_module("mlff_distiller.training.train")

    monkeypatch.setattr(
        module,
        "validate",
        lambda *a: {
            "validation_forces_mae_meV_per_A": next(seen),
            "validation_forces_fidelity": 0.0,
            "validation_energy_mae_meV_per_atom": 0.0,
        },
    )
    history = train(
        student, training, validation, TrainingSettings(epochs=40, patience_fraction=0.1)
    )
    assert len(history) == 7  # best in epoch 1, then more than five without


def test_nothing_to_train_on():
    training = frames(3)
    with pytest.raises(TrainingError, match="nothing to train on"):
        train(nep_for(training, SMALL, 0), training, [], TrainingSettings())


def test_divergence_is_an_error():
    training = frames(3)
    training[0].labels["forces"][0, 0] = float("inf")
    with pytest.raises(TrainingError, match="diverged"):
        train(nep_for(frames(3), SMALL, 0), training, frames(2), TrainingSettings(epochs=1))


def test_global_state_is_untouched():
    before = (
        torch.random.get_rng_state().clone(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
    )
    training = frames(3)
    train(nep_for(training, SMALL, 0), training, training, TrainingSettings(epochs=1))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (torch.get_default_dtype(), torch.get_num_threads())


def test_missing_stress_takes_no_part():
    training = frames(2)
    student = nep_for(training, SMALL, 0).double()
    spread = Spread.of(training, student)
    from mlff_distiller.training.train import collate, with_neighbors

    batch, pairs = collate(with_neighbors(training, student))
    with torch.no_grad():
        full = loss(student(batch, pairs), batch, spread, LossSettings())
        batch.labels["stress"][0] = float("nan")
        partial = loss(student(batch, pairs), batch, spread, LossSettings())
        batch.labels["stress"][:] = float("nan")
        none = loss(student(batch, pairs), batch, spread, LossSettings())
    assert torch.isfinite(torch.stack((full, partial, none))).all()
    assert float(none) < float(partial)
    assert float(partial) != float(full)


def test_schedule_rises_then_falls_to_zero():
    values = [schedule(k / 100, 0.05) for k in range(101)]
    assert values[0] < 0.05 < values[5]
    assert max(values) <= 1.0
    assert values[100] < 1e-9


def test_reference_energies_are_the_least_squares_fit():
    training = frames(12)
    for frame in training:
        counts = torch.bincount(frame.atomic_numbers, minlength=80)
        frame.labels["energy"][:] = -3.0 * counts[29] - 5.5 * counts[79]
    pure = bulk("Cu", cubic=True)
    pure.calc = EMT()
    pure.get_stress()
    extra = Batch.from_atoms([pure])
    extra.labels["energy"][:] = -12.0
    student = nep_for([*training, extra], SMALL, 0)
    assert student.elements == ("Cu", "Au")
    assert student.reference_energies.tolist() == pytest.approx([-3.0, -5.5], abs=1e-9)
