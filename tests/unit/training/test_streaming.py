"""A set larger than memory trains, and memory changes no bit of the student."""

import dataclasses
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import psutil
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from tests.conftest import ROOT
from tests.unit.training.test_train import SMALL, Killed, frames, molecule, painn, state

from mlff_distiller.dataset import Dataset, DatasetWriter, Frames, Record, label_key
from mlff_distiller.errors import DatasetError
from mlff_distiller.students import Student, nep_for
from mlff_distiller.training import Samples, TrainingSettings, cache, metrics, train, validate
from mlff_distiller.training.cache import Cache, Room, n_bytes, room_on
from mlff_distiller.training.loss import LossSettings
from mlff_distiller.training.minibatch import Minibatches
from mlff_distiller.training.update import Updater

N = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """EMT's labels of cells and of molecules, which have no stress, in several shards."""
    folder = tmp_path_factory.mktemp("streaming") / "labels"
    with DatasetWriter(folder, {}) as writer:
        for number, frame in enumerate([*frames(N - 5), *molecule(5)]):
            (atoms,) = frame.to_atoms()
            labels = {name: frame.labels[name][0].numpy() for name in ("energy", "stress")}
            labels |= {"forces": frame.labels["forces"].numpy()}
            labels |= {"forces_spread": np.linspace(0.05, 0.2, len(atoms)) * (1 + number % 3)}
            bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            writer.append([Record(bare, labels, label_key(bare, "EMT"), number)])
    return folder


def parts(folder: Path) -> tuple[Frames, Frames]:
    dataset = Dataset(folder)
    return Frames(dataset, range(N - 6)).beside(molecule(4)), Frames(dataset, range(N - 6, N))


def taught(
    make, training: Sequence, validation: Sequence, settings: TrainingSettings, **options
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    student: Student = make(training)
    history = train(student, training, validation, settings, **options)
    return state(student), [{**row, "seconds": 0.0} for row in history]


@pytest.mark.parametrize("make", [lambda f: nep_for(f, SMALL, 0), painn])
def test_the_same_bits_whatever_is_in_memory(folder, make):
    """All of it, some, nothing; lists of frames, too; with probes, weights and a committee."""
    training, validation = parts(folder)
    results = []
    for memory_GB in (None, 3e-4, 0.0):
        settings = TrainingSettings(
            epochs=3,
            atoms_per_batch=20,
            validations=5,
            memory_GB=memory_GB,
            loss=LossSettings(disagreement=1.0),
        )
        weights = np.linspace(0.5, 1.0, len(training)).tolist()
        options = {"probes": [(N - 6, N - 5)], "frame_weights": weights}
        results.append(taught(make, training, validation, settings, **options))
        if memory_GB is None:
            results.append(taught(make, list(training), list(validation), settings, **options))
    known, history = results[0]
    for weights, rows in results[1:]:
        assert rows == history
        assert weights.keys() == known.keys()
        assert all(torch.equal(value, known[name]) for name, value in weights.items())
    assert not our_threads()


def test_interrupted_without_memory_and_continued_with(folder, tmp_path, monkeypatch):
    training, validation = parts(folder)
    kept, streamed = (
        TrainingSettings(epochs=4, atoms_per_batch=20, checkpoint_seconds=0.0, memory_GB=memory_GB)
        for memory_GB in (None, 0.0)
    )
    make = lambda f: nep_for(f, SMALL, 0)  # noqa: E731
    straight, history = taught(make, training, validation, kept)
    update, done = Updater.update, 0

    def dying(*arguments):
        nonlocal done
        if done == 7:
            raise Killed
        done += 1
        return update(*arguments)

    checkpoint = tmp_path / "checkpoint.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", dying)
        with pytest.raises(Killed):
            taught(make, training, validation, streamed, checkpoint=checkpoint)
    assert not our_threads()
    resumed, again = taught(make, training, validation, kept, checkpoint=checkpoint)
    assert [row["train_loss"] for row in again] == [row["train_loss"] for row in history]
    assert all(torch.equal(value, straight[name]) for name, value in resumed.items())


