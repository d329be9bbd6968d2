"""Accuracy, stability, observables, speed and verdict: against cases whose answer is known."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from tests.helpers import random_nep, rattled, structures

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.structure import default_time_step_fs, enlarge
from mlff_distiller.validation.accuracy import compare, force_errors
from mlff_distiller.validation.benchmark import speed_table
from mlff_distiller.validation.physics import msd, rdf
from mlff_distiller.validation.stability import run_nve
from mlff_distiller.validation.verdict import Limits, verdict


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
    done = compare(random_nep(), frames)
    assert done.errors["forces_fidelity"] == pytest.approx(1.0, abs=1e-6)
    assert done.errors["energy_mae_meV_per_atom"] == pytest.approx(0.0, abs=1e-9)
    assert done.errors["stress_mae_GPa"] == pytest.approx(0.0, abs=1e-9)
    assert done.errors["n_frames"] == 3
    frames[0].labels["energy"][0] += 0.3
    assert compare(random_nep(), frames).errors["energy_mae_meV_per_atom"] == pytest.approx(100 / 3)
    frames[0].labels["stress"][:] = float("nan")
    assert compare(random_nep(), frames[:1]).errors["stress_mae_GPa"] is None


NVE = {
    "temperature_K": 300,
    "time_ps": 0.4,
    "time_step_fs": 2.0,
    "equilibration_ps": 0.1,
    "n_frames": 4,
    "seed": 0,
}


def test_nve_of_a_sound_force_field_conserves_energy():
    run = run_nve(bulk("Cu", cubic=True) * (2, 2, 2), EMT(), **NVE)
    assert run.completed
    assert run.n_steps == 200
    assert len(run.frames) == 4
    assert abs(run.drift) < 0.5
    assert 0 < run.fluctuation < 1.0
    assert run.time_ps[-1] == pytest.approx(0.4)
    assert run.frames[0].calc is None


class Leaky(EMT):
    """Forces that are no gradient: they push along the motion."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = self.results["forces"] + 0.3 * atoms.get_momenta()


def test_nve_of_leaky_forces_is_caught():
    run = run_nve(bulk("Cu", cubic=True) * (2, 2, 2), Leaky(), **NVE)
    assert not run.completed or abs(run.drift) > 5
    exploded = run_nve(bulk("Cu", cubic=True), Leaky(), **{**NVE, "time_ps": 20.0})
    assert not exploded.completed
    assert "exploded" in exploded.why


def test_nve_stops_when_the_student_fails():
    student = StudentCalculator(random_nep(("Cu",), zbl=False), device="cpu")
    student.student.w1.mul_(float("nan"))
    run = run_nve(bulk("Cu", cubic=True), student, **NVE)
    assert not run.completed
    assert "not finite" in run.why


def test_drift_needs_points():
    run = run_nve(bulk("Cu", cubic=True), EMT(), **{**NVE, "time_ps": 0.002})
    assert run.drift is None


def test_rdf_of_a_crystal_and_of_a_gas():
    crystal = bulk("Cu", cubic=True, a=3.6) * (3, 3, 3)
    radii, g = rdf([crystal], r_max=3.0, bins=60)
    nearest = radii[g > 0]
    assert nearest == pytest.approx([3.6 / np.sqrt(2)], abs=0.05)
    shell = 4 / 3 * np.pi * ((nearest + 0.025) ** 3 - (nearest - 0.025) ** 3)
    assert (g.max() * shell * 4 / 3.6**3)[0] == pytest.approx(12.0)
    gas = Atoms("H2000", np.random.default_rng(0).random((2000, 3)) * 20, cell=[20] * 3, pbc=True)
    radii, g = rdf([gas], r_max=5.0, bins=10)
    assert g[3:] == pytest.approx(1.0, abs=0.1)


def test_msd_leaves_out_the_centre_of_mass():
    frames = []
    for step in range(4):
        atoms = Atoms("H2", [[0, 0, 0], [1.0 + 0.2 * step, 0, 0]])
        atoms.positions += 5.0 * step
        frames.append(atoms)
    assert msd(frames) == pytest.approx([0, 0.01, 0.04, 0.09])


def test_enlarge():
    assert len(enlarge(bulk("Si", cubic=True), 60)) == 64
    assert len(enlarge(bulk("Si", cubic=True), 8)) == 8
    slab = bulk("Si", cubic=True)
    slab.pbc = [True, True, False]
    assert enlarge(slab, 30).cell.lengths()[2] == slab.cell.lengths()[2]
    many = enlarge(molecule("H2O"), 20)
    assert len(many) >= 20
    assert not many.pbc.any()
    alone, together = molecule("H2O"), many
    for atoms in (alone, together):
        atoms.calc = LennardJones(rc=6.0)
    expected = alone.get_potential_energy() * len(many) / 3
    assert together.get_potential_energy() == pytest.approx(expected)


def test_time_step_follows_hydrogen():
    assert default_time_step_fs(molecule("H2O")) == 0.5
    assert default_time_step_fs(bulk("Si")) == 1.0


def test_speed_table_has_one_row_a_size():
    rows = speed_table(bulk("Cu", cubic=True), EMT(), EMT(), (4, 8, 8, 6), "cpu")
    assert [row["n_atoms"] for row in rows] == [4, 8]
    for row in rows:
        assert row["speedup"] == row["teacher_ms_per_step"] / row["student_ms_per_step"]


def good_report():
    own = {"forces_fidelity": 0.97}
    return {
        "accuracy": {"test": dict(own), "student_md": dict(own)},
        "stability": {"completed": True, "nve_drift_meV_per_atom_per_ps": -0.002},
        "speed": [{"speedup": 30.0}],
    }


def test_verdict_approves():
    assert verdict(good_report(), Limits())["status"] == "approved"


@pytest.mark.parametrize(
    ("path", "value", "failed"),
    [
        (("accuracy", "test", "forces_fidelity"), 0.94, "test_forces_fidelity"),
        (("accuracy", "student_md", "forces_fidelity"), None, "student_md_forces_fidelity"),
        (("accuracy", "student_md", "forces_fidelity"), float("nan"), "student_md_forces_fidelity"),
        (("stability", "completed"), False, "nve_completed"),
        (
            ("stability", "nve_drift_meV_per_atom_per_ps"),
            -0.02,
            "nve_drift_meV_per_atom_per_ps",
        ),
        (("stability", "nve_drift_meV_per_atom_per_ps"), None, "nve_drift_meV_per_atom_per_ps"),
        (("speed",), [], "speedup"),
        (("speed",), [{"speedup": 1.0}], "speedup"),
    ],
)
def test_verdict_rejects_for_the_right_reason(path, value, failed):
    report = good_report()
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    done = verdict(report, Limits())
    assert done["status"] == "rejected"
    assert [check["name"] for check in done["checks"] if not check["passed"]] == [failed]
