"""A simulation that learns what it meets: all of it on a cheap teacher, killed in every phase."""

import json
import os
import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from ase.io import write
from tests.helpers import command, rattled

from mlff_distiller import run_md
from mlff_distiller.errors import ConfigError, UntrustedError
from mlff_distiller.labeling import Labeler, open_labels
from mlff_distiller.md.checkpoint import read_header
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.validation.certificate import verify_certificate
from mlff_distiller.workflows import repair
from mlff_distiller.workflows.config import load_config
from mlff_distiller.workflows.folder import fix_inputs
from mlff_distiller.workflows.repair import RepairSettings, run_of, run_with_repair
from mlff_distiller.workflows.train import train

EMT = "ase:ase.calculators.emt:EMT"
SMALL = [
    "training.updates=150",
    "training.checkpoint_seconds=0",
    "training.md_steps=10",
    "nep.neurons=6",
    "nep.n_max_radial=3",
    "nep.n_max_angular=2",
    "nep.basis_size_radial=5",
    "nep.basis_size_angular=5",
    "evaluation.time_ps=0.02",
    "evaluation.equilibration_ps=0.01",
    "evaluation.n_frames=2",
    "evaluation.speed_sizes=[4]",
    "student=nep",
]
HOT = {
    "n_steps": 60,
    "ensemble": "nvt",
    "temperature_K": 3000.0,
    "friction_per_ps": 100.0,
    "max_temperature_K": 1e5,
    "guard_every": 2,
    "log_every": 10,
    "frames_every": 20,
    "seed": 3,
    "device": "cpu",
}
BRIEF = RepairSettings(labels=4, updates=20, most=1)


