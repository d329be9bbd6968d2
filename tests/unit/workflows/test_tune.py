"""The search for the front, its resume, its limit; and the fastest preset that is good enough."""

import json
import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from tests.helpers import alone, command
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.dataset import Dataset
from mlff_distiller.dataset.importing import import_frames
from mlff_distiller.errors import ConfigError, TrainingError
from mlff_distiller.students import load_student, read_config
from mlff_distiller.workflows.config import load_config
from mlff_distiller.workflows.train import train
from mlff_distiller.workflows.tune import fastest, front, presets, tune
from mlff_distiller.workflows.tune.study import ask, open_study
from mlff_distiller.workflows.tune.trial import Bench, TuneSettings

WORDS = [
    "device=cpu",
    "training.epochs=20",
    "training.atoms_per_batch=80",
    "training.checkpoint_seconds=0",
    "training.md_checks=0",
    "validation_fraction=0.2",
    "test_fraction=0.2",
    "painn.layers=1",
]
SETTINGS = TuneSettings(trials=6, trial_fraction=0.4, architectures=("painn",))


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    frames = []
    for number in range(30):
        atoms = bulk("Cu", cubic=True)
        atoms.pbc = False
        atoms.rattle(0.15, seed=number)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write(folder / "emt.traj", frames)
    import_frames([folder / "emt.traj"], folder / "labels")
    return folder / "labels"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums over two come out in either order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def epoch_of(stage, news):
    found = re.search(r" (\d+)/\d+:", news) if stage == "tune" else None
    return int(found[1]) if found else None


def by_size(self, student, *, trained):
    """Times that depend on nothing else: a ms for ten thousand parameters."""
    return sum(parameter.numel() for parameter in student.parameters()) / 1e4


@pytest.fixture
def steady(monkeypatch):
    monkeypatch.setattr(Bench, "ms_per_step", by_size)


def config(*words: str):
    return load_config(None, [*WORDS, *words])


def without_times(found):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found["trials"]]


@pytest.fixture(scope="module")
def straight(labels, tmp_path_factory):
    """An uninterrupted search by steady times, and the epochs it showed of its trials."""
    shown: list[tuple[int, str]] = []

    def show(stage, done, total, news):
        if epoch := epoch_of(stage, news):
            shown.append((done, epoch))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "ms_per_step", by_size)
        out = tmp_path_factory.mktemp("straight")
        found = tune(labels, out, config(), SETTINGS, on_progress=show)
    return out, found, shown


def test_every_trial_is_on_record_and_the_front_is_what_nothing_beats(straight):
    out, found, _ = straight
    assert json.loads((out / "tune.json").read_text()) == found
    rows = found["trials"]
    assert [row["number"] for row in rows] == list(range(6))
    assert len({json.dumps(row["settings"]) for row in rows}) == 6
    assert [row["settings"]["student"] for row in rows[:2]] == ["painn-32x1", "painn-64x1"]
    for row in rows:
        assert row["status"] == "complete"
        beaten = any(
            other["ms_per_step"] <= row["ms_per_step"]
            and other["forces_mae_meV_per_A"] <= row["forces_mae_meV_per_A"]
            and other is not row
            for other in rows
        )
        assert row["on_front"] is not beaten
    assert 1 <= sum(row["on_front"] for row in rows) < 6
    assert "Accuracy against speed" in (out / "front.html").read_text(encoding="utf-8")
    assert not list((out / "trials").iterdir())


def test_without_a_limit_the_most_accurate_trial_is_trained_in_full(straight):
    out, found, _ = straight
    best = min(found["trials"], key=lambda row: row["forces_mae_meV_per_A"])
    assert found["best"] == best["number"]
    student = load_student(out / "student")
    assert sum(p.numel() for p in student.parameters()) == best["n_parameters"]
    told = read_config(out / "student")["about"]["config"]
    assert told["student"] == best["settings"]["student"]
    assert told["training"]["epochs"] == 20
    assert told["training"]["learning_rate"] == best["settings"]["training.learning_rate"]
    assert found["student"]["errors"] == json.loads((out / "errors.json").read_text())


def test_the_same_call_again_does_nothing(labels, straight, monkeypatch):
    out, found, _ = straight
    monkeypatch.setattr(front, "try_out", lambda *args: pytest.fail("a trial was repeated"))
    monkeypatch.setattr(front, "train_and_test", lambda *args: pytest.fail("trained again"))
    assert tune(labels, out, config(), SETTINGS) == found


class Killed(BaseException):
    pass


