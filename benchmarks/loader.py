"""Does the loader keep a GPU busy? Its frames a second against those that training consumes.

Frames of 48 atoms (rattled SiC) are read from a dataset and their pairs searched, with nothing else
going on: in a first epoch, and in a second, for which a CPU keeps the pairs while a GPU searches
again. Then the same batches, on the device by now, are trained on (forward, backward, optimiser)
by the nep student. Medians of the repeats.

    python benchmarks/loader.py --device cuda --out benchmarks/results/loader_h100.json
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk

from mlff_distiller.dataset import AtomicDataLoader, Dataset, DatasetWriter, Record
from mlff_distiller.students import nep_for
from mlff_distiller.students.nep_setup import NEPSettings


def make(folder, n_frames):
    seed, rng = (
        bulk("SiC", "zincblende", 4.36, cubic=True).repeat((3, 2, 1)),
        np.random.default_rng(0),
    )
    with DatasetWriter(folder, {}) as writer:
        for start in range(0, n_frames, 1024):
            records = []
            for number in range(start, min(start + 1024, n_frames)):
                atoms = seed.copy()
                atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
                labels = {
                    "energy": rng.normal(),
                    "forces": rng.normal(size=(len(atoms), 3)),
                    "stress": np.eye(3) * rng.normal(),
                }
                key = hashlib.sha256(str(number).encode()).hexdigest()
                records.append(Record(atoms, labels, key, number))
            writer.append(records)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def read(loader, device):
    """Frames a second of one epoch."""
    started, n = time.perf_counter(), 0
    for batch, _ in loader:
        n += batch.n_systems
    synchronise(device)
    return n / (time.perf_counter() - started)


def consume(student, batches, device):
    """Frames a second of training on ``batches``, which are on the device; kernel by kernel."""
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
    for repeat in range(2):  # the first warms up
        synchronise(device)
        started, n = time.perf_counter(), 0
        for batch, neighbors in batches:
            prediction = student(batch, neighbors)
            energy = (prediction.energy - batch.labels["energy"]) / batch.atoms_per_system
            forces = prediction.forces - batch.labels["forces"]
            error = forces.abs().mean() + energy.abs().mean().to(forces.dtype)
            optimizer.zero_grad()
            error.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 10.0)
            optimizer.step()
            n += batch.n_systems
        synchronise(device)
        seconds = time.perf_counter() - started
        del repeat
    return n / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=60)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make(folder, arguments.frames)
        dataset = Dataset(folder)
        student = nep_for(dataset.read(range(4)).systems(), NEPSettings(), 0).to(device).train()
        for atoms_per_batch in (256, 1024, 4096):
            first, later, trained = [], [], []
            for _ in range(arguments.repeats):
                loader = AtomicDataLoader(
                    dataset,
                    range(len(dataset)),
                    atoms_per_batch=atoms_per_batch,
                    cutoff=student.cutoff,
                    workers=arguments.workers,
                    prefetch=4 * arguments.workers,
                    device=device,
                    pair_cache_bytes=4 * 2**30,
                )
                first.append(read(loader, device))
                later.append(read(loader, device))
                batches = []
                for sample in loader:
                    batches.append(sample)
                    if len(batches) == arguments.updates:
                        break
                trained.append(consume(student, batches, device))
            row = {
                "atoms_per_batch": atoms_per_batch,
                "edges_per_frame": len(batches[0][1].i) / batches[0][0].n_systems,
                "loader_frames_per_s_first": statistics.median(first),
                "loader_frames_per_s_later": statistics.median(later),
                "training_frames_per_s": statistics.median(trained),
            }
            for how in ("first", "later"):
                speed = row[f"loader_frames_per_s_{how}"]
                row[f"ratio_{how}"] = speed / row["training_frames_per_s"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    about = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "cpu_count": os.cpu_count(),
        "workers": arguments.workers,
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "frames": arguments.frames,
        "atoms_per_frame": 48,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
