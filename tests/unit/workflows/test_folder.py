"""Folders of runs: what a mistake leaves, who writes, and files that are damaged."""

import errno
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from tests.helpers import ROOT, command, random_nep, rattled

from mlff_distiller.cli.options import REFUSED
from mlff_distiller.dataset import DatasetWriter
from mlff_distiller.durable import EventLog, Lock, claimed, new_path, read_json
from mlff_distiller.errors import ConfigError
from mlff_distiller.students import save_student
from mlff_distiller.validation.certificate import certified, write_certificate
from mlff_distiller.workflows.config import Config, load_config, read_yaml
from mlff_distiller.workflows.distill import distill
from mlff_distiller.workflows.folder import as_begun, fix_inputs
from mlff_distiller.workflows.sample import sample

EMT = "ase:ase.calculators.emt:EMT"
[ARTEFACT] = sorted((ROOT / "tests" / "artefacts").glob("b9b7aa4.tar.xz"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "work"
    with tarfile.open(ARTEFACT) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def here(unpacked, tmp_path, monkeypatch) -> Path:
    folder = shutil.copytree(unpacked, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


# -- mistakes ---------------------------------------------------------------------------------


def test_a_teacher_that_is_misspelt_leaves_no_folder(tmp_path):
    write(tmp_path / "cu.extxyz", bulk("Cu"))
    done = command(
        "distill", tmp_path / "cu.extxyz", "--teacher", "7nt-0", "--out", tmp_path / "run"
    )
    assert done.returncode == 1
    assert "7net-0" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_cannot_start_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="there is no module"):
        distill([bulk("Cu")], "ase:missing_module:Thing", "run")
    assert not Path("run").exists()


def test_an_earlier_run_goes_on_holding_out_what_it_did(here, tmp_path):
    """Else what its student trained on could come to test it."""
    content = (here / "trained" / "config.yaml").read_text()
    assert "held_out" not in content
    assert as_begun(here / "trained", Config()).held_out == "all"
    assert as_begun(tmp_path / "none", Config()).held_out == "in_reach"
    for chosen in ("in_reach", "all"):
        own = tmp_path / chosen
        fix_inputs(own, Config(held_out=chosen), {"teacher": "a"})
        assert as_begun(own, Config(held_out=chosen)).held_out == chosen
    (tmp_path / "in_reach" / "student").mkdir()
    with pytest.raises(ConfigError, match="held_out: in_reach -> all"):
        fix_inputs(tmp_path / "in_reach", Config(held_out="all"), {"teacher": "a"})


def test_inputs_without_labels_are_replaced(tmp_path):
    fix_inputs(tmp_path, Config(), {"teacher": "a"})
    with DatasetWriter(tmp_path / "dataset", {"teacher": "a"}):
        EventLog(tmp_path / "dataset" / "quarantine.jsonl").write("label_failed", key="x")
    fix_inputs(tmp_path, Config(labels=20), {"teacher": "b"})
    assert read_yaml(tmp_path / "config.yaml")["inputs"] == {"teacher": "b"}
    with DatasetWriter(tmp_path / "dataset", {"teacher": "b"}):
        assert not (tmp_path / "dataset" / "quarantine.jsonl").exists()


@pytest.mark.parametrize("paid", ["dataset/000000-0.h5", "checkpoint.safetensors", "student/a"])
def test_inputs_with_which_something_was_made_are_kept(tmp_path, paid):
    fix_inputs(tmp_path, Config(), {"teacher": "a"})
    (tmp_path / paid).parent.mkdir(exist_ok=True)
    (tmp_path / paid).touch()
    with pytest.raises(ConfigError, match=r"(?s)other inputs.*a -> b"):
        fix_inputs(tmp_path, Config(), {"teacher": "b"})


def test_another_programs_settings_are_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {layers: 3}\n")
    with pytest.raises(ConfigError, match="not one of ours"):
        fix_inputs(tmp_path, Config(), {})
    assert "layers" in (tmp_path / "config.yaml").read_text()


def _commands(folder: Path, out: Path) -> list[list[object]]:
    write(folder / "cu.extxyz", rattled(bulk("Cu", cubic=True)))
    save_student(random_nep(("Cu",)), folder / "student", about={}, card="", frames=[])
    with DatasetWriter(folder / "labels", {}):
        pass
    teacher, student = (
        ("--teacher", "ase:ase.calculators.emt:EMT"),
        ("--student", folder / "student"),
    )
    cu, labels = folder / "cu.extxyz", folder / "labels"
    return [
        ["distill", cu, *teacher, "--out", out],
        ["train", labels, "--out", out],
        ["label", cu, *teacher, "--out", out],
        ["sample", cu, *student, "--method", "md", "--out", out],
        ["validate", cu, *student, "--out", out],
        ["benchmark", *student, "--out", out],
        ["profile", *student, "--out", out],
        ["data", "export", labels, "--out", out],
        ["data", "merge", labels, labels, "--out", out],
        ["data", "select", labels, "-n", "1", "--out", out],
        ["data", "import", cu, "--out", out],
    ]


NAMES = [
    *("distill", "train", "label", "sample", "validate", "benchmark", "profile", "data-export"),
    *("data-merge", "data-select", "data-import"),
]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_file_in_the_way_is_named(tmp_path, number):
    (out := tmp_path / "out").write_text("mine")
    done = command(*_commands(tmp_path, out)[number])
    assert done.returncode == 1
    assert str(out) in done.stderr or "fewer labels" in done.stderr
    assert out.read_text() == "mine"


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 10])
def test_a_second_writer_is_refused(tmp_path, number):
    words = _commands(tmp_path, out := tmp_path / "out")[number]
    if NAMES[number] not in ("sample", "data-export", "data-merge"):
        out.mkdir()
    with Lock(out):
        done = command(*words)
    assert done.returncode == 1
    assert f"process {os.getpid()} on" in done.stderr


