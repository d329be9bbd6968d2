"""The loop learns, resumes to the bit, and leaves global state alone."""

import dataclasses
import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from safetensors.torch import load_file, save_file

from mlff_distiller.batch import Batch
from mlff_distiller.errors import TrainingError
from mlff_distiller.kernels.nep.reference import _harmonic_tables
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students import NEPSettings, PaiNNSettings, nep_for, painn_for
from mlff_distiller.training import (
    LossSettings,
    Spread,
    TrainingSettings,
    loss,
    train,
    workers_of_torchrun,
)
from mlff_distiller.training.metrics import Samples, validate
from mlff_distiller.training.minibatch import Minibatches, Size
from mlff_distiller.training.train import rate_factor
from mlff_distiller.training.update import Updater
from mlff_distiller.training.workers import ALONE

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


@pytest.mark.parametrize("size", [50.0, 1e6, 1e12])
def test_wrong_labels_of_a_few_structures_spoil_no_training(size):
    training, validation = frames(24), frames(8, seed=1)
    for k, sign in ((3, 1.0), (11, -1.0), (17, 1.0)):
        training[k].labels["energy"][:] += sign * size
    training[5].labels["forces"][0] += size
    training[7].labels["stress"][:] *= size
    student = nep_for(training, SMALL, 0)
    history = train(student, training, validation, TrainingSettings(epochs=30, atoms_per_batch=8))
    assert history[-1]["validation_forces_fidelity"] > 0.6
    off = history[-1]["validation_energy_mae_meV_per_atom"]
    assert off < 100.0


@pytest.mark.gpu
def test_learns_on_the_gpu_from_frames_on_the_cpu():
    training, validation = frames(24), frames(8, seed=1)
    student = nep_for(training, SMALL, 0).to("cuda")
    history = train(student, training, validation, TrainingSettings(epochs=30, atoms_per_batch=8))
    assert history[-1]["validation_forces_fidelity"] > 0.6


def painn(training: list[Batch], **others: int):
    sizes = {"channels": 8, "layers": 2, "radial_functions": 4} | others
    return painn_for(training, PaiNNSettings(cutoff_A=3.5, **sizes), 0)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("make", [lambda f: nep_for(f, SMALL, 0), painn])
def test_a_graph_teaches_what_single_kernels_do(make, optimizer):
    training = [*frames(9), *molecule(3)]
    histories = []
    for cuda_graph, updates in ((False, 40), (True, 40), (True, 200)):
        settings = TrainingSettings(
            updates=updates,
            atoms_per_batch=12,
            cuda_graph=cuda_graph,
            optimizer=optimizer,
        )
        student = make(training).to("cuda")
        histories.append(train(student, training, frames(4, seed=1), settings))
    for a, b in zip(*histories[:2], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.02)
    errors = [row["validation_forces_mae_meV_per_A"] for row in histories[2]]
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.gpu
@pytest.mark.filterwarnings("error:training goes uncompiled")
@pytest.mark.parametrize("make", [lambda f: nep_for(f, SMALL, 0), painn])
def test_a_compiled_step_teaches_what_single_kernels_do(make):
    training = [*frames(9), *molecule(3)]
    histories = []
    for fast in (False, True):
        settings = TrainingSettings(updates=40, atoms_per_batch=12, cuda_graph=fast, compile=fast)
        student = make(training).to("cuda")
        histories.append(train(student, training, frames(4, seed=1), settings))
    for a, b in zip(*histories, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.02)


def test_constants_of_a_student_that_its_kernels_train_are_not_compiled(monkeypatch):
    """They are made on the CPU, where a graph for a GPU cannot read them."""
    graphs = []
    monkeypatch.setattr("torch.compile", lambda graph, **_: graphs.append(graph) or graph)
    _harmonic_tables.cache_clear()
    training = frames(3)
    settings = TrainingSettings(updates=6, atoms_per_batch=12, compile=True, validations=1)
    train(nep_for(training, SMALL, 0), training, frames(2, seed=1), settings)
    (graph,) = graphs
    assert "aten.zeros." not in graph.code


