import hashlib
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlff_distiller.dataset import Dataset, DatasetWriter, Record, structure_hash, verify
from mlff_distiller.properties import LABELS, STRUCTURE


def assert_same(read: Record, written: Record) -> None:
    assert np.array_equal(read.atoms.numbers, written.atoms.numbers)
    assert np.array_equal(read.atoms.positions, written.atoms.positions)
    assert np.array_equal(read.atoms.cell.array, written.atoms.cell.array)
    assert np.array_equal(read.atoms.pbc, written.atoms.pbc)
    assert structure_hash(read.atoms) == structure_hash(written.atoms)
    present = {name for name, value in written.labels.items() if np.isfinite(value).all()}
    assert set(read.labels) == present
    for name in present:
        assert read.labels[name].dtype == LABELS[name].dtype
        expected = np.asarray(written.labels[name]).astype(LABELS[name].dtype)
        assert np.array_equal(read.labels[name], expected)
    assert (read.key, read.group) == (written.key, written.group)
    assert read.provenance == dict(written.provenance)


@pytest.fixture
def various(record) -> list[Record]:
    """Sizes, cells, periodicities, missing labels, provenance: one oddity each."""
    molecule = Atoms("H2O", np.eye(3))
    slab = Atoms("Si2", [[0, 0, -1e5], [1, 2, 3]], cell=[[4, 0, 0], [1, 4, 0], [0, 0, 0]])
    slab.pbc = [True, True, False]
    ion = Atoms("Og", [[-0.0, 1e-300, 0.1]], info={"charge": -1, "spin": 2.0})
    no_stress = {"energy": -1.5, "forces": np.ones((3, 3))}
    nan_stress = {"energy": 1e300, "forces": np.zeros((2, 3)), "stress": np.full((3, 3), np.nan)}
    one_atom = {"energy": np.float32(0.1), "forces": np.zeros((1, 3))}
    return [
        record(0, 50),
        record(1, atoms=molecule, labels=no_stress, provenance={}),
        record(2, atoms=slab, labels=nan_stress, group=-(2**63)),
        record(3, atoms=ion, labels=one_atom, group=2**63 - 1),
        record(4, 1, provenance={"où": "Zürich 🧪", "nested": {"list": [1, None, 0.1]}}),
        record(5, provenance={"array": np.arange(3), "scalar": np.float32(0.5)}),
        record(6, 200),
    ]


def test_every_oddity_comes_back(various, tmp_path):
    with DatasetWriter(tmp_path, {}) as writer:
        writer.append(various)
    read = Dataset(tmp_path).records(range(len(various)))
    read[5].provenance["array"] = np.array(read[5].provenance["array"])
    for one, other in zip(read[:5] + read[6:], various[:5] + various[6:], strict=True):
        assert_same(one, other)
    assert np.array_equal(read[5].provenance["array"], np.arange(3))
    assert read[3].atoms.info == {"charge": -1.0, "spin": 2.0}
    assert read[1].atoms.info == {}


def test_batch_has_the_table_s_types_and_nan_for_what_is_missing(various, tmp_path):
    with DatasetWriter(tmp_path, {}) as writer:
        writer.append(various)
    batch = Dataset(tmp_path).read([1, 0])
    assert batch.positions.dtype == batch.cell.dtype == torch.float64
    assert batch.atomic_numbers.dtype == batch.system_idx.dtype == torch.int64
    assert batch.pbc.tolist() == [[False] * 3, [True] * 3]
    assert batch.system_idx.tolist() == [0] * 3 + [1] * 50
    for name, row in LABELS.items():
        assert str(batch.labels[name].dtype) == f"torch.{row.dtype}"
    assert batch.labels["stress"].shape == (2, 3, 3)
    assert batch.labels["stress"][0].isnan().all()
    assert batch.labels["stress"][1].isfinite().all()
    assert batch.labels["forces"].shape == (53, 3)


def test_the_table_drives_the_schema():
    from mlff_distiller.dataset.columns import COLUMNS

    assert list(COLUMNS)[: len(STRUCTURE) + len(LABELS)] == [*STRUCTURE, *LABELS]


