"""Constant pressure: an ideal gas, argon on both integrators' equation, cells that give way."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from tests.helpers import ROOT
from tests.unit.validation.faults import Pairs, argon
from tests.unit.validation.short import SHORT, failed

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md import Ensemble
from mlff_distiller.md.statistics import mean
from mlff_distiller.validation.pressure import (
    PressureRun,
    at_constant_pressure,
    compressibility,
)
from mlff_distiller.validation.pressure_checks import (
    density_finding,
    pressure_deviation,
    pressure_run,
)
from mlff_distiller.validation.trajectory import ForceField
from mlff_distiller.validation.validate import validate

SOUND = ForceField("argon", Pairs())


class Nothing(Calculator):
    """No forces: an ideal gas."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        zero = np.zeros((len(atoms), 3))
        self.results = {"energy": 0.0, "forces": zero, "stress": np.zeros(6)}


def test_the_volume_of_an_ideal_gas_has_its_distribution():
    n, kelvin, gigapascal = 40, 300.0, 0.02
    expected = (n + 1) * units.kB * kelvin / (gigapascal * units.GPa)  # p(V) = V^n exp(-PV/kT)
    gas = Atoms(f"Ar{n}", cell=np.eye(3) * expected ** (1 / 3), pbc=True)
    settings = Ensemble(
        ensemble="npt",
        temperature_K=kelvin,
        pressure_GPa=gigapascal,
        time_step_fs=5.0,
        friction_per_ps=20.0,
        barostat_time_fs=100.0,
        compressibility_per_GPa=1 / gigapascal,
    )
    run = at_constant_pressure(ForceField("gas", Nothing()), gas, settings, 12_000, 4)
    assert run.completed, run.why
    volume, pressure = mean(run.volume), mean(run.pressure_GPa)
    assert abs(volume.value - expected) < 4 * volume.error
    assert volume.error < 0.04 * expected
    assert run.volume.std() / expected == pytest.approx((n + 1) ** -0.5, rel=0.15)
    assert pressure.beyond_noise(gigapascal) < 1e-4
    grams = n * 39.95 / 6.02214e23
    assert run.density[0] == pytest.approx(grams / (run.volume[0] * 1e-24), rel=1e-3)


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
        pressure_run(ForceField("it", one), silicon, own, 0)
        for one in (student, SameStudent(student))
    ]
    assert all(run.completed for run in runs), runs[0].why + runs[1].why
    found = density_finding(*runs, own)
    assert found.value is not None, found.words
    assert found.value < 0.2
    assert runs[0].density.mean() == pytest.approx(2.29, abs=0.02)


def test_compressibility():
    assert compressibility(SOUND, argon()) == pytest.approx(1 / 3.0, rel=0.2)
    assert compressibility(ForceField("gas", Nothing()), argon()) == 1.0

    class Springs(Calculator):
        """Stiff bonds in hydrogen molecules, none between them."""

        implemented_properties = ("energy",)

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            length = atoms.get_distance(0, 1, mic=True)
            self.results = {"energy": 1e4 * (length - 0.74) ** 2}

    pair = Atoms("H2H2", [[3.9, 1, 1], [0.64, 1, 1], [1, 3, 3], [1.74, 3, 3]], cell=[4] * 3, pbc=1)
    assert compressibility(ForceField("springs", Springs()), pair) == 1.0


def test_a_cell_that_bursts_or_collapses():
    class Pushing(Pairs):
        def spoil(self, atoms):
            self.results["stress"] = -0.1 * np.array([1, 1, 1, 0, 0, 0])

    settings = Ensemble(
        ensemble="npt",
        temperature_K=40,
        time_step_fs=5.0,
        barostat_time_fs=100.0,
        compressibility_per_GPa=0.3,
    )
    run = at_constant_pressure(ForceField("it", Pushing()), argon(), settings, 200, 2)
    assert not run.completed
    assert "burst" in run.why
    squeezed = replace(settings, pressure_GPa=100.0)
    run = at_constant_pressure(ForceField("gas", Nothing()), argon(), squeezed, 200, 2)
    assert "collapsed" in run.why


def test_another_density_is_beyond_noise():
    class Wider(Pairs):
        def potential(self, r):
            energy, slope = super().potential(r / 1.03)
            return energy, slope / 1.03

    long = replace(SHORT, time_ps=3.0, time_step_fs=10.0)
    mine, same = (pressure_run(SOUND, argon(), long, seed) for seed in (0, 1))
    theirs = pressure_run(ForceField("wider", Wider()), argon(), long, 2)
    assert density_finding(mine, same, long).value < 1.0
    found = density_finding(mine, theirs, long)
    assert 3.0 < found.value < 10.0
    assert "g/cm³" in found.words
    brief = replace(long, time_ps=0.1)
    assert density_finding(pressure_run(SOUND, argon(), brief, 0), same, brief).value is None
    strict = replace(long, limits={"density_difference_percent": 0.01})
    assert density_finding(mine, same, strict).value is None  # noise is 30 times what is allowed
    assert density_finding(None, same, long).words == "a run broke off"


def test_noise_of_the_pressure_weighs_against_the_stiffness():
    rng = np.random.default_rng(0)
    series = 4.0 * rng.normal(size=100)  # known to ± 0.4 GPa
    soft = PressureRun(argon(), 0.0, 0.3, True, series, series, series)
    assert pressure_deviation(soft, 0.05).value is None
    assert "run longer" in pressure_deviation(soft, 0.05).words
    assert pressure_deviation(replace(soft, compressibility_per_GPa=0.01), 0.05).value == 0.0
    off = replace(soft, pressure_GPa=series + 3.0)
    assert pressure_deviation(off, 0.05).value > 1.0


def test_pressure_is_measured_where_there_is_one():
    report = validate(SOUND, argon(), SHORT)
    assert report["measurements"]["pressure"]["target_GPa"] == 0.0
    density, error = report["measurements"]["pressure"]["density_g_per_cm3"]
    assert density == pytest.approx(1.68, abs=0.05)
    assert 0 < error < 0.05
    names = {check["name"] for check in report["verdict"]["checks"]}
    assert {"npt_completed", "npt_pressure_deviation_GPa"} <= names
    without = validate(SOUND, argon(), replace(SHORT, pressure_GPa=None))
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
    assert any("constant pressure broke off" in reason for reason in report["verdict"]["reasons"])


def test_molecules_and_slabs_have_no_pressure():
    slab = argon()
    slab.set_cell(slab.cell.array + np.diag([0, 0, 12.0]))
    for atoms in (Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]), slab):
        run = validate(SOUND, atoms, replace(SHORT, time_ps=0.2))
        assert "pressure" not in run["measurements"]
        assert "npt_completed" not in {check["name"] for check in run["verdict"]["checks"]}
