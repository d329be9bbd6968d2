"""Datasets made of others, from Python; the commands of ``data`` have tests of their own."""

import numpy as np
import pytest
from ase.build import bulk

from mlff_distiller.dataset import Dataset, DatasetWriter, Record, label_key
from mlff_distiller.dataset.merging import divide, merge, write_dataset
from mlff_distiller.errors import ConfigError


def write(folder, numbers, teacher="one"):
    """Stretched copper, two records to a group."""
    records = []
    for number in numbers:
        atoms = bulk("Cu", a=3.6 + 0.01 * number)
        labels = {"energy": np.array(-1.0 * number), "forces": np.zeros((1, 3))}
        records.append(Record(atoms, labels, label_key(atoms, teacher), number // 2, {}))
    with DatasetWriter(folder, {"teacher": {"name": teacher}}) as writer:
        writer.append(records)
    return folder


def test_groups_of_the_same_number_stay_apart(tmp_path):
    parts = [write(tmp_path / "a", range(4)), write(tmp_path / "b", [0, 2, 3, 5])]
    assert merge(parts, tmp_path / "both") == (5, 3)
    both = Dataset(tmp_path / "both")
    assert both.groups.tolist() == [0, 0, 1, 1, 4]
    assert both.metadata == {"teacher": {"name": "one"}}


def test_mixed_teachers_are_refused_and_named(tmp_path):
    parts = [write(tmp_path / "a", range(4)), write(tmp_path / "b", range(4), "two")]
    with pytest.raises(ConfigError, match=r'(?s)b and .*a have.*"one".*"two".*--allow-mixed'):
        merge(parts, tmp_path / "both")
    assert not (tmp_path / "both").exists()
    assert merge(parts, tmp_path / "both", allow_mixed=True) == (8, 0)
    teacher = Dataset(tmp_path / "both").metadata["teacher"]
    assert teacher == {"name": "mixed", "of": [{"name": "one"}, {"name": "two"}]}


def test_parts_share_no_group(tmp_path):
    parts = divide(write(tmp_path / "all", range(20)), tmp_path / "parts", test=0.2, seed=3)
    assert [len(part) for part in parts.values()] == [14, 2, 4]
    groups = [set(part.groups.tolist()) for part in parts.values()]
    assert set.union(*groups) == set(range(10))
    assert sum(map(len, groups)) == 10


def test_nothing_is_written_over(tmp_path):
    write(tmp_path / "a", range(2))
    with pytest.raises(ConfigError, match="a exists"):
        write_dataset(tmp_path / "a", {}, [])