@pytest.mark.parametrize("trial", [1, 5])  # a preset; one that depends on those before
def test_an_interrupted_trial_is_continued_and_none_is_repeated(
    labels, straight, steady, tmp_path, trial
):
    seen: list[tuple[int, str]] = []

    def die(stage, done, total, news):
        if epoch := epoch_of(stage, news):
            seen.append((done, epoch))
            if (done, epoch) == (trial, 5):
                raise Killed

    with pytest.raises(Killed):
        tune(labels, tmp_path, config(), SETTINGS, on_progress=die)
    assert len(json.loads((tmp_path / "tune.json").read_text())["trials"]) == trial
    died_at, trial = trial, -1
    found = tune(labels, tmp_path, config(), SETTINGS, on_progress=die)
    assert seen.count((died_at, 1)) == 1  # it went on from its checkpoint
    assert without_times(found) == without_times(straight[1])
    assert found["best"] == straight[1]["best"]
    assert list(dict.fromkeys(seen)) == straight[2]
    assert len(seen) <= len(straight[2]) + 1  # only what was under way was done again


def test_trials_before_the_first_model_are_drawn_apart_and_again_after_a_kill(tmp_path):
    def draw(number):
        with open_study(tmp_path) as study:
            trial = ask(study, number, [], seed=0, trials=30)
            return trial.suggest_float("x", 0.0, 1.0), trial, study

    drawn = []
    for number in range(9):
        value, _, _ = draw(number)  # left running, as by a kill
        again, trial, study = draw(number)
        assert again == value
        trial.set_user_attr("row", {})
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        drawn.append(value)
    assert len(set(drawn)) == 9


def test_what_a_kill_leaves_of_the_journal_is_mended(
    labels, straight, steady, tmp_path, monkeypatch
):
    with pytest.raises(Killed):
        tune(labels, tmp_path, config(), SETTINGS, on_progress=stop_after(2))
    with (tmp_path / "trials.jsonl").open("ab") as stream:
        stream.write(b'{"op_code":6,"work')
    os.symlink(tmp_path / "trials.jsonl", tmp_path / "trials.jsonl.lock")
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda seconds: pytest.fail("waited for nobody's lock"))
        found = tune(labels, tmp_path, config(), SETTINGS)
    assert without_times(found) == without_times(straight[1])


def stop_after(n):
    def stop(stage, done, total, news):
        if done == n:
            raise Killed

    return stop


def test_too_slow_trials_are_not_trained_nor_chosen(labels, straight, steady, tmp_path):
    ms = sorted(row["ms_per_step"] for row in straight[1]["trials"])
    limit = 0.5 * (ms[2] + ms[3])
    trained = set()

    def watch(stage, done, total, news):
        if epoch_of(stage, news):
            trained.add(done)

    limited = replace(SETTINGS, max_us_per_atom=1e3 * limit / 4)
    found = tune(labels, tmp_path, config(), limited, on_progress=watch)
    assert found["limit_ms_per_step"] == pytest.approx(limit)
    slow = {row["number"] for row in found["trials"] if row["status"] == "too slow"}
    assert slow
    assert trained == set(range(6)) - slow
    for row in found["trials"]:
        assert row["within_limit"] == (row["ms_per_step"] <= limit) == (row["number"] in trained)
    usable = [row for row in found["trials"] if row["within_limit"]]
    best = min(usable, key=lambda row: row["forces_mae_meV_per_A"])
    assert found["best"] == best["number"]
    assert found["student"]["ms_per_step"] <= limit


def test_a_trial_that_is_too_slow_when_measured_anew_is_passed_over(labels, tmp_path, monkeypatch):
    calls = 0

    def ms(self, student, *, trained):
        nonlocal calls
        calls += 1
        return 9.0 if calls == 5 else 1.0  # after two measurements of each trial

    monkeypatch.setattr(Bench, "ms_per_step", ms)
    two = replace(SETTINGS, trials=2, max_ms_per_step=5.0)
    found = tune(labels, tmp_path, config(), two)
    assert all(row["within_limit"] for row in found["trials"])
    errors = [row["forces_mae_meV_per_A"] for row in found["trials"]]
    assert found["best"] == int(np.argmax(errors)), "the other one"


