"""Recorded runs: on both engines, at constant pressure, broken ones, and timed ones."""

import time
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from tests.helpers import ROOT, random_nep, random_painn
from tests.unit.validation.faults import Pairs, argon

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import DistillerError
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.md.ase import AseSimulation
from mlff_distiller.md.compressibility import compressibility
from mlff_distiller.md.record import ForceField, ms_per_step, simulate, stays_up, steps_of
from mlff_distiller.md.statistics import mean

SOUND = ForceField("argon", Pairs())
COLD = Ensemble(ensemble="nvt", temperature_K=40, time_step_fs=5.0)


def test_students_and_only_students_run_without_ase():
    student = StudentCalculator(ROOT / "benchmarks" / "silicon" / "nep", device="cpu")
    silicon = bulk("Si", cubic=True)
    assert ForceField("it", student).student is student.student
    assert isinstance(ForceField("it", student).simulation(silicon, Ensemble()), Simulation)

    class Wrapped(Pairs):
        pass

    Wrapped.student = student  # has one, and is none
    assert ForceField("it", Wrapped()).student is None
    assert isinstance(ForceField("it", Wrapped()).simulation(argon(1), COLD), AseSimulation)


def test_both_engines_go_the_same_way():
    """Velocity Verlet is the same in ASE and on the device; so are energies and pressures."""
    student = StudentCalculator(
        ROOT / "benchmarks" / "silicon" / "nep", device="cpu", dtype="float64"
    )
    silicon = bulk("Si", cubic=True, a=5.45)
    own = ForceField("own", student, "float64")
    start = simulate(own, silicon, Ensemble(ensemble="nvt", time_step_fs=2.0), 20, 20).frame(-1)
    rows = [
        list(steps_of(field, start, Ensemble(time_step_fs=1.0), 30, 10))
        for field in (own, ForceField("ase", Hidden(student)))
    ]
    assert [row.step for row in rows[0]] == [row.step for row in rows[1]] == [0, 10, 20, 30]
    for mine, theirs in zip(*rows, strict=True):
        assert np.allclose(mine.positions, theirs.positions, rtol=0, atol=1e-8)
        assert np.allclose(mine.velocities, theirs.velocities, rtol=0, atol=1e-8)
        assert mine.potential == pytest.approx(theirs.potential, abs=1e-8)
        assert mine.pressure_GPa == pytest.approx(theirs.pressure_GPa, abs=1e-6)


class Hidden(Calculator):
    """A student that is not known to be one, and so runs in ASE's loop."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, student):
        super().__init__()
        self.own = student

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.own.calculate(atoms)
        self.results = dict(self.own.results)


def test_the_structure_that_a_run_begins_with_stays_as_it_is():
    atoms = argon()
    run = simulate(SOUND, atoms, COLD, 50, 10)
    assert np.array_equal(atoms.positions, argon().positions)
    assert np.array_equal(run.atoms.positions, argon().positions)
    assert run.atoms.calc is None
    assert np.array_equal(run.frame(3).positions, run.positions[3])
    assert np.array_equal(run.positions[0], argon().positions)
    part = run.part(1, None, 2)
    assert np.array_equal(part.time_ps, run.time_ps[[1, 3, 5]])
    assert np.array_equal(run.volume, np.full(6, argon().get_volume()))


@pytest.mark.parametrize("make", [random_nep, random_painn])
def test_students_run_on_their_own_integrators(make):
    field = ForceField("student", StudentCalculator(make(), device="cpu", dtype="float64"))
    atoms = molecule("H2O")  # random parameters have no minimum: 3,000 K let it fall
    run = simulate(field, atoms, Ensemble(time_step_fs=0.05, temperature_K=3000), 40, 2)
    assert run.completed, run.why
    assert run.n_steps == 40
    assert run.positions.shape == (21, len(atoms), 3)
    assert np.abs(np.einsum("i,tik->tk", atoms.get_masses(), run.velocities)).max() < 1e-5
    again = field.energy(run.frame(-1))
    assert run.potential[-1] == pytest.approx(again, abs=1e-4)


class Failing(Calculator):
    """Lennard-Jones that gives NaN, or raises, after some calls."""

    implemented_properties = ("energy", "forces")

    def __init__(self, after: int, error: Exception | None = None) -> None:
        super().__init__()
        self.own, self.left, self.error = LennardJones(epsilon=0.01, sigma=3.4), after, error

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.left -= 1
        if self.left < 0 and self.error:
            raise self.error
        self.results = {
            "energy": self.own.get_potential_energy(atoms),
            "forces": self.own.get_forces(atoms) * (np.nan if self.left < 0 else 1),
        }


@pytest.mark.parametrize(
    ("error", "why"), [(None, "not finite"), (KeyError("gone"), "KeyError: 'gone'")]
)
def test_a_broken_run_ends_with_its_reason(error, why):
    field = ForceField("broken", Failing(20, error))
    argon = bulk("Ar", cubic=True)
    run = simulate(field, argon, Ensemble(ensemble="nve", temperature_K=50), 100, 5)
    assert not run.completed
    assert why in run.why
    assert 0 < run.n_steps < 30
    assert len(run.time_ps) == len(run.positions) == len(run.potential) == 1 + run.n_steps // 5


class Nothing(Calculator):
    """No forces: an ideal gas."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        zero = np.zeros((len(atoms), 3))
        self.results = {"energy": 0.0, "forces": zero, "stress": np.zeros(6)}


