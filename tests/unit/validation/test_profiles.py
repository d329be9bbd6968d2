"""One evaluation: what `distill` asks of a student and what `validate` asks have one answer."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from tests.helpers import random_nep, rattled
from tests.unit.validation.faults import Pairs, argon

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField, Trajectory
from mlff_distiller.md.statistics import Estimate
from mlff_distiller.validation.checks import CHECKS
from mlff_distiller.validation.checks.conservation import Conservation, drift_of
from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.settings import EvaluationSettings, ValidationSettings
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.validate import Examined, examine, worst_of
from mlff_distiller.validation.verdict import Finding, judge
from mlff_distiller.workflows.assess import observables

SETTINGS = ValidationSettings(
    temperature_K=(40.0,),
    time_ps=0.8,
    nve_ps=0.8,
    equilibration_ps=0.4,
    time_step_fs=4.0,
    record_every=2,
    rescored=4,
    memory_steps=50,
    large_atoms=64,
    pressure_GPa=None,
    speed_sizes=(4, 8),
)
NOT_AT_CONSTANT_VOLUME = {"npt_volume_difference_percent"}
SHARED = {name for check in CHECKS if check.short for name in check.criteria}
SHARED -= NOT_AT_CONSTANT_VOLUME


def labelled(atoms: Atoms) -> Atoms:
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def subject(seed: int) -> Subject:
    test = [labelled(rattled(bulk("Cu", cubic=True), 0.1, k)) for k in range(3)]
    calculator = StudentCalculator(random_nep(("Cu",)), device="cpu")
    return Subject(
        ForceField("student", calculator),
        bulk("Cu", cubic=True),
        replace(SETTINGS, seed=seed),
        ForceField("teacher", EMT()),
        test=test,
    )


def test_every_criterion_belongs_to_one_check():
    asked = [name for check in CHECKS for name in check.criteria]
    assert len(asked) == len(set(asked))
    assert set(asked) == set(CRITERIA)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shared_checks_have_one_value_and_one_verdict(seed):
    short, full = examine(subject(seed), "short"), examine(subject(seed), "full")
    assert set(short.findings) == SHARED
    assert set(full.findings) > SHARED
    for name in SHARED - {"speedup"}:  # a time
        assert full.findings[name] == short.findings[name], name


def test_other_dynamics_has_other_values():
    values = [examine(subject(seed), "short").findings for seed in (0, 1)]
    name = "student_md_forces_fidelity"
    assert values[0][name] != values[1][name]


def test_what_is_known_is_not_measured_again():
    known = {name: Finding(0.5, "known") for name in SHARED}
    one = subject(0)
    found = examine(one, "short", Examined(known, {"speed": {"n_atoms": 7}}))
    assert found.findings == known
    assert found.measurements == {"speed": {"n_atoms": 7}}
    assert not {"nve", "equilibrations", "nvt"} & set(vars(one))


def test_a_short_profile_makes_no_long_run():
    one = subject(0)
    examine(one, "short")
    assert "nve" in vars(one)
    assert not {"nvt", "teacher_run"} & set(vars(one))


def test_of_several_structures_the_worst_counts():
    high, low = {"speedup": Finding(9.0)}, {"speedup": Finding(4.0, "16 atoms")}
    assert worst_of({"a": high, "b": low})["speedup"] == Finding(4.0, "b; 16 atoms")
    assert worst_of({"a": high})["speedup"] == Finding(9.0)
    drift = "nve_drift_meV_per_atom_per_ps"
    found = worst_of({"a": {drift: Finding(0.1)}, "b": {drift: Finding(0.2)}, "c": {}})
    assert found[drift].value == 0.2
    assert worst_of({"a": high, "b": {"speedup": Finding(None, "why")}})["speedup"].value is None


@pytest.mark.parametrize(
    ("drift", "found"),
    [
        (Estimate(0.015, 0.02), 0.0),  # a small molecule's noise is not a drift
        (Estimate(-0.015, 0.001), 0.012),
        (Estimate(0.5, 0.2), None),  # the error is too large to see ten times the limit
        (None, None),
    ],
)
def test_drift_is_judged_beyond_its_own_error(drift, found):
    assert drift_of(Conservation(drift, None, None), 0.01) == (
        found if found is None else pytest.approx(found)
    )


def test_limits_of_distill_are_those_of_the_checks():
    limits = EvaluationSettings().limits.by_check()
    assert set(limits) <= set(CRITERIA)
    assert all(limits[name] == CRITERIA[name].limit for name in limits)


def run_of(positions: np.ndarray, atoms: Atoms) -> Trajectory:
    n = len(positions)
    return Trajectory(
        *(atoms, Ensemble(ensemble="nve", temperature_K=(300.0,)), 1.0, n, True),
        *(0.001 * np.arange(n), positions, np.zeros_like(positions), np.zeros(n)),
    )


def test_observables_of_a_crystal_and_of_what_moves():
    copper = bulk("Cu", cubic=True, a=3.6) * (3, 3, 3)
    found = observables(run_of(np.stack([copper.positions] * 2), copper))
    radii, g = (np.array(found["rdf"][name]) for name in ("r_A", "g"))
    nearest = radii[(g > 0) & (radii < 3.0)]
    assert nearest == pytest.approx([3.6 / np.sqrt(2)], abs=0.05)
    water = molecule("H2O")
    moving = water.positions + 5.0 * np.arange(4)[:, None, None]  # as a whole
    moving[:, 1, 2] += 0.3 * np.arange(4)
    msd = observables(run_of(moving, water))["msd"]["msd_A2"]
    share = water.get_masses()[1] / water.get_masses().sum()
    moved = (0.3 * np.arange(4)) ** 2 * ((1 - share) ** 2 + 2 * share**2) / 3
    assert msd == pytest.approx(moved, abs=1e-5)
    assert observables(None) == {}


def test_a_sound_force_field_passes_all_shared_checks():
    one = Subject(ForceField("it", Pairs()), argon(), SETTINGS, ForceField("same", Pairs()))
    found = examine(one, "short").findings
    assert judge(found, {})["status"] == "approved"
    assert found["student_md_forces_fidelity"].value == pytest.approx(1.0)
