"""The space that is searched, and one trial of it."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from mlff_distiller.batch import Batch
from mlff_distiller.errors import TrainingError
from mlff_distiller.training import TrainingSettings
from mlff_distiller.workflows.config import load_config, with_settings
from mlff_distiller.workflows.tune.trial import (
    Bench,
    Space,
    _typical,
    shortened,
    try_out,
)

BOTH = ("nep", "painn")


def frames(n: int, seed: int = 0) -> list[Batch]:
    rng, out = np.random.default_rng(seed), []
    for number in range(n):
        atoms = bulk("Cu", cubic=True) * (1, 1, 1 + number % 2)
        atoms.positions += rng.normal(0, 0.1, (len(atoms), 3))
        atoms.calc = EMT()
        atoms.get_stress()
        out.append(Batch.from_atoms([atoms]))
    return out


def bench(*settings: str) -> Bench:
    training = frames(7)
    config = load_config(None, ["training.epochs=10", "training.atoms_per_batch=8", *settings])
    return Bench(config, training, frames(3, 1), training[0].to_atoms()[0], torch.device("cpu"))


class Asked:
    """Draws from the upper end of each range, and keeps what it was asked."""

    def __init__(self) -> None:
        self.ranges: dict[str, tuple[float, float]] = {}

    def suggest_float(self, name, low, high, *, log=False):
        self.ranges[name] = (low, high)
        return high

    def suggest_int(self, name, low, high, *, step=1):
        self.ranges[name] = (low, high)
        return high

    def suggest_categorical(self, name, choices, /):
        return choices[-1]


@pytest.mark.parametrize("architecture", BOTH)
def test_what_is_set_is_not_searched(architecture):
    free, held = Asked(), Asked()
    Space.of(bench(), (architecture,)).suggest(free)
    assert "training.learning_rate" in free.ranges
    assert "training.loss.stress" in free.ranges
    own = bench(
        "training.learning_rate=0.003",
        "nep.neurons=20",
        "nep.cutoff_radial_A=4.4",
        "nep.cutoff_angular_A=4.1",
        "painn.channels=12",
        "painn.cutoff_A=4.4",
        "training.loss.energy=0",
    )
    settings = Space.of(own, (architecture,)).suggest(held)
    never = {"training.learning_rate", "training.loss.energy"}
    never |= {
        "nep.neurons",
        *(f"nep.cutoff_{own}_A/cutoff_radial_A" for own in ("radial", "angular")),
    }
    never |= {"painn.channels", "painn.cutoff_A/cutoff_A"}
    assert never & set(free.ranges) >= {"training.learning_rate", "training.loss.energy"}
    assert len(never & set(free.ranges)) > 3
    assert not never & set(held.ranges)
    assert held.ranges
    config = with_settings(own.config, settings)
    assert config.training.learning_rate == 0.003
    nep, painn = (config.architectures[name] for name in BOTH)
    assert (nep.neurons, nep.cutoff_angular_A, painn.channels) == (20, 4.1, 12)


@pytest.mark.parametrize("architecture", BOTH)
def test_every_end_of_the_ranges_makes_a_student(architecture):
    own = bench()
    space = Space.of(own, (architecture,))
    high, low = Asked(), Asked()
    own.student(space.suggest(high))
    low.suggest_float = lambda name, lo, hi, *, log=False: lo
    low.suggest_int = lambda name, lo, hi, *, step=1: lo
    own.student(space.suggest(low))


def test_the_first_trials_are_the_presets():
    own = bench()
    space = Space.of(own, BOTH)
    found = [space.suggest(optuna.trial.FixedTrial(params)) for params in space.defaults()]
    assert [settings["student"] for settings in found] == ["nep", "painn-32x2", "painn-64x2"]
    for settings in found:
        plain = own.student({"student": settings["student"]})
        same = own.student(settings)
        assert plain.config() == same.config()
        assert with_settings(own.config, settings).training == own.config.training


def test_no_stress_no_weight_for_it():
    own = bench()
    for frame in own.training:
        frame.labels["stress"].fill_(torch.nan)
    asked = Asked()
    Space.of(own, BOTH).suggest(asked)
    assert "training.loss.stress" not in asked.ranges
    assert "training.loss.energy" in asked.ranges


def test_a_weight_of_zero_has_no_range(monkeypatch):
    own = bench("training.loss.energy=0")
    monkeypatch.setattr(Space, "_free", lambda self, key: True)
    asked = Asked()
    Space.of(own, BOTH).suggest(asked)
    assert "training.loss.energy" not in asked.ranges
    assert "training.loss.huber_delta" in asked.ranges


def test_the_timed_system_is_of_the_median_size_and_calm():
    training = frames(7)
    forces = [float(f.labels["forces"].abs().max()) for f in training if f.n_atoms == 4]
    atoms = _typical(training)
    assert len(atoms) == 4
    atoms.calc = EMT()
    assert np.abs(atoms.get_forces()).max() == pytest.approx(min(forces))


def test_shorter():
    settings = TrainingSettings(updates=8000)
    assert shortened(settings, 0.1).updates == 800
    assert shortened(settings, 0.001).updates == 100
    assert shortened(replace(settings, updates=60), 0.1).updates == 60
    assert shortened(replace(settings, epochs=50), 0.1).epochs == 5


SMALL = {"student": "painn-8x1", "painn.radial_functions": 6}


def test_a_trial(tmp_path):
    own = bench()
    row = try_out(own, SMALL, 1.0, None, tmp_path / "c")
    assert row["status"] == "complete"
    assert row["within_limit"]
    assert row["forces_mae_meV_per_A"] > 0
    assert row["us_per_atom"] == pytest.approx(1e3 * row["ms_per_step"] / 4)
    assert row["n_parameters"] == sum(p.numel() for p in own.student(SMALL).parameters())


def test_too_slow_is_seen_before_training(tmp_path):
    def on_validation(row, epochs):
        pytest.fail("trained")

    row = try_out(bench(), SMALL, 1.0, 1e-6, tmp_path / "c", on_validation)
    assert (row["status"], row["within_limit"]) == ("too slow", False)
    assert row["forces_mae_meV_per_A"] is None


def test_what_diverges_or_breaks_in_dynamics_is_a_failed_trial(tmp_path, monkeypatch):
    def diverge(student, *args, **options):
        raise TrainingError("training diverged in epoch 0: the loss is inf")

    def spoil(student, *args, **options):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(torch.nan)
        return [
            {
                "validation_forces_mae_meV_per_A": 1.0,
                "validation_forces_fidelity": 0.9,
                "validation_energy_mae_meV_per_atom": 1.0,
            }
        ]

    for broken, why in ((diverge, "diverged"), (spoil, "not finite")):
        monkeypatch.setattr("mlff_distiller.training.train", broken)
        row = try_out(bench(), SMALL, 1.0, None, tmp_path / "c")
        assert row["status"] == "failed"
        assert why in row["why"]
        assert row["forces_mae_meV_per_A"] is None


def test_timing_leaves_the_student_trainable():
    own = bench()
    student = own.student(SMALL)
    assert own.ms_per_step(student, trained=False) > 0
    assert all(parameter.requires_grad for parameter in student.parameters())
