"""Where a student's ZBL begins, when a user says so."""

import copy

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from tests.helpers import random_nep, random_painn
from tests.unit.students.labelled import energies, labelled

from mlff_distiller.errors import ConfigError
from mlff_distiller.students import set_repulsion
from mlff_distiller.workflows.config import load_config


@pytest.mark.parametrize("model", [random_nep, random_painn])
def test_only_the_pair_named_repels_from_elsewhere(model):
    student = model()  # from 1.3 Å
    moved = copy.deepcopy(student)
    set_repulsion(moved, {"O-H": 1.9})
    assert student.zbl[0][1][:2] == (0.6, 1.3)
    assert moved.zbl[0][1] == moved.zbl[1][0] == (0.95, 1.9, *student.zbl[0][1][2:])
    assert moved.zbl[0][0] == student.zbl[0][0]
    for pair, changes in (("OH", True), ("O2", False), ("H2", False)):
        dimer = Atoms(pair, [[0, 0, 0], [1.5, 0, 0]])
        assert (abs(energies(moved, dimer) - energies(student, dimer)) > 1e-3) is changes
    again = type(moved).from_config(moved.config())
    again.load_state_dict(moved.state_dict())
    again.eval()  # as the other: by the same operations
    dimer = Atoms("OH", [[0, 0, 0], [1.5, 0, 0]])
    assert energies(again, dimer) == energies(moved, dimer)


@pytest.mark.parametrize("name", ["nep", "painn-8x1"])
def test_a_setting_says_where(name):
    frames = labelled(molecule("C2H6"), 6)
    config = load_config(None, ["repulsion_A.C-C=1.3"], student=name)
    student, by_data = (
        config.new_student(frames),
        load_config(None, student=name).new_student(frames),
    )
    assert student.zbl[1][1][1] == 1.3 != by_data.zbl[1][1][1]
    assert student.zbl[0] == by_data.zbl[0]


@pytest.mark.parametrize("pair", ["H-N", "N-N"])
def test_a_pair_that_is_not_there(pair):
    with pytest.raises(ConfigError, match=rf"no repulsion of {pair}(?s:.*)such as H-O"):
        set_repulsion(random_nep(), {pair: 1.5})
    with pytest.raises(ConfigError, match="no repulsion of H-O"):
        set_repulsion(random_nep(zbl=False), {"H-O": 1.5})


@pytest.mark.parametrize(("model", "reach"), [(random_nep, 3.6), (random_painn, 4.5)])
def test_repulsion_ends_within_the_cutoff(model, reach):
    with pytest.raises(ConfigError, match=rf"at most {reach} Å"):
        set_repulsion(model(), {"O-O": reach + 0.01})
    student = model()
    set_repulsion(student, {"O-O": reach})
    assert student.zbl[1][1][1] == reach


@pytest.mark.parametrize("word", ["repulsion_A.HO=1.5", "repulsion_A.H-O=0"])
def test_a_pair_or_a_distance_that_is_none(word):
    with pytest.raises(ConfigError, match=r"repulsion_A\.H"):
        load_config(None, [word])


def test_a_student_in_double_precision_repels_with_all_digits():
    student = random_nep(("Si", "O"))
    exact = torch.tensor(student.zbl, dtype=torch.float64)
    assert (student.float().double().repulsion.table == exact).all()
    assert student.float().repulsion.table.dtype == torch.float32