def test_a_trial_that_is_too_slow_only_once_trained_is_not_chosen(
    labels, straight, tmp_path, monkeypatch
):
    errors = [row["forces_mae_meV_per_A"] for row in straight[1]["trials"][:2]]
    better, calls = int(np.argmin(errors)), 0

    def ms(self, student, *, trained):
        nonlocal calls
        calls += 1  # untrained and trained, of each trial
        return 9.0 if calls == 2 * better + 2 else 1.0

    monkeypatch.setattr(Bench, "ms_per_step", ms)
    two = replace(SETTINGS, trials=2, max_ms_per_step=5.0)
    found = tune(labels, tmp_path, config(), two)
    assert [row["status"] for row in found["trials"]] == ["complete"] * 2
    assert [row["within_limit"] for row in found["trials"]] == [k != better for k in (0, 1)]
    assert found["best"] == 1 - better


def test_no_trial_is_fast_enough(labels, tmp_path):
    few = replace(SETTINGS, trials=2, max_ms_per_step=1e-4)
    with pytest.raises(TrainingError, match=r"(?s)no trial is fast enough.*0\.0001 ms.*found"):
        tune(labels, tmp_path, config(), few)
    found = json.loads((tmp_path / "tune.json").read_text())
    assert [row["status"] for row in found["trials"]] == ["too slow"] * 2
    assert not (tmp_path / "student").exists()


def test_a_student_that_came_out_too_slow_is_no_success(labels, tmp_path, monkeypatch):
    slow = False

    def ms(self, student, *, trained):
        return 9.0 if slow else 1.0

    def becomes_slow(*args, **options):
        nonlocal slow
        slow = True
        return real(*args, **options)

    real = front.train_and_test
    monkeypatch.setattr(Bench, "ms_per_step", ms)
    monkeypatch.setattr(front, "train_and_test", becomes_slow)
    one = replace(SETTINGS, trials=1, max_ms_per_step=5.0)
    with pytest.raises(TrainingError, match=r"(?s)slower than the limit.*5 ms.*9 ms"):
        tune(labels, tmp_path, config(), one)
    monkeypatch.setattr(front, "train_and_test", real)
    slow = False
    assert tune(labels, tmp_path, config(), one)["student"]["ms_per_step"] == 1.0


def test_minutes_end_the_search(labels, steady, tmp_path):
    found = tune(labels, tmp_path, config(), replace(SETTINGS, minutes=1e-4))
    assert len(found["trials"]) == 1
    assert found["student"] is not None


def test_other_inputs_are_refused(labels, straight, tmp_path):
    with pytest.raises(ConfigError, match=r"inputs\.tune\.trials: 6 -> 8"):
        tune(labels, straight[0], config(), replace(SETTINGS, trials=8))
    with pytest.raises(ConfigError, match=r"config\.seed: 0 -> 1"):
        tune(labels, straight[0], config("seed=1"), SETTINGS)
    with pytest.raises(ConfigError, match=r"inputs\.tune: "):
        train(labels, straight[0], config())
    with pytest.raises(ConfigError, match=r"inputs\.target_fidelity: "):
        fastest(labels, straight[0], config(), 0.9)
    frames = [record.atoms for record in Dataset(labels).iterate()][:20]
    for atoms in frames:
        atoms.calc = EMT()
        atoms.get_forces()
    write(tmp_path / "few.traj", frames)
    import_frames([tmp_path / "few.traj"], tmp_path / "few")
    with pytest.raises(ConfigError, match=r"inputs\.labels: "):
        tune(tmp_path / "few", straight[0], config(), SETTINGS)


def test_missing_optuna_is_explained_before_anything_is_written(labels, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="pip install optuna"):
        tune(labels, tmp_path / "out", config(), SETTINGS)
    assert not (tmp_path / "out").exists()


# -- the fastest preset ---------------------------------------------------------------------------


LONGER = ("training.epochs=80", "training.learning_rate=0.02", "painn.cutoff_A=4")
SMALL, LARGE = "painn-4x1", "painn-32x1"


