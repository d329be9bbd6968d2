"""A planted fault: a student of 20 frames, good on more of the same, wrong elsewhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from tests.helpers import rattled
from tests.unit.validation.short import UNWATCHED, failed

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md.record import ForceField
from mlff_distiller.students import NEPSettings, nep_for
from mlff_distiller.training import TrainingSettings, train
from mlff_distiller.validation.validate import validate

pytestmark = pytest.mark.slow

SMALL = NEPSettings(
    n_max_radial=3,
    n_max_angular=2,
    basis_size_radial=5,
    basis_size_angular=4,
    neurons=8,
    cutoff_radial_A=5.0,
    cutoff_angular_A=4.0,
)


def copper(seed: int) -> Atoms:
    """A frame labelled by the teacher."""
    atoms = rattled(bulk("Cu", cubic=True, a=3.6), 0.1, seed)
    atoms.calc = EMT()
    atoms.get_stress()
    return atoms


@pytest.fixture(scope="module")
def report() -> dict:
    training, test = [copper(k) for k in range(20)], [copper(k) for k in range(20, 30)]
    frames = [Batch.from_atoms([atoms]) for atoms in [*training, *test]]
    student = nep_for(frames[:20], SMALL, 0)
    settings = TrainingSettings(epochs=100, atoms_per_batch=16, validations=10, trackers=())
    train(student, frames[:20], frames[20:], settings)
    return validate(
        ForceField("of 20 frames", StudentCalculator(student, device="cpu")),
        bulk("Cu", cubic=True, a=3.6) * 2,
        replace(
            UNWATCHED,
            temperature_K=(600.0,),
            time_step_fs=4.0,
            time_ps=0.6,
            teacher_npt_ps=0.1,
            large_atoms=32,
        ),
        teacher=ForceField("EMT", EMT()),
        training=training,
        test=test,
    )


def test_a_student_of_20_frames_is_rejected_for_the_right_reason(report):
    assert report["verdict"]["status"] == "rejected"
    assert {"student_md_forces_fidelity", "elastic_difference_percent"} <= failed(report)
    assert not failed(report) & {"nvt_completed", "npt_completed", "force_derivative_error"}
    assert any(
        "forces differ from the teacher's where its own dynamics leads" in reason
        for reason in report["verdict"]["reasons"]
    )


def test_its_errors_are_far_from_what_it_learned(report):
    own, test = (report["measurements"]["accuracy"][name] for name in ("student_md", "test"))
    assert own["forces"]["forces_fidelity"] < 0.85
    assert test["forces"]["forces_fidelity"] > 0.93  # which alone would not have told
    distances = [
        np.mean([row["mean_distance"] for row in table["frames"]]) for table in (own, test)
    ]
    assert distances[0] > distances[1]
    json.dumps(report, allow_nan=False)
