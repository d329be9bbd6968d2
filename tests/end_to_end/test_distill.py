"""The command from a user's chair: a real run on a cheap teacher, killed, continued, refused."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write
from tests.helpers import Done, alone, command, running
from typer.testing import CliRunner

from mlff_distiller import StudentCalculator
from mlff_distiller.cli.main import app
from mlff_distiller.cli.options import REFUSED
from mlff_distiller.dataset import Dataset, verify
from mlff_distiller.workflows.config import config_of, load_config
from mlff_distiller.workflows.distill import distill
from mlff_distiller.workflows.folder import read_inputs
from mlff_distiller.workflows.train import split_labels

COUNTED = '''
import hashlib, os
from ase.calculators.emt import EMT

class Counted(EMT):
    """EMT that leaves a line for every structure it computes."""
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        line = hashlib.sha256(atoms.positions.tobytes()).hexdigest() + "\\n"
        descriptor = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)
'''
SMALL = [
    "labels=40",
    "training.epochs=20",
    "training.patience_fraction=1.0",  # the number of changes of the disk is not up to chance
    "training.checkpoint_seconds=0",
    "training.md_steps=10",
    "nep.neurons=8",
    "nep.n_max_radial=3",
    "nep.n_max_angular=2",
    "nep.basis_size_radial=5",
    "nep.basis_size_angular=5",
    "evaluation.time_ps=0.1",
    "evaluation.equilibration_ps=0.02",
    "evaluation.n_frames=5",
    "sampling.min_atoms=4",
    "goal.max_turns=2",
    "student=nep",
    "active.rounds=2",
    "active.walkers=3",
    "active.updates=30",
    "evaluation.speed_sizes=[4, 16]",
]


class Bench:
    """A folder with a structure and a teacher that counts its calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "counted.py").write_text(COUNTED)
        write(folder / "cu.extxyz", bulk("Cu", cubic=True))

    def words(self, out: str, *words: str, teacher: str = "ase:counted:Counted") -> list[str]:
        command = ["distill", "cu.extxyz", "--teacher", teacher, "--out", out, "--device", "cpu"]
        return [*command, *SMALL, *words]

    def environment(self, out: str) -> dict[str, str]:
        return {"CALLS": str(self.folder / f"{out}.calls"), "OMP_NUM_THREADS": "1"}

    def start(self, out: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
        program = (sys.executable, "-m", "mlff_distiller", *self.words(out))
        return running(*program, cwd=self.folder, env={**os.environ, **self.environment(out)})

    def run(self, out: str, *words: str, **options: str) -> Done:
        """To its end, in this process."""
        with contextlib.chdir(self.folder):
            return command(*self.words(out, *words, **options), environment=self.environment(out))

    def calls(self, out: str) -> list[str]:
        return (self.folder / f"{out}.calls").read_text().split()


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("distill"))


@pytest.fixture(scope="module")
def straight(bench) -> Path:
    """An uninterrupted run."""
    with bench.start("straight") as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == REFUSED, errors
    assert "report" in output
    return bench.folder / "straight"


