"""What ``import mlff_distiller`` offers: its names, and calculators and structures as objects."""

import inspect
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import version

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from tests.helpers import random_nep

import mlff_distiller
from mlff_distiller.dataset import Dataset
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import ConfigError, DatasetError, TeacherError
from mlff_distiller.md import Ensemble
from mlff_distiller.teachers import load_teacher
from mlff_distiller.workflows.seeds import read_seeds

NAMES = {"Config", "distill", "label", "run_md", "sample", "train", "validate"}


def copper(size: int = 2, seed: int = 0) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat((size, 1, 1))
    atoms.rattle(0.02, seed=seed)
    return atoms


class Spring(Calculator):
    """A force towards where a tensor says; its parameters do not tell how strong."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, strength: float):
        super().__init__()
        self.models = [torch.nn.Linear(1, 1, bias=False)]
        torch.nn.init.constant_(self.models[0].weight, strength)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if len(atoms) == 1:
            raise ValueError("alone")
        strength = float(self.models[0].weight.detach())
        energy = 0.5 * strength * float((atoms.positions**2).sum())
        self.results = {"energy": energy, "forces": -strength * atoms.positions}


def test_names_are_listed_before_they_are_imported():
    script = (
        "import sys, mlff_distiller as m; names = dir(m); assert 'torch' not in sys.modules;"
        "assert m.__version__; assert 'torch' not in sys.modules; print(*names)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert NAMES | {"__version__", "StudentCalculator"} <= set(told.stdout.split()), told.stderr
    assert mlff_distiller.__version__ == version("mlff-distiller")
    for name in mlff_distiller.__all__:
        assert getattr(mlff_distiller, name)
        assert getattr(mlff_distiller, name).__doc__


def test_run_md_shows_every_setting_with_the_default_of_the_ensemble():
    shown = inspect.signature(mlff_distiller.run_md).parameters
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())
    usual = Ensemble(seed=1)
    for one in fields(Ensemble):
        if one.name != "seed":
            told = Ensemble(seed=1, **{one.name: shown[one.name].default})
            assert getattr(told, one.name) == getattr(usual, one.name), one.name
    assert shown["seed"].default is None


def test_a_calculator_object_labels_as_its_spec_does(tmp_path):
    frames = [copper(1), copper(2, 1)]
    own = mlff_distiller.label(frames, EMT(), tmp_path / "own")
    spec = mlff_distiller.label(frames, "ase:ase.calculators.emt:EMT", tmp_path / "spec")
    assert (own.n_labelled, own.findings) == (spec.n_labelled, spec.findings) == (2, [])
    folders = Dataset(tmp_path / "own"), Dataset(tmp_path / "spec")
    assert folders[0].metadata["teacher"] == folders[1].metadata["teacher"]
    for mine, theirs in zip(*(folder.read(range(2)).systems() for folder in folders), strict=True):
        for name, value in mine.labels.items():
            torch.testing.assert_close(value, theirs.labels[name], equal_nan=True)
    assert mlff_distiller.label(frames[0], EMT(), tmp_path / "one").n_structures == 1
    with pytest.raises(ConfigError, match="several workers"):
        mlff_distiller.label(frames, EMT(), tmp_path / "many", workers=2)


def test_weights_tell_calculators_of_one_class_apart(tmp_path):
    mlff_distiller.label(copper(), Spring(1.0), tmp_path / "labels")
    mlff_distiller.label(copper(), Spring(1.0), tmp_path / "labels")
    with pytest.raises(DatasetError, match="weights_sha256"):
        mlff_distiller.label(copper(), Spring(2.0), tmp_path / "labels")


def test_a_calculator_that_fails_is_asked_again():
    teacher = load_teacher(Spring(1.0))
    assert load_teacher(teacher) is teacher
    bad, good = teacher.label([Atoms("H"), copper()])
    assert bad.labels is None
    assert "ValueError: alone" in bad.error
    np.testing.assert_array_equal(good.labels["forces"], -copper().positions)
    with pytest.raises(TeacherError, match="another interpreter"):
        load_teacher(Spring(1.0), python="python3")


def test_one_structure_is_a_list_of_one():
    assert read_seeds(copper()) == read_seeds([copper()])


def test_sample_takes_a_student_as_a_teacher(tmp_path):
    source = StudentCalculator(random_nep(), device="cpu")
    made = mlff_distiller.sample(molecule("H2O"), tmp_path / "new.xyz", number=3, teacher=source)
    assert len(made) == 3
