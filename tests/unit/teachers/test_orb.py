"""Orb with random weights, against the library's own calculator, in each version at hand.

Name interpreters that have orb-models in MLFF_TEST_ORB_PYTHON, separated as in PATH.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import OrbTeacherCalculator, TeacherCalculator
from mlff_distiller.teachers.registry import parse_spec

NAMES = {
    "orb-v3-conservative-inf-omat": "float64",
    "orb-v3-direct-20-omat": "float32-highest",
    "orb-v2": "float32-highest",
    "orb-v3-conservative-omol": "float64",
}


def interpreters() -> list[str]:
    named = [path for path in os.environ.get("MLFF_TEST_ORB_PYTHON", "").split(os.pathsep) if path]
    here = [sys.executable] if importlib.util.find_spec("orb_models") else []
    return named or here


needs_orb = pytest.mark.skipif(
    not interpreters(), reason="no orb-models; name an interpreter in MLFF_TEST_ORB_PYTHON"
)


@pytest.fixture(scope="module")
def frames() -> list[Atoms]:
    silicon = bulk("Si", cubic=True)
    silicon.rattle(0.1, seed=1)
    silicon.set_cell(silicon.cell.array @ (np.eye(3) + 0.02), scale_atoms=True)
    ethanol = molecule("CH3CH2OH")
    ethanol.rattle(0.05, seed=2)
    ion = ethanol.copy()
    ion.info |= {"charge": 1, "spin": 2}
    return [silicon, ethanol, ion]


def ask_the_library(
    python: str, name: str, checkpoint: Path, precision: str, frames: list[Atoms]
) -> list[dict]:
    folder = checkpoint.parent
    rows = [
        {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.tolist(),
            "pbc": atoms.pbc.tolist(),
            "charge": float(atoms.info.get("charge", 0)),
            "spin": float(atoms.info.get("spin", 1)),
        }
        for atoms in frames
    ]
    (folder / "structures.json").write_text(json.dumps(rows))
    script = Path(__file__).with_name("orb_reference.py")
    command = [python, str(script), name, str(checkpoint), precision]
    command += [str(folder / "structures.json"), str(folder / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


@needs_orb
@pytest.mark.filterwarnings("ignore:.*takes no notice of")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("python", interpreters())
def test_as_the_librarys_own_calculator(tmp_path, frames, python, name):
    checkpoint = tmp_path / "random.ckpt"
    told = ask_the_library(python, name, checkpoint, NAMES[name], frames)
    options = {"python": None if python == sys.executable else python, "device": "cpu"}
    with OrbTeacherCalculator(
        name, weights=checkpoint, precision=NAMES[name], **options
    ) as teacher:
        single = teacher.label(frames, batch_size=1)
        batched = teacher.label(frames, batch_size=1000)
        identity = teacher.identity
    for atoms, answer, one, several in zip(frames, told, single, batched, strict=True):
        assert one.error is None, one.error
        assert float(one.labels["energy"]) == pytest.approx(
            answer["energy"], abs=1e-6 * len(atoms) + 1e-7 * abs(answer["energy"])
        )
        np.testing.assert_allclose(one.labels["forces"], answer["forces"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            several.labels["forces"], one.labels["forces"], rtol=1e-5, atol=1e-5
        )
        assert ("stress" in one.labels) == ("stress" in answer)
        if "stress" in answer:
            voigt = one.labels["stress"][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            np.testing.assert_allclose(voigt, answer["stress"], rtol=0, atol=1e-6)
    charged = np.abs(single[1].labels["forces"] - single[2].labels["forces"]).max() > 1e-4
    assert charged == ("omol" in name)
    assert identity.licence == "Apache-2.0"
    assert identity.settings["precision"] == NAMES[name]
    assert identity.weights_sha256 is not None


@needs_orb
@pytest.mark.parametrize("python", interpreters())
def test_slabs_have_no_image_across_the_vacuum(tmp_path, frames, python):
    checkpoint = tmp_path / "random.ckpt"
    name = "orb-v3-direct-20-omat"
    slab = bulk("Si", cubic=True)
    slab.rattle(0.05, seed=3)
    slab.pbc = [True, True, False]
    padded = slab.copy()
    padded.center(vacuum=15.0, axis=2)
    padded.pbc = True
    [expected] = ask_the_library(python, name, checkpoint, "float32-highest", [padded])
    with TeacherCalculator(
        f"{name}:{checkpoint},precision=float32-highest",
        python=None if python == sys.executable else python,
        device="cpu",
    ) as teacher:
        [answer] = teacher.label([slab])
    assert answer.error is None, answer.error
    np.testing.assert_allclose(answer.labels["forces"], expected["forces"], rtol=0, atol=1e-5)
    assert "stress" not in answer.labels


@needs_orb
@pytest.mark.parametrize("python", interpreters())
def test_public_weights_are_not_fetched_unasked(python):
    with (
        TeacherCalculator(
            "orb-v2", python=None if python == sys.executable else python, device="cpu"
        ) as teacher,
        pytest.raises(TeacherError, match="are not on this machine"),
    ):
        teacher.identity  # noqa: B018


def test_a_spec_holds_file_and_options(tmp_path):
    weights = tmp_path / "w.ckpt"
    weights.write_bytes(b"x")
    source = parse_spec(f"orb-v2:{weights},precision=float64,compile=true,max_num_neighbors=30")
    assert source.name == "orb-v2:w.ckpt"
    assert source.arguments == {
        "model": "orb-v2",
        "path": str(weights),
        "precision": "float64",
        "compile": True,
        "max_num_neighbors": 30,
    }
    assert parse_spec("orb-v2").arguments == {"model": "orb-v2", "path": None}
    calculator = OrbTeacherCalculator("orb-v2", weights=weights, precision="float64", compile=True)
    assert calculator.spec == f"orb-v2:{weights},precision=float64,compile=true"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("orb", "none is named"),
        ("orb-v2:nowhere.ckpt", "weights are missing"),
        ("orb-v2:precision=half", "unknown precision"),
        ("orb-v2:edge_method=guess", "unknown edge method"),
        ("orb-v2:compile=perhaps", "cannot understand"),
        ("orb-v2:colour=red", "cannot understand"),
        ("orb-v9", "did you mean"),
    ],
)
def test_mistakes_in_a_spec_are_named(spec, message):
    with pytest.raises(TeacherError, match=message):
        TeacherCalculator(spec)