def content(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    data = Dataset(folder)
    frames = data.read(np.arange(len(data))).systems()
    return {
        key: (frame.labels["energy"].numpy().tobytes(), frame.labels["forces"].numpy().tobytes())
        for key, frame in zip(data.keys, frames, strict=True)
    }


def test_run_holds_what_it_promises(straight):
    names = {path.name for path in straight.iterdir()}
    assert names >= {"config.yaml", "dataset", "student", "report.html", "report.json", "log.jsonl"}
    assert names >= {"certificate.json", "series.json", "structures.traj"}
    report = json.loads((straight / "report.json").read_text())
    assert report["schema"] == 1
    data, turns = report["data"], report["goal"]["turns"]
    assert [turn["number"] for turn in turns] == [0, 1]
    assert turns[0]["n_labels"] == 40
    assert turns[1]["n_labels"] == len(Dataset(straight / "dataset"))
    assert data["n_train"] + data["n_validation"] + data["n_test"] == data["n_labels"]
    assert report["goal"]["ended"].startswith("2 turns were allowed")
    assert report["goal"]["advice"] or report["verdict"]["status"] == "approved"
    assert report["teacher"]["name"] == "ase:counted:Counted"
    assert {row["n_atoms"] for row in report["speed"]} == {4, 16}
    assert report["accuracy"]["student_md"]["n_frames"] == 5
    assert report["verdict"]["status"] in ("approved", "rejected")
    assert verify(straight / "dataset").ok
    assert verify(straight / "student_md").ok
    assert "nep student of ase:counted:Counted" in (straight / "student" / "README.md").read_text()


def checks(path: Path) -> dict[str, dict]:
    return {one["name"]: one for one in json.loads(path.read_text())["verdict"]["checks"]}


def test_validate_adds_its_checks_to_the_certificate_of_the_run(bench, straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    assert command("validate", "--verify", run / "certificate.json").returncode == 0
    settings = tmp_path / "brief.yaml"
    settings.write_text(
        "{time_ps: 0.2, nve_ps: 0.1, memory_steps: 20, large_atoms: 16, speed_sizes: [4, 16]}"
    )
    words = ["validate", "--student", run, "--teacher", "ase:counted:Counted", "--device", "cpu"]

    def again(*more: object) -> Done:
        with contextlib.chdir(bench.folder):
            made = command(*words, "--config", settings, *more, environment=bench.environment("v"))
        assert made.returncode == REFUSED, made.stderr  # too short a run to know the temperature
        return made

    first = checks(run / "certificate.json")
    assert first == checks(run / "report.json")
    assert "validation.html" in again().stdout
    whole = checks(run / "certificate.json")
    assert len(whole) > 20
    assert {name: whole[name] for name in first} == first
    assert command("validate", "--verify", run / "certificate.json").returncode == 0
    assert (run / "report.html").read_bytes() == (straight / "report.html").read_bytes()
    # Measured again, without what the run knows, the values are the same but for the times.
    seed = json.loads((run / "certificate.json").read_text())["settings"]["seed"]
    assert seed > 0  # the second turn's student is judged by dynamics of its own
    (run / "certificate.json").unlink()
    settings.write_text(settings.read_text().replace("{", f"{{seed: {seed}, "))
    again("--out", tmp_path / "proof")
    measured = checks(tmp_path / "proof" / "certificate.json")
    for name in set(first) - {"speedup"}:
        assert measured[name]["value"] == pytest.approx(first[name]["value"], abs=1e-6), name


def test_student_runs_in_ase(straight):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    folder, file = (
        StudentCalculator(straight / "student" / name, device="cpu") for name in ("", "nep.txt")
    )
    assert np.abs(folder.get_forces(atoms) - file.get_forces(atoms)).max() < 2e-5
    assert np.abs(folder.get_forces(atoms)).max() > 0.05


def test_same_command_again_does_nothing(bench, straight):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*") if path.name != ".lock"}
    again = bench.run("straight")
    assert again.returncode == REFUSED
    assert "finished earlier" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_info_teachers_and_data(straight):
    done = command("info", straight, "--json")
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert facts["elements"] == ["Cu"]
    assert facts["teacher"] == "ase:counted:Counted"
    assert "Cu" in command("info", straight / "student").stdout
    labels = command("data", "info", straight / "dataset", "--json")
    assert json.loads(labels.stdout)["n_labels"] == 40
    assert "7net-0" in command("teachers", environment={"COLUMNS": "200"}).stdout
    assert command("--version").stdout.strip() == version("mlff-distiller")


def test_data_verify_says_what_is_damaged(straight, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight / "dataset", folder)
    assert command("data", "verify", folder).returncode == 0
    shard = max(folder.glob("*.h5"), key=lambda path: path.stat().st_size)
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    shard.write_bytes(damaged)
    assert command("data", "verify", folder).returncode == REFUSED


@pytest.mark.parametrize(
    ("words", "options", "shown"),
    [
        (["seed=1"], {}, "config.seed: 0 -> 1"),
        (
            [],
            {"teacher": "ase:ase.calculators.emt:EMT"},
            "inputs.teacher: ase:counted:Counted -> ase:ase",
        ),
    ],
)
def test_other_inputs_are_refused_with_the_difference(bench, straight, words, options, shown):
    refused = bench.run("straight", *words, **options)
    assert refused.returncode == 1
    assert shown in refused.stderr
    assert "Traceback" not in refused.stderr


def test_other_structures_are_refused(bench, straight):
    write(bench.folder / "cu.extxyz", bulk("Cu", cubic=True, a=3.7))
    try:
        refused = bench.run("straight")
    finally:
        write(bench.folder / "cu.extxyz", bulk("Cu", cubic=True))
    assert refused.returncode == 1
    assert "inputs.structures" in refused.stderr


TWO_TEMPERATURES = "sampling.temperature_K=[300, 400]"


def interrupted(bench, out, when, *words, **options):
    """The run, interrupted at the first stage of progress that ``when`` is true of."""

    def on_progress(stage, done, total, news):
        if when(stage):
            raise KeyboardInterrupt

    config = load_config(None, [*SMALL, *words], device="cpu")
    with contextlib.chdir(bench.folder), pytest.MonkeyPatch.context() as patched:
        for name, value in bench.environment(out).items():
            patched.setenv(name, value)
        options["on_progress"] = on_progress
        with pytest.raises(KeyboardInterrupt):
            distill(["cu.extxyz"], "ase:counted:Counted", out, config, **options)


def test_a_run_interrupted_between_its_turns_has_not_ended(bench, straight):
    seen = []

    def in_the_second_turn(stage):
        seen.append(stage)
        return "turn" in seen and stage == "train"

    interrupted(bench, "between", in_the_second_turn)
    report = json.loads((bench.folder / "between" / "report.json").read_text())
    assert len(report["goal"]["turns"]) == 1
    assert report["goal"]["ended"] is None
    done = bench.run("between")
    assert "finished earlier" not in done.stdout
    assert content(bench.folder / "between" / "dataset") == content(straight / "dataset")
    weights = [
        (folder / "student" / "weights.safetensors").read_bytes()
        for folder in (straight, bench.folder / "between")
    ]
    assert weights[0] == weights[1]
    assert "finished earlier" in bench.run("between").stdout


def test_a_finished_run_goes_on_with_a_larger_budget(bench, straight):
    before = json.loads((straight / "report.json").read_text())["goal"]["turns"]
    shutil.copytree(straight, bench.folder / "more", ignore=shutil.ignore_patterns(".lock"))
    interrupted(bench, "more", lambda stage: True, "goal.max_turns=3", TWO_TEMPERATURES)
    done = bench.run("more", "goal.max_turns=3", TWO_TEMPERATURES)
    assert done.returncode in (0, REFUSED), done.stderr
    goal = json.loads((bench.folder / "more" / "report.json").read_text())["goal"]
    kept = [{**turn, "next": None} for turn in goal["turns"]]
    assert kept[:2] == [{**turn, "next": None} for turn in before]
    assert [turn["next"]["step"] is None for turn in goal["turns"]] == [False, False, True]
    assert "turn 3:" in done.stdout
    labels = Dataset(bench.folder / "more" / "dataset").keys
    assert set(Dataset(straight / "dataset").keys) <= set(labels)
    assert (
        command("validate", "--verify", bench.folder / "more" / "certificate.json").returncode == 0
    )
    again = bench.run("more", "goal.max_turns=3", TWO_TEMPERATURES)
    assert "finished earlier" in again.stdout


def test_a_finished_run_learns_what_production_runs_met(bench, straight):
    out, pool = bench.folder / "harvested", bench.folder / "pool"
    shutil.copytree(straight, out, ignore=shutil.ignore_patterns(".lock"))
    pool.mkdir()
    dense = bulk("Cu", cubic=True)
    dense.set_cell(0.9 * dense.cell.array, scale_atoms=True)
    gas = dense.copy()
    gas.set_cell(2.0 * dense.cell.array, scale_atoms=True)
    write(pool / "md.extxyz", [dense, dense, gas, bulk("Cu", cubic=True)])  # the last is known
    before = json.loads((out / "report.json").read_text())["goal"]["turns"]
    interrupted(bench, "harvested", lambda stage: stage == "train", harvest=["pool"])
    done = bench.run("harvested")
    assert done.returncode in (0, REFUSED), done.stderr
    turns = json.loads((out / "report.json").read_text())["goal"]["turns"]
    assert [turn["step"]["kind"] for turn in turns[len(before) :]] == ["harvest"]
    labels = Dataset(out / "dataset")
    met = [k for k in range(len(labels)) if labels.provenance(k).get("source") == "harvest"]
    assert len(met) == turns[-1]["n_new_labels"] == 2
    split = split_labels(labels, config_of(read_inputs(out)["config"]))
    assert set(met) <= set(split.train.tolist())
    again = bench.run("harvested", "--harvest", "pool")
    assert "0 new" in again.stdout
    assert "finished earlier" in again.stdout


NOISY = '''
import numpy as np
from ase.calculators.emt import EMT

class Noisy(EMT):
    """EMT whose forces differ from one time to the next."""
    random = np.random.default_rng(0)
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        noise = self.random.normal(0, 0.2, (len(atoms), 3))
        self.results["forces"] = self.results["forces"] + noise
'''


def test_a_noisy_teacher_ends_the_run_and_is_named(bench):
    (bench.folder / "noisy.py").write_text(NOISY)
    done = bench.run("noisy", teacher="ase:noisy:Noisy")
    assert done.returncode == REFUSED, done.stderr
    report = json.loads((bench.folder / "noisy" / "report.json").read_text())
    assert report["verdict"]["status"] == "rejected"
    assert len(report["goal"]["turns"]) == 1
    assert "the teacher is the limit" in report["goal"]["ended"]
    assert "the teacher is the limit" in done.stdout


STRAINED = """4
Lattice="3.61 0 0 0 3.61 0 0 0 3.61" pbc="T T T" Properties=species:S:1:pos:R:3
Cu 0.0 0.0 0.0
Cu 0.0 1.805 1.805
Cu 1.805 0.0 1.805
Cu 1.1 1.1 0.1
"""


def test_a_strained_structure_is_relaxed_and_that_is_said(bench):
    (bench.folder / "strained.xyz").write_text(STRAINED)
    words = [word.replace("cu.extxyz", "strained.xyz") for word in bench.words("strained")]
    with contextlib.chdir(bench.folder):
        done = command(*words, "goal.max_turns=1", environment=bench.environment("strained"))
    assert done.returncode in (0, REFUSED), done.stderr
    assert "were relaxed to" in done.stdout
    atoms = read(bench.folder / "strained" / "structures.traj")
    atoms.calc = EMT()
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.11
    goal = json.loads((bench.folder / "strained" / "report.json").read_text())["goal"]
    assert goal["relaxed"]
    assert goal["turns"][0]["fell_eV_per_atom"] < 0  # its dynamics is above the minimum


def test_a_dry_run_says_what_it_costs_and_writes_nothing(bench):
    done = bench.run("dry", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"first turn: \d+ labels of [\d.]+ .?s, .* updates of [\d.]+ .?s", done.stdout)
    assert not (bench.folder / "dry").exists()


def test_two_at_once_are_refused(bench, straight):
    lock = bench.folder / "twice" / ".lock"
    with bench.start("twice") as first:
        while not (lock.exists() and lock.read_text()):
            time.sleep(0.05)
        second = bench.run("twice")
        first.terminate()
        first.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr
    assert first.returncode == 143


def mortal(words, environment, folder, output, changes, seconds):
    """The command, which so many changes of the disk and seconds later vanishes as by SIGKILL."""

    def counted(real):
        def call(*arguments, **options):
            nonlocal changes
            changes -= 1
            if changes == 0:
                signal.setitimer(signal.ITIMER_REAL, seconds)  # nobody handles SIGALRM
            return real(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (os, "unlink"), (Path, "replace")):
        setattr(owner, name, counted(getattr(owner, name)))
    os.environ.update(environment)
    os.chdir(folder)
    with output.open("w") as sys.stdout:
        alone(*words)


@pytest.mark.slow
def test_killed_again_and_again_and_continued(bench, straight, start):
    """Anywhere: each time it gets a sixth of the way further, more or less."""
    rng = random.Random(7)
    stages = set()
    words, environment = bench.words("killed"), bench.environment("killed")
    output = bench.folder / "killed.output"
    lives = [(rng.randint(1, 100), rng.uniform(0.001, 0.05)) for _ in range(6)]
    for life in (*lives, (10**9, 0.0)):
        process = start(mortal, words, environment, bench.folder, output, *life)
        process.join(timeout=240)
        ends = (-signal.SIGALRM,) if life in lives else (0, REFUSED)
        assert process.exitcode in ends, output.read_text()
        stages |= {line.split()[0] for line in output.read_text().splitlines() if line.split()}
    assert {"label", "train"} <= stages
    killed = bench.folder / "killed"
    assert content(killed / "dataset") == content(straight / "dataset")
    assert content(killed / "student_md") == content(straight / "student_md")
    for name in ("weights.safetensors", "nep.txt"):
        same = [
            hashlib.sha256((folder / "student" / name).read_bytes()).digest()
            for folder in (straight, killed)
        ]
        assert same[0] == same[1], name
    assert verify(killed / "dataset").ok
    report = json.loads((killed / "report.json").read_text())
    straight_report = json.loads((straight / "report.json").read_text())
    for part in ("data", "accuracy", "stability", "observables"):
        a, b = report[part], straight_report[part]
        a.pop("teacher_seconds", None), b.pop("teacher_seconds", None)
        assert a == b, part
    # Structures in flight when the process died are computed again, a batch of them; no other is.
    data = Dataset(killed / "dataset")
    frames = data.read(np.arange(1, len(data))).to_atoms()
    own = {hashlib.sha256(atoms.positions.tobytes()).hexdigest() for atoms in frames}
    calls = [call for call in bench.calls("killed") if call in own]
    assert len(set(calls)) == len(own)
    assert len(calls) - len(own) <= len(lives) * 20


@pytest.mark.filterwarnings("ignore:some labels look wrong")  # so few, of so poor a student
@pytest.mark.filterwarnings("ignore:.*are within 0.1 Å")  # four atoms at rest
def test_train_on_labels_that_are_there(bench, straight, tmp_path):
    words = ["train", str(straight / "dataset"), "--device", "cpu", "--out"]
    sizes = [word for word in SMALL if word.startswith("nep.")]
    first = CliRunner().invoke(app, [*words, str(tmp_path / "a"), *sizes, "training.epochs=12"])
    assert first.exit_code == 0, first.output
    assert "forces_fidelity" in first.output
    errors = json.loads((tmp_path / "a" / "errors.json").read_text())
    about = json.loads((tmp_path / "a" / "student" / "config.json").read_text())["about"]
    assert about["teacher"]["name"] == "ase:counted:Counted"
    again = CliRunner().invoke(app, [*words, str(tmp_path / "a"), *sizes, "training.epochs=12"])
    assert again.exit_code == 0, again.output
    other = CliRunner().invoke(app, [*words, str(tmp_path / "a"), *sizes, "training.epochs=13"])
    assert other.exit_code != 0
    assert "training.epochs: 12 -> 13" in str(other.exception)
    gentle = ["--init", str(tmp_path / "a" / "student"), "training.learning_rate=0.001"]
    more = [*words, str(tmp_path / "b"), *sizes, "training.epochs=12", *gentle]
    warm = CliRunner().invoke(app, more)
    assert warm.exit_code == 0, warm.output
    better = json.loads((tmp_path / "b" / "errors.json").read_text())
    assert better["forces_mae_meV_per_A"] < errors["forces_mae_meV_per_A"]
    first_row = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[0])
    assert first_row["epoch"] == 1  # it did not go on from the other


def test_painn_goes_the_whole_line(bench):
    words = (
        "student=painn-8x1",
        "goal.max_turns=1",
        "painn.radial_functions=6",
        "painn.cutoff_A=3.3",
    )
    words += ("training.epochs=150", "training.learning_rate=0.02", "training.validations=6")
    words += ("active.rounds=1", "dynamics.longest_fs=20")
    done = bench.run("painn", *words)
    assert done.returncode in (0, REFUSED), done.stderr  # rejected or not, it is assessed
    folder = bench.folder / "painn"
    report = json.loads((folder / "report.json").read_text())
    assert report["student"]["architecture"] == "painn"
    assert report["accuracy"]["test"]["forces_fidelity"] > 0.3
    assert not (folder / "student" / "nep.txt").exists()
    assert "nep.txt" not in (folder / "student" / "README.md").read_text()
    atoms = bulk("Cu", cubic=True)
    atoms.calc = StudentCalculator(folder / "student", device="cpu")
    assert np.isfinite(atoms.get_stress()).all()


def test_mistakes_are_errors_not_tracebacks(bench):
    for words, shown in (
        (["--teacher", "7net-9"], "7net-0"),
        (["--teacher", "ase:counted:Nothing"], "Nothing"),
    ):
        refused = bench.run("mistake", teacher=words[1])
        assert refused.returncode == 1
        assert shown in refused.stderr
        assert "Traceback" not in refused.stderr


def test_unreadable_structure_is_named(bench):
    (bench.folder / "bad.xyz").write_text("no structure\n")
    teacher = ["--teacher", "ase:counted:Counted"]
    with contextlib.chdir(bench.folder):
        done = command("distill", "bad.xyz", *teacher, "--out", "bad")
    assert done.returncode == 1
    assert "cannot read structures from bad.xyz" in done.stderr


def test_help_is_quick_and_has_an_example():
    environment = {**os.environ, "COLUMNS": "120"}
    for words in (
        [],
        ["distill"],
        ["teachers"],
        ["info"],
        ["data", "verify"],
        ["data", "info"],
        ["md"],
    ):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "mlff_distiller.cli.main", *words, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
        )
        assert done.returncode == 0
        assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert not words or re.search("Examples?: mlff-distiller", done.stdout)


def test_distill_from_python(tmp_path):
    from mlff_distiller import distill
    from mlff_distiller.workflows.config import load_config

    seed = bulk("Cu", cubic=True)
    news = []
    report = distill(
        [seed, Atoms(seed)],
        "ase:ase.calculators.emt:EMT",
        tmp_path / "run",
        load_config(None, [*SMALL, "labels=30", "training.epochs=3", "goal.max_turns=1"]),
        on_progress=lambda *event: news.append(event),
    )
    assert report["data"]["n_labels"] == 30
    assert {stage for stage, *_ in news} >= {
        "label",
        "train",
        "300 K, constant energy",
        "re-score",
        "speed",
        "report",
    }