def our_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("mlff-distiller-frames")]


def test_what_fits_is_read_once_and_nothing_more_than_one_minibatch_ahead(folder, monkeypatch):
    training, _ = parts(folder)
    student = nep_for(training, SMALL, 0)
    minibatches = {
        room: Minibatches(training, student, 20, room=None if room is None else Room(room))
        for room in (None, 0)
    }
    read, real = [], Frames.take

    def counted(self, numbers):
        read.append(len(numbers))
        return real(self, numbers)

    monkeypatch.setattr(Frames, "take", counted)
    for room, own in minibatches.items():
        for epoch in range(2):
            read.clear()
            plan = own.plan(epoch)
            for number, units in enumerate(plan, 1):
                own.make(units)
                assert sum(read) <= sum(len(some) for some in plan[:number])
                own.prepare(plan[number] if number < len(plan) else ())
                own.wait()
                assert sum(read) <= sum(len(some) for some in plan[: number + 1])
            assert sum(read) == (0 if room is None and epoch else len(training))
        own.close()
    assert not our_threads()


def test_what_there_is_room_for_is_kept():
    made = []

    def make(numbers):
        made.append(list(numbers))
        return [torch.full((100,), float(n)) for n in numbers]

    size = n_bytes(torch.zeros(100))
    assert size == pytest.approx(1000, abs=0)
    own = Cache(make, Room(3 * size))
    assert [float(one[0]) for one in own.get([4, 2])] == [4.0, 2.0]
    own.prepare([2, 7, 9])
    assert [float(one[0]) for one in own.get([9, 2, 7])] == [9.0, 2.0, 7.0]
    assert [float(one[0]) for one in own.get([2, 4, 7, 9])] == [2.0, 4.0, 7.0, 9.0]
    assert made == [[4, 2], [7, 9], [9]]
    own.close()
    room = Room(10)
    assert [room.take(6), room.take(5), room.take(1)] == [True, False, False]


