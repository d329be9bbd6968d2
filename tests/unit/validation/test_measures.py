"""Errors and times: against cases whose answer is known."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from tests.helpers import random_nep, rattled, structures

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.accuracy import force_errors, student_errors
from mlff_distiller.validation.checks.speed import speed_table

EMT_FIELD = ForceField("EMT", EMT())


def test_force_errors_of_a_scaled_copy():
    teacher = np.random.default_rng(0).normal(size=(50, 3))
    teacher -= teacher.mean()
    errors = force_errors(teacher, 1.1 * teacher)
    assert errors["forces_fidelity"] == pytest.approx(0.9)
    assert errors["forces_r2"] == pytest.approx(0.99)
    assert errors["forces_angle_deg"] == pytest.approx(0.0, abs=1e-5)
    assert errors["forces_mae_meV_per_A"] == pytest.approx(100 * np.abs(teacher).mean())
    assert errors["forces_rmse_meV_per_A"] == pytest.approx(100 * np.sqrt((teacher**2).mean()))


def test_force_errors_without_forces_are_not_perfect_but_missing():
    errors = force_errors(np.zeros((4, 3)), np.ones((4, 3)))
    assert errors["forces_fidelity"] is errors["forces_r2"] is errors["forces_angle_deg"] is None


def test_angle():
    teacher = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1e-6]])
    student = np.array([[0, 2.0, 0], [0, 3.0, 0], [0, 1.0, 0]])
    assert force_errors(teacher, student)["forces_angle_deg"] == pytest.approx(45.0)


def test_a_student_compared_with_itself_is_perfect():
    student = random_nep()
    frames = []
    for seed in range(3):
        atoms = rattled(structures()["small cell"], seed=seed)
        atoms.calc = StudentCalculator(student, device="cpu", dtype="float64", backend="torch")
        atoms.get_stress()
        frames.append(Batch.from_atoms([atoms]))
    errors = student_errors(random_nep(), frames)
    assert errors["forces_fidelity"] == pytest.approx(1.0, abs=1e-6)
    assert errors["energy_mae_meV_per_atom"] == pytest.approx(0.0, abs=1e-9)
    assert errors["stress_mae_GPa"] == pytest.approx(0.0, abs=1e-9)
    assert errors["n_frames"] == 3
    frames[0].labels["energy"][0] += 0.3
    assert student_errors(random_nep(), frames)["energy_mae_meV_per_atom"] == pytest.approx(100 / 3)
    frames[0].labels["stress"][:] = float("nan")
    assert student_errors(random_nep(), frames[:1])["stress_mae_GPa"] is None


def test_speed_table_has_one_row_a_size():
    rows = speed_table(bulk("Cu", cubic=True), EMT_FIELD, EMT_FIELD, (4, 8, 8, 6), "cpu")
    assert [row["n_atoms"] for row in rows] == [4, 8]
    for row in rows:
        assert row["speedup"] == row["teacher_ms_per_step"] / row["student_ms_per_step"]
