"""Every frame once, in an order drawn from (seed, epoch); exact resume; no thread left behind."""

import contextlib
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import AtomicDataLoader, Dataset, DatasetWriter
from mlff_distiller.dataset import loader as loading
from mlff_distiller.dataset.loader import cut, share_out
from mlff_distiller.dataset.pairs import pack, pairs_of
from mlff_distiller.errors import DatasetError
from mlff_distiller.neighbors import Neighbors, neighbor_list

N = 60


@pytest.fixture(scope="session")
def folder(tmp_path_factory, record):
    """Frames of 1 to 12 atoms, in several shards; the energy is the frame's number."""
    folder = tmp_path_factory.mktemp("loader")
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, {}) as writer:
        for start in range(0, N, 16):
            batch = []
            for number in range(start, min(start + 16, N)):
                atoms = bulk("Si", cubic=True) if number % 5 == 0 else bulk("Cu") * (2, 1, 1)
                atoms = atoms[: 1 + number % len(atoms)]
                atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
                forces = rng.normal(size=(len(atoms), 3))
                labels = {"energy": float(number), "forces": forces}
                batch.append(record(number, atoms=atoms, labels=labels))
            writer.append(batch)
    return folder


def loader(folder, indices=range(N), **changes) -> AtomicDataLoader:
    settings = {"atoms_per_batch": 12, "cutoff": 4.0} | changes
    return AtomicDataLoader(Dataset(folder), indices, **settings)


def numbers(sample) -> list[int]:
    batch = sample[0] if isinstance(sample, tuple) else sample
    return [int(energy) for energy in batch.labels["energy"]]


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, Batch):
        own = [value.positions, value.atomic_numbers, value.system_idx, value.cell, value.pbc]
        return [*own, *(value.labels[name] for name in sorted(value.labels))]
    if isinstance(value, Neighbors):
        return [value.i, value.j, value.shifts]
    return [tensor for part in value for tensor in tensors(part)]


def same(one, other) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        for a, b in zip(tensors(one), tensors(other), strict=True)
    )


def our_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("AtomicDataLoader")]


def test_every_frame_once_and_no_batch_too_large(folder):
    seen, own = [], loader(folder)
    for batch, _ in own:
        assert batch.n_atoms <= 12 or batch.n_systems == 1
        seen += numbers(batch)
    assert sorted(seen) == list(range(N))
    assert own.epoch == 1


def test_a_sample_is_what_the_training_loop_collates(folder):
    train = pytest.importorskip("mlff_distiller.training.minibatch")
    dataset = Dataset(folder)
    for records, sample in zip(loader(folder).batches(), loader(folder), strict=True):
        frames = [dataset.read([record]) for record in records]
        assert same(sample, train.collate([(f, neighbor_list(f, 4.0)) for f in frames]))
        assert same(sample[1], neighbor_list(sample[0], 4.0))


def test_without_a_cutoff_it_gives_batches(folder):
    dataset = Dataset(folder)
    own = loader(folder, cutoff=None)
    for records, batch in zip(own.batches(), own, strict=True):
        assert same(batch, dataset.read(records))


def test_unshuffled_it_keeps_the_order_given(folder):
    wanted = [7, 3, 50, 3, 0, -1]
    seen = [n for sample in loader(folder, wanted, shuffle=False) for n in numbers(sample)]
    assert seen == [7, 3, 50, 3, 0, N - 1]


def test_the_order_is_that_of_seed_and_epoch(folder):
    def orders(**changes):
        own = loader(folder, **changes)
        return [[numbers(sample) for sample in own] for _ in range(2)]

    one = orders(seed=1, workers=1)
    assert one == orders(seed=1, workers=3, prefetch=7)
    assert one[0] != one[1]
    assert one[0] != orders(seed=2)[0]
    later = loader(folder, seed=1)
    later.set_epoch(1)
    assert [numbers(sample) for sample in later] == one[1]


@pytest.mark.parametrize("done", [0, 1, 5, "all"])
def test_resume_in_the_middle_of_an_epoch(folder, done):
    straight = loader(folder, seed=3)
    list(straight)  # the epoch before
    expected, interrupted = list(straight) + list(straight), loader(folder, seed=3)
    done = len(loader(folder, seed=3).batches()) if done == "all" else done
    interrupted.set_epoch(1)
    n_epoch = len(interrupted)
    done = n_epoch if done > n_epoch or done == n_epoch else done
    iterator = iter(interrupted)
    for _ in range(done):
        next(iterator)
    state = json.loads(json.dumps(interrupted.state()))
    del iterator
    resumed = loader(folder, seed=3, workers=3, prefetch=1)
    resumed.load_state(state)
    resumed.set_epoch(1)  # as a loop over epochs says; the place in the epoch stays
    rest = list(resumed)
    assert resumed.epoch == 2
    rest += list(resumed)
    assert len(rest) == len(expected) - done
    assert all(same(one, other) for one, other in zip(rest, expected[done:], strict=True))