def test_a_record_damaged_meanwhile_is_named_where_training_waits(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    training, _ = parts(copy)
    student = nep_for(training, SMALL, 0)
    minibatches = Minibatches(training, student, 20, room=Room(0))
    (first, *_) = minibatches.plan(0)
    minibatches.prepare(first)
    minibatches.make(first)
    path = sorted(copy.glob("*.h5"))[3]
    with h5py.File(path, "r") as file:
        place = file["systems"].id.get_offset()
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\x17")
    minibatches.prepare([*range(len(training) - 1)])
    with pytest.raises(DatasetError, match=rf"(?s){path}: record 0 is damaged.*remedy"):
        minibatches.make(first)
    minibatches.make([0])  # a probe, which is in memory
    minibatches.close()


def test_validation_in_parts_is_validation_of_all(folder, monkeypatch):
    training, _ = parts(folder)
    student = nep_for(training, SMALL, 0).double()
    whole = validate(student, Samples(training, student))
    assert "validation_stress_mae_GPa" in whole
    monkeypatch.setattr(metrics, "_ATOMS_AT_ONCE", {"cpu": 8})
    for room in (None, Room(5e4), Room(0)):
        samples = Samples(training, student, room)
        first, second = (validate(student, samples) for _ in range(2))
        assert first == second
        assert first == pytest.approx(whole, rel=1e-9)
    assert not our_threads()


def test_half_of_what_is_free_and_no_more_than_the_process_may_have(monkeypatch):
    device = torch.device("cpu")

    def room(*options):
        own = room_on(device, *options)
        return own._left

    assert room(1.5, 1) == 1.5e9
    assert room(1.5, 3) == 0.5e9
    available = psutil.virtual_memory().available
    assert 0 < room(None, 1) < 0.6 * available
    own = psutil.Process().memory_info()
    monkeypatch.setattr(cache, "_cgroup_limits", lambda: [own.rss + 1000 * 2**20, 2**62])
    assert room(None, 1) == pytest.approx(500 * 2**20, rel=0.1)
    monkeypatch.setattr(cache, "_cgroup_limits", lambda: [1])
    assert room(None, 1) == 0
    monkeypatch.undo()
    monkeypatch.setattr(resource, "getrlimit", lambda which: (own.vms + 80 * 2**20, 0))
    assert room(None, 2) == pytest.approx(20 * 2**20, rel=0.3)


# -- in processes of their own --------------------------------------------------------------------

LIMIT = 15 * 2**20
"""Bytes by which the streamed training may grow the process. Its frames alone are 27 MB."""


def in_a_process(function: str, *arguments: object) -> tuple[list[str], dict[str, Any]]:
    words = ", ".join(repr(str(own)) for own in arguments)
    code = f"from tests.unit.training import test_streaming; test_streaming.{function}({words})"
    # What is freed goes back to the system, so that the size of the process means something.
    malloc = {f"MALLOC_{name}_THRESHOLD_": "262144" for name in ("MMAP", "TRIM")}
    environment = os.environ | malloc | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return [sys.executable, "-c", code], {"cwd": ROOT, "env": environment}


def test_a_set_larger_than_what_memory_may_hold(tmp_path):
    """Streamed, the process grows by half of the set at most; loaded, by more. Same bits."""
    words, options = in_a_process("train_a_large_set", tmp_path / "labels")
    done = subprocess.run(
        words, **options, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    streamed, loaded, equal = done.stdout.split()
    assert int(streamed) < LIMIT < int(loaded)
    assert equal == "True"


def train_a_large_set(folder: str) -> None:
    """Print by how many bytes training grows the process: streamed, and from a list; equality."""
    torch.set_num_threads(1)
    loss = importlib.import_module("mlff_distiller.training.loss")
    loss._ATOMS_OF_SPREAD = 2**16  # instead of a million, which would be most of this set
    rng, n = np.random.default_rng(0), 4_000
    crystal = bulk("Cu", cubic=True) * (3, 3, 3)
    with DatasetWriter(folder, {}) as writer:
        for start in range(0, n, 500):
            records = []
            for number in range(start, start + 500):
                atoms = crystal.copy()
                atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
                labels = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
                records.append(Record(atoms, labels, f"{number:064x}", number))
            writer.append(records)

    def grown(training: Sequence, validation: Sequence) -> tuple[int, dict[str, torch.Tensor]]:
        settings = TrainingSettings(
            updates=20, validations=2, atoms_per_batch=500, memory_GB=0.005, patience_fraction=1
        )
        before = peak()
        student = nep_for(training, NARROW, 0)
        train(student, training, validation, settings)
        return peak() - before, state(student)

    dataset = Dataset(folder)
    training, validation = Frames(dataset, range(n - 300)), Frames(dataset, range(n - 300, n))
    for _ in range(2):
        grown(training[:64], validation[:40])  # what a training needs without its data
    streamed, known = grown(training, validation)
    loaded, again = grown(list(training), list(validation))
    equal = all(torch.equal(value, again[name]) for name, value in known.items())
    print(streamed, loaded, equal)


NARROW = dataclasses.replace(SMALL, cutoff_radial_A=3.0, zbl=True)


def peak() -> int:
    """Bytes the process has had in memory at most."""
    status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's, too
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_control_c_ends_a_streamed_training(folder, tmp_path, start):
    told = tmp_path / "told"
    process = start(train_without_end, folder, told)
    while not told.exists() or told.stat().st_size < 3:
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=60)
    assert process.exitcode in (1, -signal.SIGINT)


def train_without_end(folder: Path, told: Path) -> None:
    """Train, and add a letter to ``told`` at each validation."""
    training, validation = parts(folder)
    settings = TrainingSettings(
        updates=10**6, validations=10**6, patience_fraction=1, memory_GB=0, atoms_per_batch=8
    )
    with told.open("w", buffering=1) as stream:
        tell = lambda *_: print("x", file=stream)  # noqa: E731
        train(nep_for(training, SMALL, 0), training, validation, settings, on_validation=tell)
