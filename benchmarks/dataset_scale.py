"""A dataset from ten thousand to a million frames of 50 atoms: writing, opening, reading, memory.

Every dataset is written by a process of its own in durable appends, and read by others. Random
batches are read from all datasets in turn, round by round, so that what else the machine does
falls on all alike; rates are medians of the rounds. "Cold" is one round after the kernel was asked
to drop the files from its cache; in the others it holds them. A million frames take 2.2 GB of disk.

    python benchmarks/dataset_scale.py --folder FOLDER --out benchmarks/results/dataset_scale.json
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import Dataset, DatasetWriter, Record, verify

N_ATOMS = 50
METADATA = {"teacher": "none: random numbers"}


def make(number, rng):
    numbers = rng.choice([8, 14], N_ATOMS)
    atoms = Atoms(numbers, rng.normal(0, 5, (N_ATOMS, 3)), cell=10 * np.eye(3), pbc=True)
    labels = {
        "energy": rng.normal(),
        "forces": rng.normal(size=(N_ATOMS, 3)),
        "stress": rng.normal(size=(3, 3)),
    }
    key = hashlib.sha256(str(number).encode()).hexdigest()
    provenance = {"tree": number // 1000, "branch": number // 20, "step": number % 20}
    return Record(atoms, labels, key, number // 1000, provenance)


def high_water():
    """MiB this process has held at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def write(folder, n_frames, per_append):
    rng, seconds = np.random.default_rng(0), []
    before = high_water()
    with DatasetWriter(folder, METADATA) as writer:
        for start in range(0, n_frames, per_append):
            own = range(start, min(start + per_append, n_frames))
            records = [make(number, rng) for number in own]
            started = time.perf_counter()
            writer.append(records)
            seconds.append(time.perf_counter() - started)
    own = high_water() - before
    started = time.perf_counter()
    with DatasetWriter(folder, METADATA) as writer:
        reopened = time.perf_counter() - started
        wanted = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(0, 2 * n_frames, 997)]
        started = time.perf_counter()
        found = sum(key in writer for key in wanted)
        lookup = (time.perf_counter() - started) / len(wanted)
    assert found == len(range(0, n_frames, 997))
    return {
        "append_frames_per_s": round(n_frames / sum(seconds)),
        "append_median_ms": round(1e3 * statistics.median(seconds), 1),
        "append_slowest_ms": round(1e3 * max(seconds), 1),
        "writer_peak_MiB": round(own),
        "writer_reopen_s": round(reopened, 3),
        "key_in_writer_us": round(1e6 * lookup, 2),
    }


def scan(folder):
    """Opening, a pass over everything in order, and the memory of both."""
    before = high_water()
    started = time.perf_counter()
    dataset = Dataset(folder)
    opened = time.perf_counter()
    dataset.read([len(dataset) - 1])
    first = time.perf_counter()
    total = int(dataset.n_atoms.sum())
    sizes = time.perf_counter()
    for start in range(0, len(dataset), 1024):
        dataset.read(np.arange(start, min(start + 1024, len(dataset))))
    end = time.perf_counter()
    assert total == N_ATOMS * len(dataset)
    return {
        "open_ms": round(1e3 * (opened - started), 1),
        "first_record_ms": round(1e3 * (first - opened), 1),
        "n_atoms_of_all_ms": round(1e3 * (sizes - first), 1),
        "scan_frames_per_s": round(len(dataset) / (end - sizes)),
        "reader_peak_MiB": round(high_water() - before),
    }


def random_batches(folders, rounds, per_batch, n_batches=64):
    datasets = [Dataset(folder) for folder in folders]
    rng = np.random.default_rng(1)

    def rate(dataset):
        batches = [rng.integers(0, len(dataset), per_batch) for _ in range(n_batches)]
        started = time.perf_counter()
        for batch in batches:
            dataset.read(batch)
        return per_batch * n_batches / (time.perf_counter() - started)

    cold = []
    for dataset in datasets:
        dataset.n_atoms  # noqa: B018  opens every shard
        for path in dataset.folder.glob("*.h5"):
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cold.append(rate(dataset))
        for path in dataset.folder.glob("*.h5"):
            path.read_bytes()
    warm = [[rate(dataset) for dataset in datasets] for _ in range(rounds)]
    return [
        {"cold_frames_per_s": round(first), "frames_per_s": round(statistics.median(own))}
        for first, own in zip(cold, zip(*warm, strict=True), strict=True)
    ]


def check(folder):
    started = time.perf_counter()
    report = verify(folder)
    assert report.ok, report.problems[:3]
    return {"verify_s": round(time.perf_counter() - started, 1)}


def alone(function, *arguments):
    """What ``function`` returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="is emptied")
    parser.add_argument("--frames", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--per-append", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    rows, folders = [], []
    for n_frames in arguments.frames:
        folder = arguments.folder / str(n_frames)
        shutil.rmtree(folder, ignore_errors=True)
        row = {"frames": n_frames, **alone(write, folder, n_frames, arguments.per_append)}
        shards = [path.stat().st_size for path in folder.glob("*.h5")]
        row |= {
            "MB": round(sum(shards) / 1e6, 1),
            "bytes_per_frame": round(sum(shards) / n_frames),
            "files": len(shards),
            "largest_file_MB": round(max(shards) / 1e6, 1),
            **alone(scan, folder),
            **alone(check, folder),
        }
        rows.append(row)
        folders.append(folder)
        print(json.dumps(row), flush=True)
    for per_batch in (16, 64, 256):
        for row, rates in zip(
            rows, alone(random_batches, folders, arguments.rounds, per_batch), strict=True
        ):
            row[f"random_batches_of_{per_batch}"] = rates
        print(per_batch, [row[f"random_batches_of_{per_batch}"] for row in rows], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    about = {
        "machine": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("h5py", "numpy", "torch", "mlff-distiller")},
        "commit": commit.stdout.strip(),
        "atoms_per_frame": N_ATOMS,
        "frames_per_append": arguments.per_append,
        "rounds": arguments.rounds,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