def test_a_position_counts_once_and_a_new_iteration_begins_anew(folder):
    own = loader(folder)
    first = [numbers(sample) for sample in own]
    own.set_epoch(0)
    for _ in own:
        break
    assert own.state()["batch"] == 1
    assert [numbers(sample) for sample in own] == first


def test_a_new_iteration_ends_the_one_before(folder):
    own = loader(folder)
    old = iter(own)
    next(old)
    new = iter(own)
    assert next(old, None) is None
    assert len(list(new)) == len(loader(folder))


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"atoms_per_batch": 13}, {"shuffle": False}, {"indices": range(9)}]
)
def test_a_position_of_another_loader_is_refused(folder, changes):
    with pytest.raises(DatasetError, match=r"(?s)another loader.*expected.*remedy"):
        loader(folder, **changes).load_state(loader(folder).state())


@pytest.mark.parametrize("place", [{"epoch": -1}, {"batch": "2"}, {"batch": None}])
def test_a_position_that_is_none(folder, place):
    own = loader(folder)
    with pytest.raises(DatasetError, match="no position"):
        own.load_state(own.state() | place)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_share_every_frame_and_have_equally_many_batches(folder, world_size):
    ranks = [loader(folder, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(own) for own in ranks}) == 1
    assert len({json.dumps(own.state()) for own in ranks}) == 1
    seen = [n for own in ranks for sample in own for n in numbers(sample)]
    assert sorted(seen) == list(range(N))


