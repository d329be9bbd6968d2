"""Kill writers at every step and check what they leave; run by test_crash.py in its own process.

Children are forked, so that hundreds of deaths cost one import. Each tells its parent of every
append that returned.
"""

import hashlib
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import Dataset, DatasetWriter, Record, verify, writer
from mlff_distiller.errors import DatasetError

writer.MERGED_AT_ONCE = 4
METADATA = {"teacher": "none"}


def make_record(number: int) -> Record:
    n_atoms = number % 4 + 1
    return Record(
        Atoms([14] * n_atoms, np.full((n_atoms, 3), float(number))),
        {"energy": float(number), "forces": np.full((n_atoms, 3), number)},
        hashlib.sha256(str(number).encode()).hexdigest(),
        number,
    )


def append_all(folder: Path, n: int, pipe: int) -> None:
    with DatasetWriter(folder, METADATA) as out:
        while len(out) < n:
            out.append([make_record(len(out))])
            os.write(pipe, b".")


def exit_at_call(number: int) -> None:
    """Let this process vanish right before its ``number``-th change of the disk."""
    calls = 0

    def dying(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(9)
            return real(*arguments, **options)

        return call

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    Path.write_bytes = half_written(Path.write_bytes, dying(lambda: None))


def half_written(real, die):
    def write(path, content, **options):
        real(path, content[: len(content) // 2], **options)
        die()
        return real(path, content, **options)

    return write


def run_child(folder: Path, n: int, prepare, wait) -> tuple[int, int]:
    """Acknowledged appends, and the exit status of a child that appends until killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        prepare()
        append_all(folder, n, writing)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb", buffering=0) as stream:
        done = wait(child, stream)
        status = os.waitpid(child, 0)[1]
        return done + len(stream.read()), status


def check(folder: Path, at_least: int) -> int:
    """Everything acknowledged is there, whole and in order; at most one more; reopening works."""
    if not (folder / "manifest.json").exists():
        assert at_least == 0
        return 0
    dataset = Dataset(folder)
    n = len(dataset)
    assert at_least <= n <= at_least + 1, (at_least, n)
    energies = dataset.read(range(n)).labels["energy"].tolist()
    assert energies == [float(number) for number in range(n)]
    report = verify(folder)
    assert report.ok, report
    assert report.n_records == n
    DatasetWriter(folder, METADATA).close()
    report = verify(folder)
    assert report.ok, report
    assert report.notes == []
    assert len(Dataset(folder)) == n
    return n


def die_at_every_call(folder: Path) -> None:
    os.fsync = lambda descriptor: None  # the kernel survives; waiting for the disk only costs
    number, status = 0, 1
    while status:
        number += 1
        own = folder / str(number)
        done, status = run_child(own, 5, partial(exit_at_call, number), lambda *_: 0)
        check(own, done)
        with DatasetWriter(own, METADATA) as out:
            while len(out) < 6:
                out.append([make_record(len(out))])
        assert check(own, 6) == 6
    assert number > 50, number
    print(f"died at {number - 1} calls")


def die_at_any_time(folder: Path) -> None:
    random.seed(0)
    n, deaths = 0, 0
    for _ in range(25):

        def kill(child: int, appends) -> int:
            enough = random.randrange(6)
            done = sum(len(appends.read(1)) for _ in range(enough))
            time.sleep(random.uniform(0.0, 0.02))
            os.kill(child, signal.SIGKILL)
            return done

        done, status = run_child(folder, 10**9, lambda: None, kill)
        deaths += status == signal.SIGKILL
        n = check(folder, n + done)
    assert deaths == 25, deaths
    assert n > 40, n
    print(f"died {deaths} times, {n} records")


def fork_while_writing(folder: Path) -> None:
    """A forked child neither keeps the lock nor may use the writer."""
    out = DatasetWriter(folder, METADATA)
    out.append([make_record(0)])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            out.append([make_record(1)])
            os.write(writing, b"the child has appended")
        except DatasetError as error:
            os.write(writing, str(error).encode())
        time.sleep(10)
        os._exit(0)
    message = os.read(reading, 1000).decode()
    assert "closed" in message, message
    try:
        DatasetWriter(folder, METADATA)
    except DatasetError as error:
        message = str(error)
    assert f"process {os.getpid()}" in message, message
    out.append([make_record(1)])
    out.close()
    DatasetWriter(folder, METADATA).close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert check(folder, 2) == 2
    print("the lock is the parent's alone")


if __name__ == "__main__":
    {
        function.__name__: function
        for function in (die_at_every_call, die_at_any_time, fork_while_writing)
    }[sys.argv[1]](Path(sys.argv[2]))
