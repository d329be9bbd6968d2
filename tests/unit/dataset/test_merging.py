"""Datasets made of others, from Python; the commands of ``data`` have tests of their own."""

import numpy as np
import pytest
from ase.build import bulk

from mlff_distiller.dataset import Dataset, DatasetWriter, Record, label_key
from mlff_distiller.dataset.merging import Contradictions, divide, merge, write_dataset
from mlff_distiller.errors import ConfigError, DatasetError


def write(folder, numbers, teacher="one", **changes):
    """Stretched copper, two records to a group."""
    records = []
    for number in numbers:
        atoms = bulk("Cu", a=3.6 + 0.01 * number)
        labels = {"energy": np.array(-1.0 * number), "forces": np.zeros((1, 3))} | changes
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"energy": np.array(2.5)}, "energy differs by 5.5 eV/atom"),
        ({"forces": np.full((1, 3), 0.25)}, "forces differs by 0.25 eV/Å"),
        ({"stress": np.eye(3)}, "stress differs by 0.5 eV/Å³"),
    ],
)
def test_labels_that_contradict_each_other_are_no_repetitions(tmp_path, changes, words):
    parts = [write(tmp_path / "a", range(4), stress=0.5 * np.eye(3))]
    parts.append(write(tmp_path / "b", range(1, 4), **{"stress": 0.5 * np.eye(3)} | changes))
    with pytest.raises(DatasetError, match=rf"(?s)contradict.* 3 labels .*{words}.*--keep-first"):
        merge(parts, tmp_path / "both")
    assert not (tmp_path / "both").exists()
    left_out = Contradictions()
    assert merge(parts, tmp_path / "both", left_out=left_out) == (4, 3)
    assert left_out.n == 3
    assert Dataset(tmp_path / "both").read([3]).labels["energy"].tolist() == [-3.0]


def test_noise_of_a_gpu_is_no_contradiction(tmp_path):
    parts = [write(tmp_path / "a", [3]), write(tmp_path / "b", [3], energy=np.array(-3.000001))]
    assert merge(parts, tmp_path / "both") == (1, 1)


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