def copper(seed: int, amount: float = 0.03):
    return rattled(bulk("Cu", cubic=True), amount, seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder, as far as a repair reads it: labels near the crystal, and a student."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = load_config(None, SMALL, device="cpu")
    folder.mkdir()
    fix_inputs(folder, config, {"teacher": EMT})
    teacher = TeacherCalculator(EMT, device="cpu")
    with teacher, open_labels(folder / "dataset", teacher.identity) as writer:
        frames = [copper(seed) for seed in range(12)]
        origins = [{"source": "test", "seed": k, "branch": 1} for k in range(12)]
        Labeler(writer, teacher)(frames, origins)
    train(folder / "dataset", folder.parent / "fit", config)
    shutil.copytree(folder.parent / "fit" / "student", folder / "student")
    return folder


@pytest.fixture(scope="module")
def limit(run):
    """Between what the simulation begins with and where it goes."""
    with pytest.warns(UserWarning, match="does not know"):
        met = run_md(copper(0), run, guard="warn", guard_limit=1e-6, **HOT).log
    first, last = met[0]["max_forces_error"], max(row["max_forces_error"] for row in met)
    assert last > 1.5 * first
    return first + 0.5 * (last - first)


PHASES = {
    "_label": repair._Repairs,
    "_train": repair._Repairs,
    "_certify": repair._Repairs,
    "hand_over": repair,
    "run_md": repair,
}


def mortal(run, limit, out, counts, dies_in, before) -> None:
    """A repaired simulation, killed as by -9 before a phase has changed the disk so many times.

    ``run_md`` is two: what is continued with a student of a repair is ``again``. One that is not
    killed leaves the number of changes of each in ``counts``.
    """
    phase, made = ["none"], Counter()

    def counted(real):
        def call(*arguments, **options):
            made[phase[-1]] += 1
            if phase[-1] == dies_in and made[dies_in] == before:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    def named(name, real):
        def call(*arguments, **options):
            is_repaired = name == "run_md" and "repairs" in str(arguments[1])
            phase.append("again" if is_repaired else name)
            try:
                return real(*arguments, **options)
            finally:
                phase.pop()

        return call

    for owner, name in ((os, "fsync"), (os, "unlink"), (Path, "replace")):
        setattr(owner, name, counted(getattr(owner, name)))
    for name, owner in PHASES.items():
        setattr(owner, name, named(name, getattr(owner, name)))
    torch.set_num_threads(1)
    settings = HOT | {"guard_limit": limit, "settings": BRIEF, "checkpoint_every_s": 0.0}
    with suppress(UntrustedError):  # after the last repair that is allowed
        run_with_repair(copper(0), run, out, **settings)
    counts.write_text(json.dumps(made))


@pytest.mark.slow
def test_a_simulation_is_repaired_and_continued_wherever_it_is_killed(run, limit, tmp_path, start):
    counts = tmp_path / "counts.json"

    def ends(name: str, dies_in: str = "", before: int = 0) -> int:
        out = tmp_path / f"{name}.extxyz"
        process = start(mortal, run, limit, out, counts, dies_in, before)
        process.join(timeout=240)
        return process.exitcode

    assert ends("straight") == 0
    changes = json.loads(counts.read_text())
    for phase in ("run_md", "_label", "_train", "_certify", "hand_over", "again"):
        assert ends("killed", phase, (changes[phase] + 1) // 2) == -signal.SIGKILL, phase
    assert ends("killed") == 0
    records = []
    for name in ("straight", "killed"):
        record = json.loads((tmp_path / f"{name}.students.json").read_text())["students"]
        header = read_header(tmp_path / f"{name}.checkpoint.safetensors")
        assert [one["from_step"] for one in record] == [0, record[0]["to_step"]]
        assert record[1]["to_step"] == header["step"]
        assert record[0]["student_sha256"] != record[1]["student_sha256"]
        assert record[1]["status"] in ("approved", "rejected")
        certificate = tmp_path / f"{name}.repairs" / "00" / "certificate.json"
        assert verify_certificate(certificate) == []
        records.append([{k: v for k, v in one.items() if k != "student"} for one in record])
    assert records[0] == records[1]
    for suffix in ("log.csv", "extxyz"):
        both = [(tmp_path / f"{name}.{suffix}").read_text() for name in ("straight", "killed")]
        assert both[0] == both[1]
    with pytest.raises(ConfigError, match="another simulation"):  # not the student of now
        run_md(copper(0), run, out=tmp_path / "killed.extxyz", guard="off", **HOT)


def test_a_repair_without_labels_to_rehearse_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="not a run whose labels"):
        run_with_repair(copper(0), run / "student", tmp_path / "md.extxyz", **HOT)
    assert run_of(run / "student") == run_of(run) == run


def test_the_command_finds_the_run_that_a_student_is_from(run, tmp_path, monkeypatch):
    def repaired(frames, folder, **settings):
        assert folder == run
        assert settings["student"] == run / "student"
        assert settings["settings"] == RepairSettings(7, 30, 2)
        raise UntrustedError("it still does not know")

    monkeypatch.setattr(repair, "run_with_repair", repaired)
    write(tmp_path / "cu.extxyz", copper(0))
    words = ("--student", run / "student", "--time-ps", 1, "--out", tmp_path / "md.extxyz")
    most = ("--repairs", 2, "--repair-labels", 7, "--repair-updates", 30)
    done = command("md", tmp_path / "cu.extxyz", *words, "--guard", "repair", *most)
    assert (done.returncode, "still does not know" in done.stderr) == (3, True)


@pytest.mark.filterwarnings("ignore:the student does not know")
def test_the_command_lets_a_teacher_take_over(run, tmp_path):
    write(tmp_path / "cu.extxyz", copper(0))
    words = ("--student", run, "--time-ps", 0.004, "--out", tmp_path / "md.extxyz")
    guard = ("--guard", "teacher", "--teacher", EMT, "--guard-limit", 1e-6, "--device", "cpu")
    done = command("md", tmp_path / "cu.extxyz", *words, *guard)
    assert done.returncode == 0, done.stderr
    assert "1 to 4" in done.stdout
