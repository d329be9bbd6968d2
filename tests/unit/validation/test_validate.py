"""The verdict says no for the right reason, and yes to sound force fields."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from tests.helpers import random_nep, rattled
from tests.unit.validation.faults import (
    FlippedStress,
    Float32Sum,
    HardCutoff,
    Hole,
    NoisyForces,
    Pairs,
    Swirl,
    argon,
)
from tests.unit.validation.short import BRIEF, NOT_TOLD, SHORT, UNWATCHED, failed

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import ConfigError
from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.validate import validate
from mlff_distiller.validation.verdict import Finding, judge


def test_every_criterion_has_its_reasons():
    for name, criterion in CRITERIA.items():
        assert name == criterion.name
        assert criterion.title
        assert criterion.failure
        assert criterion.why


def test_judge():
    good = judge({"incidents": Finding(0.0), "nve_fluctuation_ratio": Finding(4.0)}, {})
    assert good["status"] == "approved"
    assert good["reasons"] == []
    bad = judge(
        {
            "incidents": Finding(2.0, "frame 3: atom 1"),
            "nve_fluctuation_ratio": Finding(None, "it broke"),
            "scan_jump_meV": Finding(float("inf")),
            "momentum_change": Finding(2e-3),
        },
        {"momentum_change": 1e-2},
    )
    assert bad["status"] == "rejected"
    assert [check["passed"] for check in bad["checks"]] == [False, False, False, True]
    assert bad["checks"][2]["value"] is None
    assert "incidents is 2, at most 0 is allowed (frame 3: atom 1)" in bad["reasons"][0]
    assert bad["reasons"][1] == (
        "nve_fluctuation_ratio was not measured, which counts as a failure (it broke)"
    )
    assert "jumps" in bad["reasons"][2]
    assert judge({}, {})["status"] == "rejected"


def test_limits_are_checked_before_anything_runs():
    for limits, problem in (({"speed": 1.0}, "no check"), ({"incidents": float("nan")}, "finite")):
        with pytest.raises(ConfigError, match=problem):
            validate(ForceField("it", Pairs()), argon(), replace(SHORT, limits=limits))


@pytest.fixture(scope="module")
def approved() -> dict:
    sound = ForceField("argon", Pairs())
    test = [rattled(argon(), 0.1, seed) for seed in range(3)]
    training = [rattled(argon(), 0.1, seed) for seed in range(3, 8)]
    return validate(
        sound,
        argon(),
        SHORT,
        teacher=ForceField("teacher", Pairs()),
        training=training,
        test=test,
    )


def test_a_sound_force_field_is_approved(approved):
    assert approved["verdict"]["reasons"] == []
    assert approved["verdict"]["status"] == "approved"
    assert approved["system"] == {"formula": "Ar32", "n_atoms": 32, "kind": "crystal"}
    names = {check["name"] for check in approved["verdict"]["checks"]}
    assert {"rdf_difference_percent", "leaked_fraction", "bulk_modulus_difference_percent"} <= names
    assert "diffusion_difference_percent" not in names
    json.dumps(approved, allow_nan=False)


@pytest.mark.parametrize(
    ("fault", "check", "others"),
    [
        (NoisyForces, "force_derivative_error", {"nve_fluctuation_ratio"}),
        (Swirl, "force_derivative_error", {"nve_fluctuation_ratio"}),
        (FlippedStress, "stress_derivative_error", set()),
        (HardCutoff, "scan_jump_meV", {"nve_fluctuation_ratio"}),
        (Float32Sum, "energy_noise_meV", {"nve_fluctuation_ratio"}),
        (Hole, "dimer_drop_eV", {"compression_drop_eV_per_atom"}),
    ],
)
def test_planted_faults_are_rejected_for_the_right_reason(fault, check, others):
    alone = fault in (FlippedStress, Hole)  # which fails nothing else
    report = validate(ForceField("it", fault()), argon(), UNWATCHED if alone else BRIEF)
    assert report["verdict"]["status"] == "rejected"
    assert {check, *others} <= failed(report)
    assert any(check in reason for reason in report["verdict"]["reasons"])
    if alone:
        assert failed(report) == {check, *others} | NOT_TOLD


def test_a_hole_of_the_teacher_is_told_and_not_held_against_the_student(approved):
    assert approved["verdict"]["remarks"] == []
    teacher = ForceField("teacher", Hole())
    report = validate(ForceField("it", Pairs()), argon(), BRIEF, teacher=teacher)
    (dimer, squeezed) = report["verdict"]["remarks"]
    assert dimer.startswith("the teacher itself: two atoms fall into a hole")
    assert squeezed.startswith("the teacher itself: compressed matter falls into a hole")
    assert not failed(report) & {"dimer_drop_eV", "compression_drop_eV_per_atom"}
    names = [curve["name"] for curve in report["measurements"]["short_range"]["curves"]]
    assert names == ["Ar-Ar", "compression", "Ar-Ar, teacher", "compression, teacher"]


def test_leaking_training_data_are_rejected():
    frames = [rattled(argon(), 0.1, seed) for seed in range(4)]
    again = rattled(frames[2], 0.001, 9)
    report = validate(
        ForceField("it", Pairs()), argon(), UNWATCHED, training=frames, test=[again, frames[0]]
    )
    assert failed(report) == {"leaked_fraction"} | NOT_TOLD


def test_a_student_without_training_is_rejected_with_frame_and_atom():
    student = StudentCalculator(random_nep(("Ar",), zbl=False), device="cpu")
    report = validate(
        ForceField("it", student),
        argon(),
        replace(BRIEF, time_step_fs=2.0, time_ps=1.2, equilibration_ps=0.0),
        teacher=ForceField("teacher", Pairs()),
    )
    assert {"incidents", "student_md_forces_fidelity"} <= failed(report)
    (reason,) = [own for own in report["verdict"]["reasons"] if "incidents is" in own]
    assert "(frame" in reason
    assert "atom" in reason
    json.dumps(report, allow_nan=False)


def test_a_run_that_breaks_is_rejected():
    class Breaking(Pairs):
        def spoil(self, atoms):
            if np.ptp(atoms.positions[:, 0]) > 8.2:
                self.results["forces"][3] = np.nan

    report = validate(ForceField("it", Breaking()), argon(), UNWATCHED)
    assert {"nvt_completed", "nve_completed", "incidents"} <= failed(report)
    assert any("finite" in reason for reason in report["verdict"]["reasons"])
    json.dumps(report, allow_nan=False)


def test_a_run_too_short_is_no_measurement():
    report = validate(ForceField("it", Pairs()), argon(), replace(UNWATCHED, time_ps=0.1))
    assert "temperature_deviation_percent" in failed(report)
    assert any("not measured" in reason for reason in report["verdict"]["reasons"])


@pytest.mark.slow
def test_the_effective_medium_theory_is_approved():
    metal = replace(
        SHORT,
        temperature_K=(300.0,),
        time_step_fs=5.0,
        equilibration_ps=0.4,
        friction_per_ps=20,
        large_atoms=32,
    )
    copper = bulk("Cu", cubic=True) * (2, 2, 2)
    assert validate(ForceField("EMT", EMT()), copper, metal)["verdict"]["reasons"] == []
