"""Students on disk: round trips, and files that must be refused."""

import json

import pytest
import torch
from ase.build import molecule
from tests.helpers import random_nep, random_painn

from mlff_distiller.batch import Batch
from mlff_distiller.errors import StudentError
from mlff_distiller.students import (
    load_student,
    read_config,
    read_nep,
    save_student,
    student_folder,
)


def water():
    return [Batch.from_atoms([molecule("H2O")])]


@pytest.fixture
def folder(tmp_path):
    student = random_nep().float()
    save_student(
        student, tmp_path / "student", about={"n_labels": 3}, card="# card\n", frames=water()
    )
    return tmp_path / "student"


def test_round_trip_is_exact(folder):
    student, again = random_nep().float(), load_student(folder)
    assert again.dtype == torch.float32
    for name, value in student.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.reference_energies.dtype == torch.float64
    assert json.dumps(again.config()) == json.dumps(student.config())
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "weights.safetensors",
        "README.md",
        "nep.txt",
    }


def test_what_other_programs_read_is_listed(folder):
    config = read_config(folder)
    assert set(config["exports"]) == {"nep.txt"}
    assert "GPUMD" in config["exports"]["nep.txt"]


def test_painn_comes_back_and_exports_nothing(tmp_path):
    student = random_painn(seed=3).float()
    save_student(student, tmp_path / "student", about={}, card="# card\n", frames=water())
    again = load_student(tmp_path / "student")
    assert again.dtype == torch.float32
    assert json.dumps(again.config()) == json.dumps(student.config())
    for name, value in student.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert {path.name for path in (tmp_path / "student").iterdir()} == {
        "config.json",
        "weights.safetensors",
        "README.md",
    }
    assert read_config(tmp_path / "student")["exports"] == {}


def test_reference_energies_stay_float64(folder):
    exact = torch.tensor([-1.23456789012345, -1036.987654321], dtype=torch.float64)
    student = random_nep()
    student.reference_energies.copy_(exact)
    assert torch.equal(student.float().half().double().reference_energies, exact)


def damage_schema(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "schema": 99}))


def damage_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": "os.system"}))


def flip(folder):
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-20] ^= 1
    (folder / "weights.safetensors").write_bytes(content)


def lie_in_header(folder):
    import hashlib

    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[:8] = (2**60).to_bytes(8, "little")
    (folder / "weights.safetensors").write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = hashlib.sha256(bytes(content)).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_schema, "schema 99"),
        (damage_architecture, "unknown architecture"),
        (flip, "does not belong to its config"),
        (lie_in_header, "damaged student"),
        (lambda folder: (folder / "config.json").unlink(), "is not a student"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "not one of ours"),
        (lambda folder: (folder / "weights.safetensors").unlink(), "damaged student"),
    ],
)
def test_damage_is_named(folder, damage, words):
    damage(folder)
    with pytest.raises(StudentError, match=words):
        load_student(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nep3 1 Si",
        "nep4 2 Si",
        "nep4 1 Xx\ncutoff 5 5 9 9\n",
        "nep4 1 Si\ncutoff 5 5 9 9\nn_max 4 4\nbasis_size 8 8\nl_max 4 2 1\nANN 10 0\n1.0\n2.0\n",
        "nep4 1 Si\ncutoff 5 5 9 9\nn_max 4 4\nbasis_size 8 8\nl_max 9 2 1\nANN 10 0\n",
        "\x80\x04pickle",
    ],
)
def test_files_that_are_no_nep(tmp_path, text):
    (tmp_path / "nep.txt").write_text(text)
    with pytest.raises(StudentError, match="not a readable NEP4"):
        read_nep(tmp_path / "nep.txt")


def test_extra_numbers_are_refused(folder):
    text = (folder / "nep.txt").read_text()
    read_nep(folder / "nep.txt")
    (folder / "nep.txt").write_text(text + "1.0\n")
    with pytest.raises(StudentError, match="numbers where"):
        read_nep(folder / "nep.txt")


def test_missing_file(tmp_path):
    with pytest.raises(StudentError, match="is not a student"):
        load_student(tmp_path / "nothing")


def test_a_run_is_taken_for_its_student(folder):
    run = folder.parent
    assert student_folder(run) == student_folder(folder) == folder
    assert load_student(run).elements == load_student(folder).elements
    assert read_config(run) == read_config(folder)