def test_the_volume_of_an_ideal_gas_has_its_distribution():
    n, kelvin, gigapascal = 100, 300.0, 0.02  # of 40, one run in twenty halves its volume
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
    run = simulate(ForceField("gas", Nothing()), gas, settings, 12_000, 4)
    assert run.completed, run.why
    volume, pressure = mean(run.volume), mean(run.pressure_GPa)
    assert abs(volume.value - expected) < 4 * volume.error
    assert volume.error < 0.04 * expected
    assert run.volume.std() / expected == pytest.approx((n + 1) ** -0.5, rel=0.15)
    assert pressure.beyond_noise(gigapascal) < 1e-4
    grams = n * 39.95 / 6.02214e23
    assert run.density[0] == pytest.approx(grams / (run.volume[0] * 1e-24), rel=1e-3)


def test_frames_at_constant_pressure_have_cells_of_their_own():
    settings = replace(COLD, ensemble="npt", barostat_time_fs=100.0, compressibility_per_GPa=0.3)
    run = simulate(SOUND, argon(), settings, 40, 10)
    assert run.completed, run.why
    assert run.cells.shape == (5, 3, 3)
    assert run.frame(-1).get_volume() == pytest.approx(run.volume[-1])
    assert len(set(run.volume)) == 5
    assert run.part(2).pressure_GPa.tolist() == run.pressure_GPa[2:].tolist()


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
    run = simulate(ForceField("it", Pushing()), argon(), settings, 200, 2)
    assert not run.completed
    assert "burst" in run.why
    squeezed = replace(settings, pressure_GPa=100.0)
    run = simulate(ForceField("gas", Nothing()), argon(), squeezed, 200, 2)
    assert "collapsed" in run.why


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


def test_how_long_a_force_field_stays_up():
    copper = bulk("Cu", cubic=True) * (2, 2, 2)
    found = stays_up(ForceField("EMT", EMT()), copper, 300.0, 100, 0)
    assert found["md_steps"] == 100.0
    assert 150 < found["md_temperature_K"] < 450

    class Heating(EMT):
        """Forces that push along the motion."""

        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            self.results["forces"] = self.results["forces"] + 0.5 * atoms.get_momenta()

    found = stays_up(ForceField("hot", Heating()), copper, 300.0, 100, 0)
    assert found["md_steps"] < 100.0


def test_a_step_is_timed():
    class Slow(EMT):
        def calculate(self, *arguments, **more):
            time.sleep(0.01)
            super().calculate(*arguments, **more)

    copper = bulk("Cu", cubic=True)
    assert 10.0 < ms_per_step(ForceField("slow", Slow()), copper, seconds=0.05) < 40.0

    student = StudentCalculator(ROOT / "benchmarks" / "silicon" / "nep", device="cpu")
    field, silicon = ForceField("it", student), bulk("Si", cubic=True)
    assert 0 < ms_per_step(field, silicon, seconds=0.01) < 10.0
    assert 0 < ms_per_step(field, silicon, seconds=0.01, in_ase=True) < 20.0

    class Broken(Pairs):
        def spoil(self, atoms):
            raise DistillerError("it broke")

    with pytest.raises(DistillerError, match="it broke"):
        ms_per_step(ForceField("broken", Broken()), argon(), 300.0)
