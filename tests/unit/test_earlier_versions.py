"""What earlier versions wrote is still read, continued and verified; see `artefacts/README.md`."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import read
from safetensors.numpy import load_file
from tests.helpers import ROOT, command

from mlff_distiller import StudentCalculator
from mlff_distiller.cli.options import REFUSED
from mlff_distiller.dataset import Dataset, verify

ARTEFACTS = sorted((ROOT / "tests" / "artefacts").glob("*.tar.xz"))


@pytest.fixture(scope="module", params=ARTEFACTS, ids=[path.name for path in ARTEFACTS])
def unpacked(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "work"
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def here(unpacked, tmp_path, monkeypatch) -> Path:
    """A copy to work in, the current folder."""
    folder = shutil.copytree(unpacked, tmp_path / "work")
    monkeypatch.chdir(folder)
    return folder


def made(folder: Path) -> dict:
    return json.loads((folder / "made.json").read_text())


def contents(*folders: Path) -> dict[Path, bytes]:
    files = [path for folder in folders for path in folder.rglob("*") if path.name != ".lock"]
    return {path: path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_students_predict_what_they_did(unpacked, backend):
    rows = made(unpacked)["predictions"]
    assert {row["student"] for row in rows} == {"run/student", "trained/student"}
    for row in rows:
        atoms = Atoms(row["numbers"], row["positions"], cell=row["cell"], pbc=True)
        student = unpacked / row["student"]
        atoms.calc = StudentCalculator(student, device="cpu", dtype="float64", backend=backend)
        assert atoms.get_potential_energy() == pytest.approx(row["energy"], abs=1e-7)
        assert atoms.get_forces() == pytest.approx(np.array(row["forces"]), abs=1e-7)
        assert atoms.get_stress() == pytest.approx(np.array(row["stress"]), abs=1e-8)


def test_a_dataset_gives_the_teachers_labels(unpacked):
    dataset = Dataset(unpacked / "run" / "dataset")
    assert verify(unpacked / "run" / "dataset").ok
    assert len(dataset) == 20
    for frame in dataset.read(np.arange(20)).to_atoms():
        again = frame.copy()
        again.calc = EMT()
        assert frame.get_potential_energy() == pytest.approx(again.get_potential_energy())
        assert frame.get_forces() == pytest.approx(again.get_forces(), abs=1e-5)  # kept in float32
        assert frame.get_stress() == pytest.approx(again.get_stress(), abs=1e-8)


@pytest.mark.parametrize(("path", "name"), [("run", "nep"), ("trained", "painn")])
def test_info_describes_a_run(unpacked, path, name):
    done = command("info", unpacked / path)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    assert "Cu" in done.stdout


def test_a_certificate_is_verified(here):
    done = command("validate", "--verify", "proof/certificate.json")
    assert done.returncode == 0, done.stderr
    assert "every hash is right" in done.stdout
    weights = here / "run" / "student" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    done = command("validate", "--verify", "proof/certificate.json")
    assert done.returncode == REFUSED
    assert "was changed: ../run/student/weights.safetensors" in done.stderr


def test_distill_again_shows_the_finished_report(here):
    (here / "copper.py").write_text("raise RuntimeError('nobody asks the teacher')\n")
    before = contents(here / "run")
    done = command(*made(here)["commands"]["distill"])
    assert done.returncode == REFUSED, done.stderr
    assert "test_forces_fidelity" in done.stdout
    assert "run/report.html" in done.stdout
    assert contents(here / "run") == before


def test_train_again_shows_the_errors(here):
    before = contents(here / "trained")
    errors = json.loads((here / "trained" / "errors.json").read_text())
    done = command(*made(here)["commands"]["train"])
    assert done.returncode == 0, done.stderr
    assert f"{errors['forces_mae_meV_per_A']:.4g}" in done.stdout
    assert contents(here / "trained") == before


def test_an_interrupted_training_ends(here):
    """As if the command had been killed between its last checkpoint and its student."""
    before = load_file(here / "trained" / "student" / "weights.safetensors")
    errors = json.loads((here / "trained" / "errors.json").read_text())
    shutil.rmtree(here / "trained" / "student")
    (here / "trained" / "errors.json").unlink()
    log = (here / "trained" / "log.jsonl").read_text()
    done = command(*made(here)["commands"]["train"])
    assert done.returncode == 0, done.stderr
    after = load_file(here / "trained" / "student" / "weights.safetensors")
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert json.loads((here / "trained" / "errors.json").read_text()) == pytest.approx(errors)
    assert (here / "trained" / "log.jsonl").read_text() == log


def test_a_simulation_goes_on_from_its_checkpoint(here):
    first, words = read("md.extxyz", ":"), made(here)["commands"]["whole"]
    log = Path("md.log.csv").read_text()
    done = command(*words[: words.index("--out")], "--out", "md.extxyz")
    assert done.returncode == 0, done.stderr
    assert Path("md.log.csv").read_text().startswith(log)
    whole, found = read("whole.extxyz", ":"), read("md.extxyz", ":")
    assert len(found) == len(whole) > len(first)
    for ours, theirs in zip(found, whole, strict=True):
        assert ours.info["step"] == theirs.info["step"]
        assert ours.cell.array == pytest.approx(theirs.cell.array, abs=1e-6)
        assert ours.positions == pytest.approx(theirs.positions, abs=1e-6)
