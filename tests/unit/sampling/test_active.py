"""Rounds of active learning: portions, resume at any moment, damaged state."""

import shutil

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from mlff_distiller.errors import DatasetError
from mlff_distiller.sampling import DynamicsSettings
from mlff_distiller.sampling.active import ActiveSettings, learn_actively

SEEDS = [bulk("Cu", cubic=True).repeat((2, 1, 1)), bulk("Au", cubic=True)]
STEP = DynamicsSettings(longest_fs=20.0)
SETTINGS = ActiveSettings(rounds=3, walkers=4)


class Student(EMT):
    """EMT that is wrong by a factor, less so in every round; no memory of earlier structures."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def calculate(self, *args, **kwargs):
        self.initialize(args[0])  # a fresh neighbour list: sums in one order
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.factor * self.results["forces"]


class Stop(Exception):
    pass


class Label:
    """Labels by EMT, kept; stops the program after ``most`` new ones."""

    def __init__(self, kept=None, most=10**6):
        self.kept, self.most, self.origins, self.asked = kept or {}, most, [], 0

    def __call__(self, frames, provenance):
        answers = []
        for atoms, origin in zip(frames, provenance, strict=True):
            key = (atoms.positions.tobytes(), atoms.numbers.tobytes())
            if key not in self.kept:
                if self.asked >= self.most:
                    raise Stop
                self.asked += 1
                copy = atoms.copy()
                copy.calc = EMT()
                self.kept[key] = {
                    "energy": copy.get_potential_energy(),
                    "forces": copy.get_forces(),
                }
            self.origins.append(origin)
            answers.append(self.kept[key])
        return answers


def run(folder, label, fitted=None):
    def fit(number, own, previous):
        own.mkdir(parents=True, exist_ok=True)
        if fitted is not None:
            fitted.append((number, previous and previous.parent.name))
        return Student(1.0 - 0.1 / (number + 1)), 0.1

    return learn_actively(folder, SEEDS, label, fit, 24, [300.0], SETTINGS, STEP, seed=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption: its folder, its labels, what was fitted, its history."""
    folder, label, fitted = tmp_path_factory.mktemp("whole"), Label(), []
    return folder, label, fitted, run(folder, label, fitted)


def test_rounds_get_equal_portions_and_the_error_falls(whole):
    _, label, fitted, history = whole
    assert [len(done.errors) for done in history] == [8, 8, 8]
    assert [done.error for done in history] == pytest.approx([0.1, 0.05, 0.1 / 3], rel=1e-6)
    assert fitted == [(0, None), (1, "00"), (2, "01")]
    assert [o["round"] for o in label.origins] == [0] * 8 + [1] * 8 + [2] * 8
    assert {(o["seed"], o["walker"]) for o in label.origins} == {(0, 0), (1, 1), (0, 2), (1, 3)}
    branches = {(o["seed"], o["branch"]) for o in label.origins}
    assert len(branches) == 4
    assert all(branch >= 100_000 for _, branch in branches)


@pytest.mark.parametrize("most", [3, 8, 9, 20])
def test_an_interrupted_round_is_replayed_from_its_labels(whole, tmp_path, most):
    _, label, _, history = whole
    first = Label(most=most)
    with pytest.raises(Stop):
        run(tmp_path / "cut", first)
    rest = Label(first.kept)
    assert run(tmp_path / "cut", rest) == history
    assert first.asked + rest.asked == 24
    assert rest.kept.keys() == label.kept.keys()


def test_finished_rounds_are_not_run_again(whole, tmp_path):
    folder, _, _, history = whole
    shutil.copytree(folder, tmp_path / "copy")
    again = Label()
    assert run(tmp_path / "copy", again) == history
    assert again.origins == []


def test_a_damaged_state_is_named(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "copy")
    (tmp_path / "copy" / "01" / "state.json").write_text('{"round": 1}')
    with pytest.raises(DatasetError, match=r"01.state\.json is damaged"):
        run(tmp_path / "copy", Label())


def test_labels_that_fail_do_not_count(tmp_path):
    label = Label()

    def failing(frames, provenance):
        answers = label(frames, provenance)
        return [None if o["walker"] == 0 else a for o, a in zip(provenance, answers, strict=True)]

    history = run(tmp_path, failing)
    assert sum(len(done.errors) for done in history) == 24
    assert np.isfinite([done.error for done in history]).all()
