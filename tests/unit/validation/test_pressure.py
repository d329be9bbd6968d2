"""Constant pressure: densities, the noise of a pressure, force fields that give way."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from tests.helpers import ROOT
from tests.unit.validation.faults import Pairs, argon
from tests.unit.validation.short import SHORT, UNWATCHED, failed

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, Trajectory
from mlff_distiller.validation.checks.density import (
    density_finding,
    pressure_deviation,
    pressure_run,
)
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.validate import validate

SOUND = ForceField("argon", Pairs())
LIMIT = 2.0
"""Percent of the density."""


def dense(field, atoms, settings, seed):
    """A run at constant pressure."""
    subject = Subject(field, atoms, replace(settings, kind="crystal"))
    return pressure_run(subject, field, atoms, settings.time_ps, seed)


class SameStudent(Calculator):
    """A student that is not known to be one, and so runs in ASE's loop."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, student):
        super().__init__()
        self.student = student

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.student.calculate(atoms)
        self.results = dict(self.student.results)


def test_students_and_other_calculators_agree_on_a_density():
    student = StudentCalculator(ROOT / "benchmarks" / "silicon" / "nep", device="cpu")
    silicon = bulk("Si", cubic=True, a=5.45)
    own = replace(SHORT, temperature_K=(300.0,), time_step_fs=2.0, time_ps=3.0)
    runs = [
        dense(ForceField("it", one), silicon, own, 0) for one in (student, SameStudent(student))
    ]
    assert all(run.completed for run in runs), runs[0].why + runs[1].why
    found = density_finding(*runs, LIMIT)
    assert found.value is not None, found.words
    assert found.value < 0.2
    assert runs[0].density.mean() == pytest.approx(2.29, abs=0.02)


def test_another_density_is_beyond_noise():
    class Wider(Pairs):
        def potential(self, r):
            energy, slope = super().potential(r / 1.03)
            return energy, slope / 1.03

    long = replace(SHORT, time_ps=3.0, time_step_fs=10.0)
    mine, same = (dense(SOUND, argon(), long, seed) for seed in (0, 1))
    theirs = dense(ForceField("wider", Wider()), argon(), long, 2)
    assert density_finding(mine, same, LIMIT).value < 1.0
    found = density_finding(mine, theirs, LIMIT)
    assert 3.0 < found.value < 10.0
    assert "g/cm³" in found.words
    brief = replace(long, time_ps=0.1)
    assert density_finding(dense(SOUND, argon(), brief, 0), same, LIMIT).value is None
    assert density_finding(mine, same, 0.01).value is None  # noise is 30 times what is allowed
    assert density_finding(None, same, LIMIT).words == "a run broke off"


def test_noise_of_the_pressure_weighs_against_the_stiffness():
    rng = np.random.default_rng(0)
    series = 4.0 * rng.normal(size=100)  # known to ± 0.4 GPa
    soft = Ensemble(ensemble="npt", compressibility_per_GPa=0.3)
    nothing = np.empty((100, 0, 3))
    run = Trajectory(
        *(argon(), soft, 1.0, 100, True, series, nothing, nothing, series), pressure_GPa=series
    )
    assert pressure_deviation(run, 0.05).value is None
    assert "run longer" in pressure_deviation(run, 0.05).words
    stiff = replace(run, ensemble=replace(soft, compressibility_per_GPa=0.01))
    assert pressure_deviation(stiff, 0.05).value == 0.0
    off = replace(run, pressure_GPa=series + 3.0)
    assert pressure_deviation(off, 0.05).value > 1.0


def test_pressure_is_measured_where_there_is_one():
    report = validate(SOUND, argon(), UNWATCHED)
    assert report["measurements"]["pressure"]["target_GPa"] == 0.0
    density, error = report["measurements"]["pressure"]["density_g_per_cm3"]
    assert density == pytest.approx(1.68, abs=0.05)
    assert 0 < error < 0.05
    names = {check["name"] for check in report["verdict"]["checks"]}
    assert {"npt_completed", "npt_pressure_deviation_GPa"} <= names
    without = validate(SOUND, argon(), replace(UNWATCHED, time_ps=0.2, pressure_GPa=None))
    assert "npt_completed" not in {check["name"] for check in without["verdict"]["checks"]}


class Tense(Pairs):
    """An energy of -0.5 GPa · V: forces and stress are its derivatives, and nothing holds it."""

    def spoil(self, atoms):
        if atoms.cell.rank < 3:
            return
        push = 0.5 * units.GPa
        self.results["energy"] -= push * atoms.get_volume()
        self.results["stress"] -= push * np.array([1, 1, 1, 0, 0, 0])


def test_a_force_field_that_gives_way_under_pressure_is_rejected():
    report = validate(ForceField("it", Tense()), argon(), SHORT)
    assert failed(report) == {"npt_completed", "npt_pressure_deviation_GPa"}
    assert any(
        "constant-pressure run ended early" in reason for reason in report["verdict"]["reasons"]
    )


def test_molecules_and_slabs_have_no_pressure():
    slab = argon()
    slab.set_cell(slab.cell.array + np.diag([0, 0, 12.0]))
    for atoms in (Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]), slab):
        run = validate(SOUND, atoms, replace(UNWATCHED, time_ps=0.2))
        assert "pressure" not in run["measurements"]
        assert "npt_completed" not in {check["name"] for check in run["verdict"]["checks"]}
