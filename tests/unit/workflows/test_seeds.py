"""What a run begins with: strained structures are relaxed to a minimum, others are left alone."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from mlff_distiller.durable import EventLog
from mlff_distiller.sampling import RattleSettings
from mlff_distiller.teachers import load_teacher
from mlff_distiller.workflows.seeds import ready_seeds


def ready(folder, atoms, on_progress=lambda *news: None, **settings):
    log, rattle = EventLog(folder / "log.jsonl"), RattleSettings(**settings)
    with load_teacher(EMT()) as teacher:
        [found], words = ready_seeds(folder, [atoms], teacher, rattle, log, on_progress)
    found.calc = EMT()
    return found, words


def misplaced():
    """Copper, one of whose four atoms is 1 Å from its place."""
    atoms = bulk("Cu", cubic=True)
    atoms.positions[3] += (-0.7, -0.7, 0.1)
    return atoms


def test_a_strained_crystal_is_relaxed_to_a_minimum_and_what_that_took_is_said(tmp_path):
    shown = []
    found, [words] = ready(tmp_path, misplaced(), lambda *news: shown.append(news))
    assert shown[-1][:3] == ("relax", len(shown) - 1, 300)
    assert shown[-1][3] == "0.071 eV/Å"
    assert np.linalg.norm(found.get_forces(), axis=1).max() < 0.11
    crystal = bulk("Cu", cubic=True)
    crystal.calc = EMT()
    energy = found.get_potential_energy() / len(found)
    assert energy == pytest.approx(crystal.get_potential_energy() / 4, abs=0.002)
    assert "structure 0 (Cu4): forces of up to" in words
    assert "atoms moved by up to 0.78 Å" in words
    assert "the energy fell by" in words


def test_a_saddle_point_is_not_taken_for_a_minimum(tmp_path):
    cube = Atoms("Cu8", list(itertools.product((0.0, 1.9), repeat=3)))
    found, _ = ready(tmp_path, cube)
    assert found.get_potential_energy() < 8 * 0.98  # the cube of best length has 1.06 eV/atom


def test_structures_with_forces_of_thermal_motion_stay_as_they_are(tmp_path):
    warm = bulk("Cu", cubic=True) * 2
    warm.rattle(0.1, seed=0)
    found, words = ready(tmp_path, warm)
    assert np.array_equal(found.positions, warm.positions)
    assert not words
    kept, words = ready(tmp_path, misplaced(), relax_above_eV_per_A=None, min_atoms=4)
    assert np.array_equal(kept.positions, misplaced().positions)
    assert not words
