"""MACE with random weights, against the library's own calculator.

Name an interpreter that has mace-torch in MLFF_TEST_MACE_PYTHON; it may be another environment's.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import TeacherCalculator, load_teacher, registered_teachers
from mlff_distiller.teachers.registry import parse_spec
from mlff_distiller.testing import assert_teacher

HERE = sys.executable if importlib.util.find_spec("mace") else None
PYTHON = os.environ.get("MLFF_TEST_MACE_PYTHON") or HERE
OPTIONS = {"python": None if sys.executable == PYTHON else PYTHON, "device": "cpu"}

needs_mace = pytest.mark.skipif(
    not PYTHON, reason="no mace-torch; name an interpreter in MLFF_TEST_MACE_PYTHON"
)


def frames() -> list[Atoms]:
    """A crystal below the cutoff, a molecule, an ion of it, atoms in far images, one atom."""
    salt = bulk("NaCl", "rocksalt", 5.64)
    salt.rattle(0.1, seed=1)
    salt.set_cell(salt.cell.array @ [[1, 0.05, 0], [0, 1.02, 0.1], [0, 0, 0.97]], scale_atoms=True)
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.05, seed=2)
    ion = ethanol.copy()
    ion.info |= {"charge": 1, "spin": 2}
    far = salt * 2
    far.positions[3] += 2 * far.cell[0] - far.cell[2]
    return [salt, ethanol, ion, far, Atoms("C")]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Callable[[str, str], tuple[Path, list[dict]]]:
    """``library(kind, precision)``: a model, and the answers of the library's calculator."""
    folder = tmp_path_factory.mktemp("mace")
    known: dict[tuple[str, str], tuple[Path, list[dict]]] = {}

    def ask(kind: str, precision: str = "float64") -> tuple[Path, list[dict]]:
        if (kind, precision) in known:
            return known[kind, precision]
        model, structures = folder / f"{kind}.model", folder / "structures.json"
        rows = [
            {
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.tolist(),
                "pbc": atoms.pbc.tolist(),
                "charge": float(atoms.info.get("charge", 0)),
                "spin": float(atoms.info.get("spin", 1)),
            }
            for atoms in frames()
        ]
        structures.write_text(json.dumps(rows))
        command = [PYTHON, str(Path(__file__).with_name("mace_reference.py")), str(model), kind]
        command += [precision, str(structures), str(folder / "answers.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
        known[kind, precision] = model, json.loads((folder / "answers.json").read_text())
        return known[kind, precision]

    return ask


@pytest.fixture(scope="module")
def plain(library) -> Iterator[TeacherCalculator]:
    """One head, neither charge nor spin, float64."""
    model, _ = library("7")
    with load_teacher(f"mace:{model}", **OPTIONS) as teacher:
        yield teacher


@needs_mace
@pytest.mark.filterwarnings("ignore:.*takes no notice of")
@pytest.mark.parametrize(
    ("kind", "precision"),
    [("7", "float64"), ("7", "float32"), ("heads", "float64"), ("charged", "float64")],
)
def test_as_the_librarys_own_calculator(library, kind, precision):
    model, told = library(kind, precision)
    head = ",head=r2scan" if kind == "heads" else ""
    with load_teacher(f"mace:{model},precision={precision}{head}", **OPTIONS) as teacher:
        single = teacher.label(frames(), batch_size=1)
        batched = teacher.label(frames(), batch_size=1000)
        identity = teacher.identity
        assert teacher.elements == {1, 6, 8, 11, 14, 17}
    for answer, one, several in zip(told, single, batched, strict=True):
        assert one.error is None, one.error
        for found in (one.labels, several.labels):
            missed = abs(found["energies"].sum() - found["energy"]) if "energies" in found else 0.0
            assert missed < 1e-6 * len(one.atoms)
            assert ("energies" in found) == (kind != "charged")
        within = 1e-6 * len(one.atoms)
        assert float(one.labels["energy"]) == pytest.approx(answer["energy"], abs=within)
        assert float(several.labels["energy"]) == pytest.approx(answer["energy"], abs=within)
        for found in (one, several):
            np.testing.assert_allclose(found.labels["forces"], answer["forces"], rtol=0, atol=1e-5)
            assert ("stress" in found.labels) == ("stress" in answer)
        if "stress" in answer:
            voigt = one.labels["stress"][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            np.testing.assert_allclose(voigt, answer["stress"], rtol=0, atol=1e-6)
    assert np.abs(single[0].labels["forces"]).max() > 0.1
    assert np.abs(single[0].labels["stress"]).max() > 1e-3
    charged = np.abs(single[1].labels["forces"] - single[2].labels["forces"]).max() > 1e-4
    assert charged == (kind == "charged")
    assert identity.settings["precision"] == precision
    assert identity.settings["head"] == ("r2scan" if kind == "heads" else "Default")
    assert identity.licence == "see the model's source"
    assert len(identity.weights_sha256) == 64


@needs_mace
def test_keeps_the_laws(plain):
    assert_teacher(plain)


@needs_mace
def test_slabs_and_wires_have_no_image_across_the_vacuum(plain):
    """Whichever axis is open, and whichever way the lattice vectors point."""
    slab = bulk("Si", cubic=True)
    slab.rattle(0.05, seed=3)
    slab.set_cell(slab.cell.array[[2, 0, 1]])  # the first vector along z
    slab.set_cell(slab.cell.array @ [[1, 0.2, 0], [0, 1, 0.3], [0, 0, 1]], scale_atoms=True)
    pairs = []
    for pbc in ([False, True, True], [True, False, True], [True, False, False]):
        opened, padded = slab.copy(), slab.copy()
        opened.pbc = pbc
        for axis in np.flatnonzero(~np.array(pbc)):
            padded.center(vacuum=12.0, axis=int(axis))
        pairs += [opened, padded]
    answers = [answer.labels for answer in plain.label(pairs)]
    for opened, padded in zip(answers[::2], answers[1::2], strict=True):
        assert float(opened["energy"]) == pytest.approx(float(padded["energy"]), abs=1e-7)
        np.testing.assert_allclose(opened["forces"], padded["forces"], rtol=0, atol=1e-7)
        assert "stress" not in opened


@needs_mace
def test_a_committee_is_its_mean(library, plain):
    models = [library(seed)[0] for seed in ("7", "8")]
    atoms = frames()[1]
    with load_teacher(f"mace:{models[1]}", **OPTIONS) as other:
        alone = [teacher.label([atoms])[0] for teacher in (plain, other)]
    with load_teacher(f"mace:{models[0]},{models[1]}", **OPTIONS) as teacher:
        [both] = teacher.label([atoms])
        assert teacher.identity.name == "mace:7.model,8.model"
        assert teacher.identity.settings["members"] == 2
    forces = np.stack([answer.labels["forces"] for answer in alone])
    np.testing.assert_allclose(both.labels["forces"], forces.mean(0), atol=1e-9)
    assert both.labels["energy"] == pytest.approx(
        np.mean([answer.labels["energy"] for answer in alone])
    )
    shares = np.mean([answer.labels["energies"] for answer in alone], axis=0)
    np.testing.assert_allclose(both.labels["energies"], shares, atol=1e-9)
    spread = np.linalg.norm(forces[0] - forces[1], axis=1) / 2
    np.testing.assert_allclose(both.labels["forces_spread"], spread, atol=1e-9)


@needs_mace
def test_heads_are_named_not_guessed(library):
    model, _ = library("heads")
    for option, complaint in (
        ("", r"several heads[^$]*pbe[^$]*r2scan"),
        (",head=scan", r"no head 'scan'[^$]*r2scan"),
    ):
        with pytest.raises(TeacherError, match=complaint):
            _ = load_teacher(f"mace:{model}{option}", **OPTIONS).identity


@needs_mace
@pytest.mark.parametrize("name", ["mace-mp-0", "mace-off23-small", "mace-omol-0"])
def test_public_weights_are_not_fetched_unasked(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with (
        load_teacher(name, **OPTIONS) as teacher,
        pytest.raises(TeacherError, match="are not on this machine") as caught,
    ):
        teacher.identity  # noqa: B018
    assert str(tmp_path / "mace") in str(caught.value)
    assert ("ASL" in str(caught.value)) == (name != "mace-mp-0")


@needs_mace
def test_public_weights_are_found_in_the_librarys_cache(library, tmp_path, monkeypatch):
    """Under the name that the library itself would look for."""
    model, _ = library("7")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "mace").mkdir()
    for file in ("20231203mace128L1_epoch199model", "MACE-OFF23_small.model"):
        (tmp_path / "mace" / file).write_bytes(model.read_bytes())
    for name, loader, licence, precision in (
        ("mace-mp-0-medium", "mace_mp('medium', device='cpu')", "MIT", "float32"),
        ("mace-off23-small", "mace_off('small', device='cpu')", "ASL", "float64"),
    ):
        code = f"from mace.calculators import *; print('HEAD', {loader}.head)"
        done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=200)
        assert "HEAD Default" in done.stdout, done.stderr[-2000:]
        with load_teacher(name, **OPTIONS) as teacher:
            assert teacher.identity.name == name
            assert licence in teacher.identity.licence
            assert teacher.identity.settings["precision"] == precision


@needs_mace
def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(TeacherError, match="could not be loaded"):
        _ = load_teacher(f"mace:{tmp_path / 'text.model'}", **OPTIONS).identity


def test_a_spec_holds_files_and_options(tmp_path):
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"x")
    source = parse_spec(f"mace:{tmp_path}/a.model,{tmp_path}/b.model,precision=float64,head=pbe")
    assert source.name == "mace:a.model,b.model,head=pbe"
    assert source.arguments == {
        "model": "mace",
        "paths": [str(tmp_path / "a.model"), str(tmp_path / "b.model")],
        "precision": "float64",
        "head": "pbe",
    }
    assert parse_spec("mace-mp-0").arguments == {"model": "mace-mp-0-medium", "paths": []}
    names = {row.name for row in registered_teachers()}
    assert {"mace-mp-0-small", "mace-off23-large", "mace-mh-1"} <= names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mace", "none is named"),
        ("mace:precision=float64", "none is named"),
        ("mace:nowhere.model", "weights are missing"),
        ("mace-mp-0:precision=half", "unknown precision"),
        ("mace-mp-0:colour=red", "cannot understand"),
        ("mace-mp-0:head=", "cannot understand"),
        ("mace-mp-9", "did you mean"),
    ],
)
def test_mistakes_in_a_spec_are_named(spec, message):
    with pytest.raises(TeacherError, match=message):
        TeacherCalculator(spec)