def test_too_few_frames_for_the_ranks(folder):
    with pytest.raises(DatasetError, match=r"(?s)cannot be shared out equally.*5 ranks.*3"):
        loader(folder, range(3), rank=4, world_size=5).batches()


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 400), st.integers(1, 9))
def test_cutting_loses_nothing(sizes, most, world_size):
    sizes = np.array(sizes, dtype=np.int64)
    runs = cut(sizes, most)
    assert [n for first, end in runs for n in range(first, end)] == list(range(len(sizes)))
    totals = [int(sizes[first:end].sum()) for first, end in runs]
    for (first, end), total in zip(runs, totals, strict=True):
        assert total <= most or end - first == 1
    for before, (first, _) in zip(totals, runs[1:], strict=False):
        assert before + sizes[first] > most  # greedy: no batch could have taken the next frame
    parts = [np.arange(first, end) for first, end in runs]
    reachable = -(-len(parts) // world_size) * world_size
    if reachable > len(sizes):
        with pytest.raises(DatasetError, match="cannot be shared out equally"):
            share_out(parts, world_size)
        return
    shared = share_out(parts, world_size)
    assert len(shared) % world_size == 0
    assert all(len(part) for part in shared)
    assert [n for part in shared for n in part.tolist()] == list(range(len(sizes)))


def test_kept_pairs_are_the_same_pairs(folder, monkeypatch):
    own = loader(folder, pair_cache_bytes=10**6)
    for records, sample in zip(own.batches(), own, strict=True):
        assert same(sample[1], neighbor_list(Dataset(folder).read(records), 4.0))
    found = []
    monkeypatch.setattr(
        "mlff_distiller.dataset.pairs.find_pairs", lambda *a, **k: found.append(1) or 1 / 0
    )
    for records, sample in zip(own.batches(), own, strict=True):
        assert same(sample[1], neighbor_list(Dataset(folder).read(records), 4.0))
    assert not found


def test_kept_pairs_fit_their_budget(folder):
    own = loader(folder, pair_cache_bytes=2000)
    list(own)
    assert 0 < sum(pairs.n_bytes for pairs in own._pairs.values()) <= 2000


def test_pairs_beyond_the_compact_types():
    """Shifts over 127, from an atom far outside its cell, and more atoms than 16 bits count."""
    far = bulk("Cu", cubic=True)
    far.positions[0, 0] += 200 * far.cell[0, 0]
    many = bulk("Cu", cubic=True) * (26, 26, 26)
    assert len(many) > 2**16
    for atoms in (far, many):
        batch = Batch.from_atoms([atoms])
        assert same(pack(pairs_of(batch, {}, 2.6)).unpack(), neighbor_list(batch, 2.6))


def test_a_damaged_record_is_named(folder, tmp_path):
    import shutil

    import h5py

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = sorted(copy.glob("*.h5"))[1]
    with h5py.File(path, "r") as file:
        place = file["systems"].id.get_offset() + 5 * file["systems"].dtype.itemsize
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\x17")
    own = loader(copy, workers=3)
    with pytest.raises(DatasetError, match=rf"(?s)record 21 of dataset {copy}.*damaged.*remedy"):
        list(own)
    assert not our_threads()


def test_a_structure_that_cannot_be_searched_is_named(folder, monkeypatch):
    real = neighbor_list.__globals__["find_pairs"]

    def failing(positions, *rest, **options):
        if len(positions) == 7:
            raise RuntimeError("no pairs for seven")
        return real(positions, *rest, **options)

    monkeypatch.setattr("mlff_distiller.dataset.pairs.find_pairs", failing)
    first = next(int(n) for n in range(N) if Dataset(folder).n_atoms[n] == 7)
    with pytest.raises(DatasetError, match=rf"(?s)record {first} .*no pairs for seven"):
        list(loader(folder, [*range(3), first, 6]))


@pytest.mark.parametrize("wrong", [[N], [-N - 1]])
def test_a_record_that_does_not_exist(folder, wrong):
    with pytest.raises(IndexError, match=f"of {N} records"):
        loader(folder, wrong)


@pytest.mark.parametrize(
    "changes",
    [{"atoms_per_batch": 0}, {"workers": 0}, {"prefetch": 0}, {"seed": -1}, {"rank": 1}],
)
def test_settings_that_make_no_sense(folder, changes):
    with pytest.raises(DatasetError, match=r"(?s)expected.*found"):
        loader(folder, **changes)


def test_no_records_are_no_batches(folder):
    assert list(loader(folder, [])) == []


def test_threads_end_when_the_consumer_stops(folder):
    for _ in loader(folder):
        assert our_threads()
        break
    gc.collect()
    assert not our_threads()

    def fails():
        for _ in loader(folder):
            raise KeyError("the consumer's")

    with contextlib.suppress(KeyError):
        fails()
    gc.collect()
    assert not our_threads()
    list(loader(folder))
    assert not our_threads()


def test_never_more_than_prefetch_batches_ahead(folder, monkeypatch):
    made, real = [], AtomicDataLoader._load

    def counted(self, records):
        made.append(1)
        return real(self, records)

    monkeypatch.setattr(AtomicDataLoader, "_load", counted)
    for number, _ in enumerate(loader(folder, prefetch=3, workers=2)):
        time.sleep(0.005)
        assert len(made) <= number + 1 + 3


def test_memory_stays_flat(record, tmp_path):
    """Ten epochs hold no more than two did; a batch is 1 MB."""
    with DatasetWriter(tmp_path, {}) as writer:
        writer.append([record(number, 2000) for number in range(64)])
    own = AtomicDataLoader(Dataset(tmp_path), range(64), atoms_per_batch=16_000, prefetch=2)

    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(10):
        for _ in own:
            pass
    before = resident()
    for _ in range(40):
        for _ in own:
            pass
    assert resident() - before < 15 * 2**20


def test_it_can_be_pickled_and_used_in_a_fork(folder):
    own = loader(folder)
    expected = [numbers(sample) for sample in own]
    own.set_epoch(0)
    running = iter(own)
    next(running)
    assert [numbers(sample) for sample in pickle.loads(pickle.dumps(loader(folder)))] == expected
    code = "import test_loader; test_loader.in_a_fork(__import__('sys').argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == json.dumps(expected), done.stderr


def in_a_fork(folder: str) -> None:
    """Print what a child reads that was forked while its parent iterates."""
    own = loader(folder)
    running = iter(own)
    next(running)
    child = os.fork()
    if child == 0:
        running.close()
        print(json.dumps([numbers(sample) for sample in own]), end="", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    running.close()


def test_control_c_ends_it_at_once(folder):
    code = (
        "import sys, test_loader as t\n"
        "while True:\n"
        "    for _ in t.loader(sys.argv[1]):\n"
        "        print('x', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        for _ in range(20):
            assert process.stdout.readline() == "x\n"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert "KeyboardInterrupt" in process.stderr.read()
        assert process.wait(timeout=60) == -signal.SIGINT


@pytest.mark.gpu
@pytest.mark.parametrize("largest", [0, 1024])
def test_on_a_gpu_the_samples_are_the_same(folder, monkeypatch, largest):
    """Searched there or here; pairs of an atom in any order."""
    monkeypatch.setattr(loading, "LARGEST_BY_IMAGES", largest)
    for sample, expected in zip(loader(folder, device="cuda"), loader(folder), strict=True):
        assert all(tensor.is_cuda for tensor in tensors(sample))
        batch, neighbors = (part.to("cpu") for part in sample)
        assert same(batch, expected[0])
        pairs, known = (
            torch.column_stack([own.i, own.j, own.shifts]).unique(dim=0)
            for own in (neighbors, expected[1])
        )
        assert torch.equal(pairs, known)
        assert len(pairs) == len(neighbors.i)