@pytest.mark.parametrize("number", [0, 2, 3, 4])
def test_a_structure_without_sense_is_named_before_anything_runs(tmp_path, number):
    words = _commands(tmp_path, tmp_path / "out")[number]
    atoms = read(tmp_path / "cu.extxyz")
    atoms.positions[1, 0] = np.nan
    write(tmp_path / "cu.extxyz", atoms)
    done = command(*words)
    assert done.returncode == (REFUSED if words[0] == "label" else 1)
    assert "atom 1 is not finite" in done.stdout + done.stderr


# -- what the disk refuses ------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 6, 7, 8, 10])
@pytest.mark.parametrize("refusal", [errno.ENOSPC, errno.EROFS])
def test_what_the_disk_refuses_is_an_error_of_ours(tmp_path, monkeypatch, number, refusal):
    words, name = _commands(tmp_path, tmp_path / "out")[number], NAMES[number]

    def refuse(*arguments, **options):
        raise OSError(refusal, os.strerror(refusal), str(arguments[0]))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    done = command(*words)
    assert done.returncode == 1, name
    assert os.strerror(refusal) in done.stderr
    assert "remedy" in done.stderr
    assert not (tmp_path / "out").exists()


def test_frames_that_do_not_fit_on_the_disk_leave_no_half(tmp_path, monkeypatch):
    out, opened = tmp_path / "new.extxyz", Path.open

    class Full(io.TextIOWrapper):
        def write(self, text):
            super().write(text[:20])
            self.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(path, mode="r", *rest, **options):
        stream = opened(path, mode, *rest, **options)
        return Full(stream.detach()) if path == out and "a" in mode else stream

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        sample(
            [bulk("Cu", cubic=True)], out, "tree", number=2, teacher="ase:ase.calculators.emt:EMT"
        )
    assert not out.exists()


