"""What a new student takes from data in which something is wrong or rare."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from tests.unit.students.labelled import labelled

from mlff_distiller.students.data import robust_fit
from mlff_distiller.students.nep_setup import NEPSettings, nep_for


@pytest.mark.parametrize("error", [50.0, 1e6, -1e6])
def test_one_wrong_energy_moves_no_reference_energy(error):
    rng = np.random.default_rng(0)
    composition = rng.integers(1, 9, (40, 2)).astype(float)
    energies = composition @ [-3.0, 5.0] + rng.normal(0, 0.01, 40)
    energies[7] += error
    assert robust_fit(composition, energies) == pytest.approx([-3.0, 5.0], abs=0.02)


def test_an_element_of_one_frame_keeps_a_reference_energy():
    composition = np.array([[4.0, 0.0]] * 20 + [[3.0, 1.0]])
    fit = robust_fit(composition, composition @ [-3.0, 50.0])
    assert fit == pytest.approx([-3.0, 50.0], abs=1e-6)


def test_one_wrong_energy_leaves_the_starting_scale():
    frames = labelled(bulk("Cu", cubic=True), 40)
    clean = nep_for(frames, NEPSettings(), 0)
    frames[5].labels["energy"] += 1e6
    spoilt = nep_for(frames, NEPSettings(), 0)
    assert spoilt.w1.norm().item() == pytest.approx(clean.w1.norm().item(), rel=0.5)


def test_an_element_that_is_in_no_probe_has_a_centre():
    copper = bulk("Cu", cubic=True)
    alloy: Atoms = copper.copy()
    alloy.symbols[0] = "Au"
    frames = labelled(copper, 129)
    frames[1:2] = labelled(alloy, 1)
    student = nep_for(frames, NEPSettings(), 0)
    assert torch.isfinite(student.q_center).all()
