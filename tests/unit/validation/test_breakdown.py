"""Where errors are: planted ones are found in the row they belong to."""

import json
from itertools import pairwise

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from tests.helpers import rattled
from tests.unit.validation.faults import Pairs, argon
from tests.unit.validation.short import BRIEF, SHORT, failed

from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.accuracy import answers, labelled, labels
from mlff_distiller.validation.breakdown import breakdown, environment_distance
from mlff_distiller.validation.validate import validate


class Off(EMT):
    """Wrong in known ways: gold's forces along z by 0.1 eV/Å, energies by 2 meV per atom."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=("positions",)):
        super().calculate(atoms, properties, system_changes)
        self.results["forces"] = self.results["forces"].copy()
        self.results["forces"][atoms.numbers == 79, 2] += 0.1
        self.results["energy"] += 2e-3 * len(atoms)
        if "stress" in self.results:
            self.results["stress"] = self.results["stress"] + 0.5 / 160.2177


def alloys(n: int = 4) -> list:
    frames = []
    for seed in range(n):
        atoms = rattled(bulk("Cu", cubic=True) * 2, 0.1, seed)
        atoms.numbers[::4] = 79
        frames.append(atoms)
    return frames


def test_errors_are_found_where_they_are():
    frames = alloys()
    theirs, mine = (answers(ForceField("it", calc), frames) for calc in (EMT(), Off()))
    found = breakdown(frames, theirs, mine)
    assert found["n_frames"] == 4
    assert found["forces"]["n_atoms"] == 128
    copper, gold = sorted(found["by_element"], key=lambda row: -row["n_atoms"])
    assert (copper["element"], gold["element"]) == ("Cu", "Au")
    assert copper["forces_mae_meV_per_A"] == pytest.approx(0, abs=1e-9)
    assert gold["forces_mae_meV_per_A"] == pytest.approx(100 / 3)
    assert gold["forces_rmse_meV_per_A"] == pytest.approx(100 / np.sqrt(3))
    assert copper["forces_fidelity"] == pytest.approx(1)
    x, y, z = found["by_component"]
    assert x["forces_mae_meV_per_A"] == y["forces_mae_meV_per_A"] == pytest.approx(0, abs=1e-9)
    assert z["forces_mae_meV_per_A"] == pytest.approx(25)
    assert z["component"] == "z"
    assert z["forces_r2"] < x["forces_r2"] == 1
    energy = found["energy"]
    assert energy["mae_meV_per_atom"] == energy["offset_meV_per_atom"] == pytest.approx(2)
    assert energy["scatter_meV_per_atom"] == pytest.approx(0, abs=1e-6)
    assert found["stress"]["mae_GPa"] == pytest.approx(0.5, rel=1e-4)
    assert found["stress"]["n_frames"] == 4
    assert "by_distance" not in found
    json.dumps(found, allow_nan=False)


def test_tenths_of_the_force():
    frames = alloys()
    theirs = answers(ForceField("it", EMT()), frames)
    mine = answers(ForceField("it", EMT()), frames)
    for forces in mine.forces:
        forces *= 1.1
    rows = breakdown(frames, theirs, mine)["by_force"]
    assert len(rows) == 10
    assert sum(row["n_atoms"] for row in rows) == 128
    for low, high in pairwise(rows):
        assert low["from_eV_per_A"] <= low["to_eV_per_A"] <= high["from_eV_per_A"]
        assert low["forces_mae_meV_per_A"] < high["forces_mae_meV_per_A"]
    assert all(row["forces_fidelity"] == pytest.approx(0.9) for row in rows)
    assert all(row["forces_angle_deg"] == pytest.approx(0, abs=1e-3) for row in rows)


def test_one_atom_and_no_stress_have_tables_too():
    lonely = [rattled(bulk("Cu"), 0.0)]
    lonely[0].pbc = False
    found = answers(ForceField("it", EMT()), lonely)
    tables = breakdown(lonely, found, found, np.array([np.nan]))
    assert tables["stress"] is None
    assert len(tables["by_force"]) == 1
    assert tables["by_distance"] == []
    assert tables["n_atoms_of_unknown_elements"] == 1
    assert tables["frames"][0]["mean_distance"] is None
    json.dumps(tables, allow_nan=False)


def test_distance_from_the_training_set():
    training = [rattled(argon(), 0.1, seed) for seed in range(10)]
    again = training[3].copy()
    again.rotate(40, [1, 2, 3], rotate_cell=True)
    again.positions += 1.7
    assert environment_distance([again], training).max() < 1e-2
    known, far = rattled(argon(), 0.1, 77), rattled(argon(), 0.1, 78)
    far.set_cell(0.9 * far.cell.array, scale_atoms=True)
    near, beyond = (environment_distance([one], training) for one in (known, far))
    assert 0 < near.mean() < 1.5 < 3 < beyond.min()
    strange = known.copy()
    strange.numbers[0] = 36
    found = environment_distance([strange], training)
    assert np.isnan(found[0])
    assert np.isfinite(found[1:]).all()


def test_errors_grow_with_distance():
    training = [rattled(argon(), 0.05, seed) for seed in range(10)]
    frames = [rattled(argon(), amount, 99) for amount in (0.05, 0.1, 0.2, 0.3)]
    theirs, mine = (answers(ForceField("it", Pairs()), frames) for _ in range(2))
    distance = environment_distance(frames, training)
    for forces, own in zip(mine.forces, np.split(distance, 4), strict=True):
        forces += 0.01 * own[:, None]
    found = breakdown(frames, theirs, mine, distance)
    errors = [row["forces_mae_meV_per_A"] for row in found["by_distance"]]
    assert errors == sorted(errors)
    assert found["rank_correlation_of_error_and_distance"] == pytest.approx(1)
    assert found["by_distance"][0]["from_distance"] < found["by_distance"][-1]["to_distance"]
    assert all(a["mean_distance"] < b["mean_distance"] for a, b in pairwise(found["frames"]))
    distance[:60] = np.nan  # of an element that was not there; these have the smallest errors
    found = breakdown(frames, theirs, mine, distance)
    assert found["n_atoms_of_unknown_elements"] == 60
    assert sum(row["n_atoms"] for row in found["by_distance"]) == 68
    for row in found["by_distance"]:
        assert 10 * row["from_distance"] <= row["forces_mae_meV_per_A"] <= 10 * row["to_distance"]
    assert found["frames"][0]["mean_distance"] is None


def labelled_by(calculator, frames: list) -> list:
    for frame in frames:
        frame.calc = calculator
        results = {name: frame.calc.get_property(name, frame) for name in ("energy", "forces")}
        frame.calc = SinglePointCalculator(frame, **results)
    return frames


def test_labelled_test_frames_are_judged_and_others_not():
    bare = [rattled(argon(), 0.1, seed) for seed in range(3)]
    assert labelled(bare) == []
    frames = labelled_by(Pairs(), [frame.copy() for frame in bare])
    partly = bare[1].copy()
    partly.calc = SinglePointCalculator(partly, energy=0.0)
    assert len(labelled([*frames, bare[0], partly])) == 3
    assert labels(frames).forces[1] == pytest.approx(frames[1].get_forces())
    assert np.isnan(labels(frames).stress).all()
    training = [rattled(argon(), 0.1, seed) for seed in range(5, 9)]
    field = ForceField("it", Pairs())
    report = validate(field, argon(), SHORT, training=training, test=frames)
    assert failed(report) == set()
    table = report["measurements"]["accuracy"]["test"]
    assert table["forces"]["forces_fidelity"] == pytest.approx(1)
    assert len(table["by_distance"]) == 10
    assert "student_md" not in report["measurements"]["accuracy"]

    class Weak(Pairs):
        def potential(self, r):
            energy, slope = super().potential(r)
            return 0.9 * energy, 0.9 * slope

    wrong = labelled_by(Weak(), [frame.copy() for frame in bare])
    assert failed(validate(field, argon(), SHORT, test=wrong)) == {"test_forces_fidelity"}


def test_the_teacher_scores_the_force_fields_own_frames():
    report = validate(
        ForceField("it", Pairs()),
        argon(),
        BRIEF,
        teacher=ForceField("teacher", Pairs()),
        training=[rattled(argon(), 0.2, seed) for seed in range(5)],
    )
    table = report["measurements"]["accuracy"]["student_md"]
    assert table["n_frames"] == 20
    assert len(table["by_distance"]) == 10
    own = report["measurements"]["teacher"]["student_md"]
    assert own["forces_fidelity"] == table["forces"]["forces_fidelity"] == 1
    assert "n_atoms" not in own
    json.dumps(report, allow_nan=False)
