"""What a rejected run says first: that the structure it began with did not last."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from mlff_distiller.dataset import Dataset
from mlff_distiller.labeling import Labeler, open_labels
from mlff_distiller.teachers import load_teacher
from mlff_distiller.validation.accuracy import Compared, labels
from mlff_distiller.workflows.advice import of_start
from mlff_distiller.workflows.goal import Step, Turn
from mlff_distiller.workflows.turns import energy_fallen

TURN = Turn(0, Step("first", "nep", 300, 8000, ""), 300, 0.1, 0.1, 0.1, 0.0)


def test_a_structure_whose_energy_falls_beyond_thermal_motion_does_not_last():
    falls = replace(TURN, temperature_K=(300.0,), fell_eV_per_atom=0.2)
    [sentence] = of_start(falls)
    assert "falls by 0.2 eV/atom" in sentence
    assert "300 K has 0.039" in sentence
    assert not of_start(replace(falls, temperature_K=(300.0, 2000.0)))
    assert not of_start(replace(falls, fell_eV_per_atom=-0.04))  # vibrates about a minimum
    assert not of_start(TURN)  # an earlier version's


def test_the_fall_is_from_the_lowest_seed_of_the_frame_s_elements(tmp_path):
    near, far = bulk("Cu", cubic=True), bulk("Cu", cubic=True)
    far.positions[0] += 0.3
    folder = tmp_path / "dataset"
    given = {"seed": 0, "branch": 0}
    origins = [{**given, "source": source} for source in ("seed", "seed", "rattle")]
    with load_teacher(EMT()) as teacher, open_labels(folder, teacher.identity) as writer:
        Labeler(writer, teacher)([far, near, bulk("Cu", cubic=True, a=3.7)], origins)
    near.calc = EMT()
    lower = near.get_potential_energy() / 4 - 0.1
    frame, unknown = bulk("Cu", cubic=True), bulk("Cu")
    for atoms, energy in ((frame, 4 * lower), (unknown, -100.0)):
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((len(atoms), 3)))
    frames, known = [frame, unknown], Dataset(folder)
    own = Compared(frames, labels(frames), labels(frames))
    assert energy_fallen(known, own) == pytest.approx(0.1, abs=1e-6)
    assert energy_fallen(known, None) is None
    other = Compared([unknown], labels([unknown]), labels([unknown]))
    assert energy_fallen(known, other) is None