def test_order_repetition_and_negative_numbers(stored, record):
    dataset = Dataset(stored)
    wanted = [9, 0, 3, 3, -1, 8, 7, 6]
    batch = dataset.read(wanted)
    numbers = [number % 10 for number in wanted]
    expected = [record(n, n % 4 + 1 if n < 7 else 3) for n in numbers]
    assert batch.labels["energy"].tolist() == [float(r.labels["energy"]) for r in expected]
    positions = np.concatenate([r.atoms.positions for r in expected])
    assert np.array_equal(batch.positions.numpy(), positions)
    for read, written in zip(dataset.records(wanted), expected, strict=True):
        assert_same(read, written)


def test_columns_of_identity(stored, record):
    dataset = Dataset(stored)
    assert len(dataset) == 10
    assert dataset.keys == [record(n).key for n in range(10)]
    assert dataset.groups.tolist() == [n % 3 for n in range(10)]
    assert dataset.groups.dtype == np.int64
    assert dataset.n_atoms.tolist() == [1, 2, 3, 4, 1, 2, 3, 3, 3, 3]
    assert dataset.provenance(8) == {"source": "test", "number": 8}
    assert dataset.metadata == {"teacher": "none"}
    with pytest.raises(ValueError, match="read-only"):
        dataset.groups[0] = 5


@pytest.mark.parametrize("indices", [[10], [-11], [0, 99]])
def test_a_record_that_does_not_exist(stored, indices):
    with pytest.raises(IndexError, match="of 10 records"):
        Dataset(stored).read(indices)


@pytest.mark.parametrize("indices", [[0.5], [True, False], [[0, 1]]])
def test_indices_that_are_none(stored, indices):
    with pytest.raises(TypeError, match="whole numbers"):
        Dataset(stored).read(indices)


def test_an_empty_dataset_and_an_empty_batch(tmp_path, stored):
    with DatasetWriter(tmp_path / "empty", {}) as writer:
        writer.append([])
        assert len(writer) == 0
    dataset = Dataset(tmp_path / "empty")
    assert (len(dataset), dataset.keys, len(dataset.groups), len(dataset.n_atoms)) == (0, [], 0, 0)
    assert dataset.read([]).n_systems == 0
    assert Dataset(stored).read([]).n_atoms == 0
    assert verify(tmp_path / "empty").ok


def test_a_reader_can_be_pickled(stored):
    dataset = Dataset(stored)
    dataset.read([0])
    other = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(other.read([0, 9]).positions, dataset.read([0, 9]).positions)


def test_equal_records_give_equal_bytes(record, tmp_path):
    contents = []
    for name in ("a", "b"):
        with DatasetWriter(tmp_path / name, {"x": 1}) as writer:
            writer.append([record(0), record(1)])
        contents.append({p.name: p.read_bytes() for p in (tmp_path / name).glob("[!.]*")})
    assert contents[0] == contents[1]


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@st.composite
def ragged_records(draw) -> list[Record]:
    records = []
    for number, n_atoms in enumerate(draw(st.lists(st.integers(1, 7), min_size=1, max_size=9))):
        atoms = Atoms(
            draw(arrays(np.int64, n_atoms, elements=st.integers(1, 118))),
            draw(arrays(np.float64, (n_atoms, 3), elements=st.floats(-1e6, 1e6))),
        )
        if draw(st.booleans()):
            atoms.cell = np.diag(draw(st.lists(st.floats(0.5, 100), min_size=3, max_size=3)))
            atoms.pbc = draw(st.lists(st.booleans(), min_size=3, max_size=3))
        labels = {
            "energy": draw(numbers),
            "forces": draw(arrays(np.float64, (n_atoms, 3), elements=numbers)),
        }
        if draw(st.booleans()):
            labels["stress"] = np.full((3, 3), draw(numbers))
        key = hashlib.sha256(str(number).encode()).hexdigest()
        group = draw(st.integers(-(2**63), 2**63 - 1))
        provenance = draw(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values))
        records.append(Record(atoms, labels, key, group, provenance))
    return records


@settings(max_examples=40, deadline=None)
@given(ragged_records(), st.integers(1, 4), st.randoms(use_true_random=False))
def test_ragged_frames_in_any_order(records, batch, random):
    with TemporaryDirectory() as name:
        folder = Path(name)
        with DatasetWriter(folder, {}) as writer:
            for start in range(0, len(records), batch):
                writer.append(records[start : start + batch])
        order = random.choices(range(len(records)), k=len(records))
        for read, index in zip(Dataset(folder).records(order), order, strict=True):
            assert_same(read, records[index])
        assert verify(folder).ok
