"""A sequence of frames that is read when it is asked for, and no more of it than that."""

import operator
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset, DatasetWriter, Frames, frames
from mlff_distiller.dataset.frames import cut
from mlff_distiller.errors import DatasetError

N = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory, record):
    """Frames of 1 to 12 atoms, in several shards; the energy is the frame's number."""
    folder = tmp_path_factory.mktemp("frames")
    with DatasetWriter(folder, {}) as writer:
        for start in range(0, N, 16):
            batch = []
            for number in range(start, min(start + 16, N)):
                n_atoms = 1 + number % 12
                labels = {"energy": float(number), "forces": np.full((n_atoms, 3), 0.5)}
                batch.append(record(number, n_atoms, labels=labels))
            writer.append(batch)
    return folder


def numbers(some) -> list[int]:
    assert all(frame.n_systems == 1 for frame in some)
    return [int(frame.labels["energy"]) for frame in some]


def held(n: int) -> list[Batch]:
    """Of 5 atoms each, in memory, numbered from 1000; without stress."""
    made = []
    for number in range(n):
        one = torch.full((1,), 1000.0 + number, dtype=torch.float64)
        labels = {"energy": one, "forces": torch.zeros(5, 3)}
        types, system = torch.ones(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
        positions, cell = torch.zeros(5, 3).double(), torch.zeros(1, 3, 3).double()
        pbc = torch.zeros(1, 3, dtype=torch.bool)
        made.append(Batch(positions, types, system, cell, pbc, labels))
    return made


@pytest.mark.parametrize("most", [1, 20, 10**6])
def test_it_is_the_list_of_its_frames(folder, monkeypatch, most):
    monkeypatch.setattr(frames, "_ATOMS_AT_ONCE", most)
    own = Frames(Dataset(folder), [7, 3, 50, 3, -1]).beside(held(2)).beside(held(1))
    known = [7, 3, 50, 3, N - 1, 1000, 1001, 1000]
    assert len(own) == len(known)
    assert own.n_atoms.tolist() == [8, 4, 3, 4, 12, 5, 5, 5]
    assert numbers(own) == known
    assert [numbers([own[k]])[0] for k in range(-8, 8)] == known * 2
    for part in (slice(1, 6), slice(None, None, 3), slice(None, None, -2), slice(9, 20)):
        assert numbers(own[part]) == known[part]
        assert own[part].n_atoms.tolist() == own.n_atoms[part].tolist()
    assert numbers(own[1:][::2]) == known[1:][::2]
    assert numbers(own.take([6, 0, 0, 7])) == [1001, 7, 7, 1000]
    assert own.take([]) == []
    assert Frames.of(own) is own
    assert numbers(Frames.of(held(3))) == [1000, 1001, 1002]
    for outside in (8, -9):
        with pytest.raises(IndexError):
            operator.getitem(own, outside)


def test_a_frame_is_what_the_dataset_reads(folder):
    dataset = Dataset(folder)
    for number, frame in enumerate(Frames(dataset, range(N))):
        known = dataset.read([number])
        assert torch.equal(frame.positions, known.positions)
        assert torch.equal(frame.atomic_numbers, known.atomic_numbers)
        assert frame.labels.keys() == known.labels.keys()
        assert bool(frame.labels["stress"].isnan().all())


def test_it_reads_what_is_asked_for_in_runs_of_bounded_size(folder, monkeypatch):
    monkeypatch.setattr(frames, "_ATOMS_AT_ONCE", 40)
    dataset, read, real = Dataset(folder), [], Dataset.read

    def counted(self, indices):
        batch = real(self, indices)
        read.append(batch.n_atoms)
        return batch

    monkeypatch.setattr(Dataset, "read", counted)
    own = Frames(dataset, range(N))
    assert own[10:].n_atoms.sum() == own.n_atoms[10:].sum()
    assert not read
    assert own[3].n_atoms == 4
    assert read == [4]
    assert sum(frame.n_atoms for frame in own) == own.n_atoms.sum() == sum(read) - 4
    assert max(read) <= 40
    next(iter(own[20:]))
    assert sum(read) - 4 <= own.n_atoms.sum() + 40


def test_thinned_frames_are_evenly_spread(folder):
    own = Frames(Dataset(folder), range(N))
    total = int(own.n_atoms.sum())
    assert numbers(own.thinned(total)) == list(range(N))
    assert numbers(own.thinned(total - 1)) == list(range(0, N, 2))
    assert numbers(own.thinned(total // 7)) == list(range(0, N, 8))
    assert len(Frames().thinned(5)) == 0


@pytest.mark.parametrize("wrong", [[N], [-N - 1]])
def test_a_record_that_does_not_exist(folder, wrong):
    with pytest.raises(IndexError, match=f"of {N} records"):
        Frames(Dataset(folder), wrong)


def test_a_damaged_record_is_named_where_it_is_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = sorted(copy.glob("*.h5"))[1]
    with h5py.File(path, "r") as file:
        place = file["systems"].id.get_offset() + 5 * file["systems"].dtype.itemsize
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\x17")
    own = Frames(Dataset(copy), range(N))
    assert numbers(own[:21]) == list(range(21))
    with pytest.raises(DatasetError, match=rf"(?s){path}: record 5 is damaged.*remedy"):
        list(own)


def test_it_can_be_pickled(folder):
    own = Frames(Dataset(folder), range(0, N, 3)).beside(held(1))
    assert numbers(pickle.loads(pickle.dumps(own))) == numbers(own)


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 400))
def test_cutting_loses_nothing(sizes, most):
    sizes = np.array(sizes, dtype=np.int64)
    runs = cut(sizes, most)
    assert [n for first, end in runs for n in range(first, end)] == list(range(len(sizes)))
    totals = [int(sizes[first:end].sum()) for first, end in runs]
    for (first, end), total in zip(runs, totals, strict=True):
        assert total <= most or end - first == 1
    for before, (first, _) in zip(totals, runs[1:], strict=False):
        assert before + sizes[first] > most  # greedy: no batch could have taken the next frame