@pytest.fixture(scope="module")
def out_of_reach(labels, tmp_path_factory):
    out = tmp_path_factory.mktemp("fastest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "ms_per_step", by_size)
        patch.setattr(presets, "_presets", lambda names: [LARGE, SMALL])
        with pytest.raises(TrainingError) as error:
            fastest(labels, out, config(*LONGER), 0.9999, architectures=("painn",))
    return out, str(error.value), json.loads((out / "fastest.json").read_text())


def test_a_target_that_none_reaches_tells_what_each_reached(out_of_reach):
    out, message, found = out_of_reach
    names = [row["preset"] for row in found["presets"]]
    assert names == [SMALL, LARGE]
    for row in found["presets"]:
        assert f"{row['preset']} {row['forces_fidelity']:.4f}" in message
    assert "no preset reaches a validation fidelity of 0.9999" in message
    assert found["chosen"] is None
    assert not (out / "student").exists()


@pytest.fixture
def small_presets(steady, monkeypatch):
    monkeypatch.setattr(presets, "_presets", lambda names: [LARGE, SMALL])


def test_the_fastest_that_reaches_the_target(labels, out_of_reach, small_presets, tmp_path):
    low, high = (row["forces_fidelity"] for row in out_of_reach[2]["presets"])
    assert 0.05 < low < high - 0.03
    for target, chosen in ((low - 0.01, SMALL), (0.5 * (low + high), LARGE)):
        out = tmp_path / chosen
        if chosen == LARGE:  # whose training takes most of the time, and has been seen
            shutil.copytree(out_of_reach[0] / "presets", out / "presets")
        found = fastest(labels, out, config(*LONGER), target, architectures=("painn",))
        assert found["chosen"] == chosen
        assert (out / "presets" / LARGE).exists() == (chosen == LARGE)
        reached = {row["preset"]: row["forces_fidelity"] for row in found["presets"]}[chosen]
        assert reached >= target
        told = read_config(out / "student")
        assert told["about"]["config"]["student"] == chosen
        assert found["errors"] == json.loads((out / "errors.json").read_text())
        assert fastest(labels, out, config(*LONGER), target, architectures=("painn",)) == found


def test_presets_that_were_trained_are_not_trained_again(
    labels, out_of_reach, small_presets, monkeypatch
):
    monkeypatch.setattr(presets, "train_stage", lambda *args: pytest.fail("trained again"))
    with pytest.raises(TrainingError, match="no preset reaches"):
        fastest(labels, out_of_reach[0], config(*LONGER), 0.9999, architectures=("painn",))


def test_real_presets_are_buildable(labels):
    bench = Bench.of(Dataset(labels), config("painn.layers=null"))
    sizes = {
        name: sum(p.numel() for p in bench.student({"student": name}).parameters())
        for name in presets._presets(("nep", "painn"))
    }
    assert presets._presets(("nep",)) == ["nep-small", "nep", "nep-large"]
    assert sizes["nep-small"] < 0.5 * sizes["nep"] < 0.5 * sizes["nep-large"]
    assert sizes["painn-32x2"] < sizes["painn-64x2"] < sizes["painn-128x3"]


@pytest.mark.parametrize("target", [0.0, 1.0, 97.0])
def test_a_target_that_is_no_fidelity(labels, tmp_path, target):
    with pytest.raises(ConfigError, match="not a fidelity"):
        fastest(labels, tmp_path, config(), target)


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--max-us-per-atom", "3"], "without --tune"),
        (["--tune", "3", "--target-fidelity", "0.9"], "do not go together"),
        (["--tune", "3", "--init", "x"], "do not go together"),
        (["--tune", "3", "--probes", "x"], "without --probes"),
        (["--target-fidelity", "0.9", "--also", "x"], "without --also"),
        (["--tune", "3", "--max-us-per-atom", "-1"], "max_us_per_atom"),
        (["--tune", "3", "--max-us-per-atom", "1", "--max-ms-per-step", "1"], "two speed limits"),
    ],
)
def test_what_makes_no_sense_is_refused(labels, tmp_path, words, shown):
    command = ["train", str(labels), "--out", str(tmp_path / "out"), *words]
    done = CliRunner().invoke(app, command)
    assert done.exit_code != 0
    assert shown in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_killed_and_repeated(labels, tmp_path, start):
    out = tmp_path / "out"
    words = ["train", labels, "--out", out, "--tune", 4, "--student", "painn", *WORDS]
    words += ["--max-ms-per-step", 500]
    process = start(alone, *words)

    def rows():
        path = out / "tune.json"
        return json.loads(path.read_text())["trials"] if path.exists() else []

    while len(rows()) < 2 and process.is_alive():
        time.sleep(0.05)
    process.kill()
    process.join()
    before = rows()
    assert 2 <= len(before) < 4
    done = command(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "tune.json").read_text())
    assert len(found["trials"]) == 4
    assert [row["seconds"] for row in found["trials"][: len(before)]] == [
        row["seconds"] for row in before
    ]
    assert len({json.dumps(row["settings"]) for row in found["trials"]}) == 4
    assert found["student"]["ms_per_step"] <= 500
    assert "chosen" in done.stdout
    assert load_student(out / "student").architecture == "painn"