def test_a_folder_that_is_claimed_in_vain_goes_again(tmp_path):
    with pytest.raises(KeyError), claimed(tmp_path / "a"):
        raise KeyError
    with claimed(tmp_path / "b"):
        (tmp_path / "b" / "kept").touch()
    (tmp_path / "c").mkdir()
    with claimed(tmp_path / "c"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    with pytest.raises(ConfigError, match="exists"), new_path(tmp_path / "c"):
        pass


# -- damage -----------------------------------------------------------------------------------

DAMAGE = {
    "half": lambda content: content[: len(content) // 2],
    "one byte": lambda content: content[:1],
    "zeroed tail": lambda content: content[: len(content) // 2] + bytes(len(content) // 2),
    "empty": lambda content: b"",
    "text": lambda content: b"hello \xff\xfe world",
    "swapped": lambda content: content[len(content) // 2 :] + content[: len(content) // 2],
    "list": lambda content: b"[1, 2]",
    "null": lambda content: b"null",
    "object": lambda content: b'{"schema": 1}',
    "deep": lambda content: b"[" * 10**5,
    "garbage behind": lambda content: content + b"\0garbage",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("run/report.json", "distill"),
        ("run/log.jsonl", "distill"),
        ("run/config.yaml", "distill"),
        ("trained/errors.json", "train"),
        ("trained/log.jsonl", "train"),
        ("trained/config.yaml", "train"),
        ("trained/student/config.json", "train"),
        ("trained/student/config.json", "info"),
        ("trained/checkpoint.safetensors", "train"),
    ],
)
def test_a_damaged_file_is_named_or_made_anew(here, monkeypatch, file, name, damage):
    words = json.loads((here / "made.json").read_text())["commands"]
    path = here / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    if name == "distill":
        (here / "copper.py").write_text("raise RuntimeError('asked')\n")
    if path.suffix == ".safetensors":
        shutil.rmtree(here / "trained" / "student")
    done = command(*(["info", "trained"] if name == "info" else words[name]))
    if damage == "zeroed tail" and path.suffix == ".safetensors":
        return  # checkpoints of that version have no checksum
    if done.returncode not in (0, REFUSED):  # a run whose student is rejected goes on as it is
        assert any(word in done.stderr for word in (path.name, "asked", "other inputs"))
    else:
        assert path.suffix == ".jsonl" or json.loads(path.read_bytes())


@pytest.mark.parametrize("damage", DAMAGE)
def test_validate_goes_on_from_no_damaged_certificate(tmp_path, damage):
    student, series, path = (tmp_path / name for name in ("weights", "series.json", "c.json"))
    student.write_bytes(b"1")
    series.write_text('{"drawn": [1, 2, 3]}')
    write_certificate(path, {"verdict": 1}, {"weights": student, "series": series})
    wanted = {"verdict": 1}, {"weights": student}, {"series": series}
    assert certified(path, *wanted)
    for file in (series, path):
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
        with pytest.raises(ConfigError, match=file.name):
            certified(path, *wanted)
    path.unlink()
    assert certified(path, *wanted) is None


def test_a_link_to_nothing_is_no_missing_file(tmp_path):
    assert read_json(tmp_path / "a.json") == {}
    (tmp_path / "a.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="a link to nothing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(ConfigError, match=r"b\.json is damaged"):
        read_json(tmp_path / "b.json")


def test_events_of_another_form_are_left_out(tmp_path):
    log = EventLog(tmp_path / "log.jsonl")
    log.path.write_bytes(b"[1]\nnull\n\xff\n" + b"[" * 10**5 + b'\n{"stage": "train"}\n')
    log.write("train", updates=3)
    assert [row["updates"] for row in log.rows("train", "updates")] == [3]


# -- settings ---------------------------------------------------------------------------------

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [" + ", ".join([f"*{old}"] * 10) + "]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "x: [" + BOMB.replace("\n", "\n  ") + "]",
        "a: &a [*a]",
        "labels: " + "[" * 10**4,
        "a: " + "{b: " * 40 + "1" + "}" * 40,
        "labels: " + "9" * 5000,
        "labels: " + "9" * 30,
        "sampling: {temperature_K: []}",
        "dynamics: {pressures_GPa: []}",
        "evaluation: {speed_sizes: []}",
        "sampling: {temperature_K: [.inf]}",
        "training: {learning_rate: .nan}",
        "# " + "x" * 10**6,
        "labels: \0",
    ],
)
def test_settings_that_no_memory_holds_are_refused_at_once(tmp_path, text):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "settings.yaml")


def test_an_alias_of_a_setting_is_read(tmp_path):
    text = "sampling: &s {temperature_K: [300, 600]}\nlabels: 50\n"
    (tmp_path / "settings.yaml").write_text(text)
    assert load_config(tmp_path / "settings.yaml").sampling.temperature_K == (300, 600)
    with pytest.raises(ConfigError, match="5,000 digits"):
        load_config(None, ["labels=" + "9" * 5000])
