"""Teachers whose requirements clash, each in its own environment, both at work in one process.

SevenNet needs e3nn from 0.5 on, MACE pins 0.4.4: no environment holds both. Name interpreters in
MLFF_TEST_MACE_PYTHON and, unless sevenn is installed here, MLFF_TEST_SEVENNET_PYTHON.
"""

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.dataset import Dataset
from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import load_teacher


def interpreter(family: str, package: str) -> str | None:
    here = sys.executable if importlib.util.find_spec(package) else None
    return os.environ.get(f"MLFF_TEST_{family.upper()}_PYTHON") or here


MACE = interpreter("mace", "mace")
SEVENNET = interpreter("sevennet", "sevenn")
needs_both = pytest.mark.skipif(
    not (MACE and SEVENNET) or MACE == SEVENNET,
    reason="needs SevenNet, and MACE in another environment: name it in MLFF_TEST_MACE_PYTHON",
)


@pytest.fixture(scope="module")
def mace_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mace")
    (folder / "none.json").write_text("[]")
    model = folder / "random.model"
    script = Path(__file__).with_name("mace_reference.py")
    command = [MACE, script, model, "7", "float64", folder / "none.json", folder / "answers.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return model


def salt() -> Atoms:
    atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


def e3nn_of(python: str) -> str:
    code = "from importlib.metadata import version; print(version('e3nn'))"
    return subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


@needs_both
def test_two_teachers_that_no_environment_holds_together(mace_model):
    assert e3nn_of(MACE) != e3nn_of(SEVENNET)
    with (
        load_teacher("7net-0", python=SEVENNET, device="cpu") as sevennet,
        load_teacher(f"mace:{mace_model}", python=MACE, device="cpu") as mace,
    ):
        crystal, moved = salt(), salt()
        moved.rattle(0.05, seed=3)
        turns = [
            teacher.label([atoms])[0]
            for atoms in (crystal, moved, crystal)
            for teacher in (sevennet, mace)
        ]
        assert [answer.error for answer in turns] == [None] * 6
        for first, last in zip(turns[:2], turns[4:], strict=True):
            np.testing.assert_allclose(
                last.labels["forces"], first.labels["forces"], rtol=0, atol=1e-5
            )
            assert np.abs(last.labels["stress"]).max() > 1e-4
        assert abs(turns[0].labels["energy"] - turns[1].labels["energy"]) > 1.0
        assert sevennet._session.pid != mace._session.pid
        assert not {"mace", "sevenn", "e3nn"} & set(sys.modules)


@needs_both
def test_teacher_python_on_the_command_line(mace_model, tmp_path):
    write(tmp_path / "salt.extxyz", salt())
    command = ["label", str(tmp_path / "salt.extxyz"), "--teacher", f"mace:{mace_model}"]
    command += ["--teacher-python", MACE, "--out", str(tmp_path / "labels"), "--device", "cpu"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert len(Dataset(tmp_path / "labels")) == 1
    assert "1 of 1 labelled" in done.output


def test_a_package_missing_there_is_to_be_installed_there(tmp_path):
    """The line to run names that interpreter, and what the library needs, not our extras."""
    venv.create(tmp_path / "env", with_pip=False, system_site_packages=False)
    python = str(tmp_path / "env" / "bin" / "python")
    with pytest.raises(TeacherError) as caught:
        _ = load_teacher("mace-mp-0", python=python).identity
    assert f"{python} -m pip install numpy ase" in str(caught.value)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    packages = Path(importlib.util.find_spec("ase").origin).parents[1]  # ours: they lack MACE
    (site / "ours.pth").write_text(str(packages))
    if not importlib.util.find_spec("mace"):
        with pytest.raises(TeacherError) as caught:
            _ = load_teacher("mace-mp-0", python=python).identity
        assert "needs the Python package 'mace'" in str(caught.value)
        assert f"{python} -m pip install mace-torch" in str(caught.value)
