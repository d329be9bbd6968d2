"""Constraints of the structure hold in the runs of checks, and count there; nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
from ase.constraints import FixAtoms, FixedPlane
from tests.helpers import random_nep
from tests.unit.validation.faults import Pairs, argon
from tests.unit.validation.short import SHORT

from mlff_distiller import StudentCalculator
from mlff_distiller.dataset import structure_hash
from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.checks import conservation, density, thermostat, volume
from mlff_distiller.validation.remembering import Remembering
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.validate import NOTHING
from mlff_distiller.workflows.assess import known_of, structure_block


def subject(constraint, force_field=None, **settings):
    atoms = argon()
    atoms.set_constraint(constraint)
    settings = replace(SHORT, **settings)
    field = force_field or ForceField("argon", Pairs())
    return Subject(field, atoms, settings, ForceField("teacher", Pairs()))


def test_held_atoms_stay_in_every_run_and_have_no_temperature():
    one = subject(
        [FixAtoms(np.arange(8)), FixedPlane([9], (0, 0, 1))], time_ps=0.48, equilibration_ps=0.24
    )
    for run in (one.equilibrations[0], one.nve[0], one.nvt[0], one.teacher_run):
        assert run.completed
        moved = run.positions - one.atoms.positions
        assert not moved[:, :8].any()
        assert np.abs(moved[:, 9, 2]).max() < 1e-9
        assert np.abs(moved[-1, 9, :2]).max() > 1e-3
        assert run.n_degrees == 3 * len(one.atoms) - 25
    of_argon = thermostat.canonical(one.nvt[0]).elements_K["Ar"]
    assert of_argon.value == pytest.approx(one.nvt[0].temperatures.mean())
    assert set(conservation.INTEGRATION.made(one).findings) == {"nve_fluctuation_ratio"}
    assert not density.has_pressure(one)
    assert not volume.CHECK.applies(one)


def test_only_runs_know_of_constraints():
    held, free = subject(FixAtoms([0])), subject(None)
    assert not held.atoms.constraints
    assert free.start == free.atoms
    assert not free.start.constraints
    frame = held.start.copy()
    frame.rattle(0.1, seed=0)
    assert held.force_field.forces(frame)[0].any()


def test_a_student_is_moved_by_ase_where_the_device_cannot_hold():
    student = StudentCalculator(random_nep(["Ar"], seed=0), device="cpu")
    one = subject(FixedPlane([0], (0, 0, 1)), ForceField("student", student), equilibration_ps=0.08)
    run = one.equilibrations[0]
    assert run.completed
    assert np.abs(run.positions[:, 0, 2] - one.atoms.positions[0, 2]).max() < 1e-9
    assert np.abs(run.positions[-1, 0, :2] - one.atoms.positions[0, :2]).max() > 1e-4


def test_a_certificate_of_free_atoms_says_nothing_of_held_ones():
    held, free = subject(FixAtoms([0])), subject(None)
    blocks = [structure_block(one, NOTHING) for one in (held, free)]
    assert blocks[1]["sha256"] == structure_hash(free.atoms)
    certificate = {"settings": vars(held.settings), "dtype": "float32", "structures": blocks[:1]}
    for one, known in ((held, True), (free, False)):
        found, _ = known_of(certificate, one.start, held.settings, "float32")
        assert (found is not None) == known


def test_a_remembered_answer_is_one_of_the_same_charge():
    teacher, atoms = Remembering(Pairs()), argon()
    for charge in (0, 1, 1):
        atoms.info["charge"] = charge
        teacher.get_property("energy", atoms)
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    teacher.get_property("energy", atoms)
    assert teacher.n_computed == 3
