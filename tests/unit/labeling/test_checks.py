"""Each law of labels is seen broken, and kept by a real force field."""

import dataclasses
import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT

from mlff_distiller.dataset import Dataset, DatasetWriter, Record
from mlff_distiller.labeling import check_labels, write_findings
from mlff_distiller.sampling import RattleSettings, grow


@pytest.fixture(scope="module")
def records():
    """Trees of copper and of gold-copper, labelled by EMT."""
    found = []

    def label(frames, origins):
        answers = []
        for atoms, origin in zip(frames, origins, strict=True):
            atoms = atoms.copy()
            atoms.calc = EMT()
            labels = {
                "energy": np.array(atoms.get_potential_energy()),
                "forces": atoms.get_forces(),
            }
            group = origin["seed"] * 1000 + origin["branch"]
            atoms.calc = None
            found.append(Record(atoms, labels, f"{len(found):064x}", group, origin))
            answers.append(labels)
        return answers

    alloy = bulk("Cu", cubic=True)
    alloy.numbers[0] = 79
    settings = RattleSettings(temperature_K=(300.0, 1500.0))
    grow([bulk("Cu", cubic=True), alloy], label, 200, settings, 0)
    return found


def findings(folder, records):
    with DatasetWriter(folder, {}) as writer:
        writer.append(records)
    return [(finding.check, finding.record) for finding in check_labels(Dataset(folder))]


def changed(record, **labels):
    return dataclasses.replace(record, labels={**record.labels, **labels})


def test_a_real_force_field_keeps_them(records, tmp_path):
    assert len(records) == 200
    assert findings(tmp_path, records) == []


def test_a_net_force(records, tmp_path):
    forces = records[50].labels["forces"] + [0.3, 0, 0]
    broken = [*records[:50], changed(records[50], forces=forces), *records[51:]]
    assert ("net force", 50) in findings(tmp_path, broken)


def test_an_outlier(records, tmp_path):
    energy = records[120].labels["energy"] + 30.0
    broken = [*records[:120], changed(records[120], energy=energy), *records[121:]]
    assert [row for row in findings(tmp_path, broken) if row[0] == "outlier"] == [("outlier", 120)]


def test_forces_that_are_not_the_energys(records, tmp_path):
    """The usual mistake: gradients instead of forces."""
    found = findings(tmp_path, [changed(own, forces=-own.labels["forces"]) for own in records])
    checks = [check for check, _ in found]
    assert checks.count("energy and forces") > 50
    assert set(checks) == {"energy and forces"}


def test_one_wrong_energy_on_a_way(records, tmp_path):
    steps = [k for k, own in enumerate(records) if own.provenance["step"] == 3]
    number = steps[4]
    energy = records[number].labels["energy"] + 0.3
    broken = [*records[:number], changed(records[number], energy=energy), *records[number + 1 :]]
    assert ("energy and forces", number) in findings(tmp_path, broken)


def test_names_say_where_a_label_is_from(tmp_path):
    atoms = molecule("H2O")
    labels = {"energy": np.array(0.0), "forces": np.ones((3, 3))}
    origin = {"file": "water.xyz", "frame": 17}
    with DatasetWriter(tmp_path, {}) as writer:
        writer.append([Record(atoms, labels, "a" * 64, 0, origin)])
    [finding] = write_findings(tmp_path)
    assert str(finding).startswith("water.xyz, frame 17: forces sum to 5.2 eV/Å, 100.0%")
    assert json.loads((tmp_path / "findings.json").read_text()) == [dataclasses.asdict(finding)]


def test_frames_far_apart_or_of_other_cells_are_not_compared(tmp_path):
    labels = {"energy": np.array(0.0), "forces": np.zeros((2, 3))}
    rows = []
    for number, (distance, length) in enumerate([(1.0, 9.0), (1.5, 9.0), (1.5, 9.1)]):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, distance]], cell=[length] * 3, pbc=True)
        rows.append(
            Record(atoms, {**labels, "energy": np.array(5.0 * number)}, f"{number:064x}", 0)
        )
    assert findings(tmp_path, rows) == []


@pytest.mark.parametrize("state", ["charge", "initial_charges", "initial_magmoms"])
def test_another_electronic_state_is_on_another_surface(tmp_path, state):
    atoms = bulk("Cu", cubic=True)
    other = atoms.copy()
    if state == "charge":
        other.info["charge"] = 1.0
    else:
        other.set_array(state, np.array([1.0, 0.0, 0.0, 0.0]))
    records = [
        Record(own, {"energy": np.array(10.0 * k), "forces": np.zeros((4, 3))}, f"{k:064x}", 0)
        for k, own in enumerate((atoms, other))
    ]
    with DatasetWriter(tmp_path / "out", {}) as writer:
        writer.append(records)
    assert check_labels(Dataset(tmp_path / "out")) == []


def test_no_labels_are_no_findings(tmp_path):
    assert findings(tmp_path, []) == []
