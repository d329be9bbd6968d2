"""What thermal motion can arrive at: judged by energies, of structures that compare."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units

from mlff_distiller.dataset import Dataset, DatasetWriter, Record, label_key
from mlff_distiller.sampling.reach import out_of_reach, reach_eV_per_atom

REACH = reach_eV_per_atom(300.0)


def record(energy_eV_per_atom, numbers=(29, 29), **origin):
    """At a place of its own, so that no two are one structure."""
    x = record.count = getattr(record, "count", 0.0) + 0.01
    atoms = Atoms(numbers, np.arange(3 * len(numbers)).reshape(-1, 3) + x)
    labels = {
        "energy": np.array(energy_eV_per_atom * len(numbers)),
        "forces": np.zeros((len(numbers), 3)),
    }
    return Record(atoms, labels, label_key(atoms, "teacher"), 0, origin)


def far(tmp_path, records):
    with DatasetWriter(tmp_path / "labels", {"teacher": None}) as writer:
        writer.append(records)
    return out_of_reach(Dataset(tmp_path / "labels")).tolist()


def test_reach_is_two_and_a_half_times_thermal_motion():
    assert pytest.approx(2.5 * 1.5 * units.kB * 600.0) == reach_eV_per_atom(600.0)


def test_energies_are_per_atom_and_above_the_lowest(tmp_path):
    own = {"seed": 0, "temperature_K": 300.0}
    records = [
        record(-1.0, **own),
        record(-1.0 + 0.99 * REACH, **own),
        record(-1.0 + 1.01 * REACH, **own),
        record(-1.0 + 0.99 * REACH, (29,) * 6, **own),
        record(-1.0 + 1.01 * REACH, (29,) * 6, **own),
    ]
    assert far(tmp_path, records) == [False, False, True, False, True]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"pressure_GPa": 50.0}, {"numbers": (29, 28)}], ids=str
)
def test_another_seed_pressure_or_composition_does_not_compare(tmp_path, other):
    own = {"seed": 0, "temperature_K": 300.0}
    records = [record(-1.0, **own), record(0.0, **(own | other))]
    assert far(tmp_path, records) == [False, False]


def test_own_dynamics_of_a_student_compares_with_the_seed_least_bound(tmp_path):
    own = {"temperature_K": 300.0}
    of_student = {"source": "student_md", "seed": 0}
    records = [
        record(-2.0, seed=0, **own),
        record(-1.0, seed=1, **own),
        record(-1.0 + 0.99 * REACH, **of_student),
        record(-1.0 + 1.01 * REACH, **of_student),
    ]
    assert far(tmp_path, records) == [False, False, False, True]


def test_the_hottest_temperature_counts_and_without_one_nothing_is_far(tmp_path):
    records = [record(-1.0, seed=0, temperature_K=300.0), record(-1.0 + 1.9 * REACH, seed=0)]
    assert far(tmp_path / "cold", records) == [False, True]
    hot = [*records, record(-1.0, seed=0, temperature_K=600.0)]
    assert far(tmp_path / "hot", hot) == [False, False, False]
    none = [replace(one, provenance={"seed": 0}) for one in records]
    assert far(tmp_path / "none", none) == [False, False]