@pytest.mark.filterwarnings("error:training goes uncompiled")
def test_a_traced_loss_has_the_derivatives_of_the_loss(monkeypatch):
    """By a backend that compiles nothing; probes and padding included."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    training = [*frames(9), *molecule(3)]
    histories = []
    for compiled in (False, True):
        settings = TrainingSettings(updates=6, atoms_per_batch=12, compile=compiled, validations=3)
        student = painn(training, layers=1, max_moment=1).double()
        history = train(student, training, frames(4, seed=1), settings, probes=[(0, 1)])
        histories.append(history)
    for a, b in zip(*histories, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-9)
        assert a["validation_forces_mae_meV_per_A"] == pytest.approx(
            b["validation_forces_mae_meV_per_A"], rel=1e-8
        )


class Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dies_at", [0, 13, 30])
def test_resume_in_mid_epoch_is_bit_identical(tmp_path, monkeypatch, dies_at, optimizer):
    training, validation = frames(10), frames(4, seed=1)  # five updates an epoch
    settings = TrainingSettings(
        epochs=8, atoms_per_batch=8, checkpoint_seconds=0.0, validations=10, optimizer=optimizer
    )
    straight = nep_for(training, SMALL, 0)
    history = train(straight, training, validation, settings)
    update, done = Updater.update, 0

    def dying(*arguments):
        nonlocal done
        if done == dies_at:
            raise Killed
        done += 1
        return update(*arguments)

    checkpoint = tmp_path / "checkpoint.safetensors"
    first = nep_for(training, SMALL, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", dying)
        with pytest.raises(Killed):
            train(first, training, validation, settings, checkpoint=checkpoint)
    assert checkpoint.exists() == (dies_at > 0)
    resumed = nep_for(training, SMALL, 0)
    again = train(resumed, training, validation, settings, checkpoint=checkpoint)
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in history]
    for name, value in state(straight).items():
        assert torch.equal(value, state(resumed)[name]), name
    load_file(checkpoint)  # no pickle


def test_the_best_students_are_kept(tmp_path):
    training, validation = frames(6), frames(2, seed=1)
    student = nep_for(training, SMALL, 0)
    settings = TrainingSettings(epochs=6, atoms_per_batch=8, keep_best=2)
    history = train(student, training, validation, settings, checkpoint=tmp_path / "c")
    best = min(history, key=lambda row: row["validation_forces_mae_meV_per_A"])
    kept = sorted((tmp_path / "best").iterdir())
    assert len(kept) == 2
    assert kept[-1].name == f"update-{best['updates']:08d}.safetensors"
    for name, value in load_file(kept[-1]).items():
        assert torch.equal(value, student.state_dict()[name])


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


def test_a_teacher_without_forces_gives_a_fidelity_of_zero():
    frame = frames(1)
    student = nep_for(frames(3), SMALL, 0)
    known = validate(student, Samples(frame, student))
    assert known["validation_forces_fidelity"] != 0.0
    assert "validation_forces_r2" in known
    frame[0].labels["forces"].zero_()
    unknown = validate(student, Samples(frame, student))
    assert unknown["validation_forces_fidelity"] == 0.0
    assert known.keys() - unknown.keys() == {"validation_forces_r2", "validation_forces_angle_deg"}


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
    assert len(history) == 8  # best at update 2, then more than five without


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


def loss_of(student, training, **options):
    """Of all frames at once, in one minibatch."""
    minibatches = Minibatches(training, student, 10_000, **options)
    probes = options.get("probes", ())
    spread = Spread.of(training, student, probes)
    (units,) = minibatches.plan(0)
    return loss_of_part(student, minibatches.make(units), minibatches.norms(units), spread)


def loss_of_part(student, part, norms, spread, settings=None):
    settings = settings or LossSettings()
    weights = torch.tensor(settings.weights(0.0, curvature=True), dtype=student.dtype)
    prediction = student.predict(part.types, *part.graph())
    delta = settings.huber_delta
    norms = norms.to(student.dtype)
    return loss(prediction, part, spread, norms, weights, delta).detach()


def test_missing_stress_takes_no_part():
    training = frames(2)
    student = nep_for(training, SMALL, 0).double()
    full = loss_of(student, training)
    training[0].labels["stress"][0] = float("nan")
    partial = loss_of(student, training)
    training[1].labels["stress"][:] = float("nan")
    none = loss_of(student, training)
    assert torch.isfinite(torch.stack((full, partial, none))).all()
    assert float(none) < float(partial)
    assert float(partial) != float(full)


def test_a_few_outliers_do_not_set_the_units_of_the_loss():
    training = frames(24)
    student = painn(training)
    before = Spread.of(training, student)
    training[3].labels["energy"][:] += 500.0
    training[3].labels["stress"][:] *= 500.0
    training[3].labels["forces"][:] *= 500.0
    after = Spread.of(training, student)
    for name in ("energy", "stress", "forces"):
        assert getattr(before, name) <= getattr(after, name) < 2.0 * getattr(before, name)


def molecule(n: int) -> list[Batch]:
    """Without cell or stress."""
    rng, out = np.random.default_rng(7), []
    for _ in range(n):
        atoms = Atoms("Cu2Au", [(0, 0, 0), (2.4, 0, 0), (0, 2.5, 0)])
        atoms.positions += rng.normal(0, 0.1, (3, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        out.append(Batch.from_atoms([atoms]))
    return out


@pytest.mark.parametrize("make", [lambda f: nep_for(f, SMALL, 0), painn])
def test_a_padded_minibatch_teaches_the_same(make):
    training = [*frames(3), *molecule(2)]
    student = make(training).double().train()
    minibatches = Minibatches(training, student, 10_000)
    spread = Spread.of(training, student)
    (units,) = minibatches.plan(0)
    size, gradients, most = minibatches.size(units), [], minibatches.most_neighbors()
    padded = Size(size.n_systems + 3, size.n_atoms + 5, size.n_edges + 77)
    for shape, max_neighbors in ((None, None), (padded, None), (padded, most)):
        part = minibatches.make(units, shape)
        if shape is not None:
            assert Size(len(part.cell), len(part.types), len(part.i)) == padded
        weights = torch.tensor([1.0, 0.3, 0.5, 0.5, 0.1], dtype=torch.float64)
        prediction = student.predict(part.types, *part.graph(), max_neighbors)
        error = loss(prediction, part, spread, minibatches.norms(units), weights, 0.1)
        gradients.append(torch.autograd.grad(error, list(student.parameters())))
        assert all(torch.isfinite(own).all() for own in gradients[-1])
    assert any(own.abs().max() > 1e-3 for own in gradients[0])
    for others in gradients[1:]:
        for first, other in zip(gradients[0], others, strict=True):
            torch.testing.assert_close(first, other, rtol=1e-9, atol=1e-11)


def test_a_padded_size_holds_every_minibatch_and_grows():
    training = [*frames(9), *molecule(5)]
    minibatches = Minibatches(training, nep_for(training, SMALL, 0), 12)
    plan = minibatches.plan(0)
    size = minibatches.padded_size(plan)
    assert all(size.holds(minibatches.size(units)) for units in plan)
    everything = minibatches.size(range(14))
    assert not size.holds(everything)
    larger = size.united(minibatches.padded_size([range(14)]))
    assert larger.holds(everything)
    assert larger.holds(minibatches.size(plan[0]))
    assert not Size(2, 9, 50).holds(Size(2, 8, 40))  # no system is left for padding
    assert not Size(3, 8, 50).holds(Size(2, 8, 40))


def test_the_average_is_validated_without_a_graph_of_its_gradients():
    training = frames(2)
    student = painn(training).train()
    minibatches, spread = Minibatches(training, student, 8), Spread.of(training, student)
    average = Updater(student, minibatches, spread, TrainingSettings(), ALONE).average
    part = minibatches.make([0, 1])
    assert student.predict(part.types, *part.graph()).forces.requires_grad
    assert not average.predict(part.types, *part.graph()).forces.requires_grad


def test_parts_of_a_minibatch_add_up_to_it():
    training = [*frames(4), *molecule(3)]
    student = nep_for(training, SMALL, 0).double()
    minibatches = Minibatches(training, student, 10_000, probes=[(0, 1)])
    spread = Spread.of(training, student, [(0, 1)])
    (units,) = minibatches.plan(0)
    norms = minibatches.norms(units)
    whole = loss_of_part(student, minibatches.make(units), norms, spread)
    parts = [
        loss_of_part(student, minibatches.make(units[rank::3]), norms, spread) for rank in range(3)
    ]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-12, atol=0.0)


def test_the_curvature_of_a_probe_is_the_hessian_times_its_direction():
    (frame,) = frames(1)
    student = nep_for(frames(3), SMALL, 0).double().train()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(frame.positions.shape, generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    positions = frame.positions.clone().requires_grad_()
    pairs = neighbor_list(frame, student.cutoff + 0.1)
    energy = student.site_energies(
        student.types(frame.atomic_numbers),
        pairs.i,
        pairs.j,
        edge_vectors(dataclasses.replace(frame, positions=positions), pairs),
    ).sum()
    (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
    (product,) = torch.autograd.grad((slope * direction).sum(), positions)
    labels = {"energy": torch.zeros(1, dtype=torch.float64), "forces": 0.0 * frame.positions}
    probe = [
        dataclasses.replace(
            frame, positions=frame.positions + sign * 0.001 * direction, labels=labels
        )
        for sign in (1, -1)
    ]
    minibatches = Minibatches(probe, student, 100, probes=[(0, 1)])
    part = minibatches.make([0])
    forces = student.predict(part.types, *part.graph()).forces.detach()
    curvature = (forces - forces[part.partner]) * part.inverse_distance.unsqueeze(1)
    torch.testing.assert_close(
        curvature[:4], -product, rtol=0.0, atol=2e-3 * float(product.abs().max())
    )
    assert not curvature[4:].any()
    spread = Spread(1.0, 1.0, 1.0, 1.0, 1.0)
    only = LossSettings(forces=0.0, energy=0.0, stress=0.0, curvature=1.0, huber_delta=1e-9)
    error = loss_of_part(student, part, minibatches.norms([0]), spread, only)
    torch.testing.assert_close(error, curvature[:4].abs().mean(), rtol=1e-6, atol=1e-8)


def test_an_atom_on_which_the_committee_disagrees_weighs_less():
    training = frames(2)
    for frame, spread in zip(training, ([0.1, 0.1, 0.1, 0.3], [0.1] * 4), strict=True):
        frame.labels["forces_spread"] = torch.tensor(spread)
    student = nep_for(training, SMALL, 0)
    minibatches = Minibatches(training, student, 4, disagreement=1.0, frame_weights=[1.0, 2.0])
    first, second = (minibatches.make([k]) for k in range(2))
    assert first.atom_weights.tolist() == pytest.approx([0.5, 0.5, 0.5, 0.1])
    assert second.atom_weights.tolist() == pytest.approx([1.0] * 4)
    assert float(first.system_weights) == pytest.approx(0.4)
    for frame in training:
        frame.labels["forces_spread"] = torch.full((4,), torch.nan)
    nobody_knows = Minibatches(training, student, 4, disagreement=1.0)
    assert nobody_knows.make([0]).atom_weights.tolist() == [1.0] * 4


def test_late_weights_and_dropped_curvature():
    settings = LossSettings(energy=0.1, late_energy=1.0, late_fraction=0.2, curvature=0.5)
    assert settings.weights(0.79, curvature=True)[2::2] == [0.1, 0.5]
    assert settings.weights(0.8, curvature=False)[2::2] == [1.0, 0.0]


@pytest.mark.parametrize("name", ["cosine", "wsd"])
def test_schedule_rises_then_falls_to_zero(name):
    settings = TrainingSettings(schedule=name, warmup_fraction=0.05)
    values = [rate_factor(k / 100, settings) for k in range(101)]
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


def teach(out: Path) -> None:
    """Alone, or as one of several processes that torchrun started; see `two_processes.py`."""
    training = [*frames(9), *molecule(3)]
    settings = TrainingSettings(updates=30, atoms_per_batch=12, checkpoint_seconds=0.0)
    student = nep_for(training, SMALL, 0).double()
    with workers_of_torchrun("cpu") as workers:
        train(
            student,
            training,
            frames(4, seed=1),
            settings,
            probes=[(0, 1)],
            workers=workers,
            checkpoint=out.with_suffix(".checkpoint"),
        )
        save_file(student.state_dict(), out.with_suffix(f".{workers.rank}"))


@pytest.mark.slow
def test_two_processes_give_what_one_does(tmp_path):
    teach(tmp_path / "one")
    script = Path(__file__).with_name("two_processes.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*launch, script, tmp_path / "two"],
        check=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    alone = load_file(tmp_path / "one.0")
    for rank in (0, 1):
        for name, value in load_file(tmp_path / f"two.{rank}").items():
            torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-8)
