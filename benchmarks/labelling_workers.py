"""How well labelling scales: structures a second by one and by two workers, by each engine.

The teacher takes a quarter of a second a structure, of one core's work. Each engine labels the same
structures with one and with two workers, in turn; efficiency is the rate of two over twice that of
one, medians of the repeats. Workers start, and load the teacher, before the clock does.

    python benchmarks/labelling_workers.py --out benchmarks/results/labelling_workers.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from ase.build import bulk

from mlff_distiller.labeling.workers import (
    Cluster,
    Request,
    answer,
    cluster_workers,
    local_workers,
)


def rate(pool, request, frames, n_workers):
    """Structures a second, from the first answer of every worker on."""
    warm = [pool.submit(answer, request, [atoms]) for atoms in frames[: 4 * n_workers]]
    for future in warm:
        future.result()
    started = time.perf_counter()
    futures = [pool.submit(answer, request, [atoms]) for atoms in frames]
    labels = [future.result()[0] for future in futures]
    seconds = time.perf_counter() - started
    assert all(label.labels is not None for label in labels)
    return len(frames) / seconds, statistics.median(label.seconds for label in labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", default="7net-0")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    frames = []
    for number in range(arguments.frames):
        atoms = bulk("Si", cubic=True) * (2, 2, 1)
        atoms.rattle(0.05, seed=number)
        frames.append(atoms)
    request = Request(arguments.teacher, "cpu", batch_size=1)
    rows = {"threads": {1: [], 2: []}, "dask": {1: [], 2: []}}
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            for n_workers in (1, 2):
                with local_workers(n_workers, "cpu") as pool:
                    speed, cost = rate(pool, request, frames, n_workers)
                rows["threads"][n_workers].append(speed)
                costs.append(cost)
                with cluster_workers(Cluster("local", n_workers), Path(folder)) as pool:
                    speed, cost = rate(pool, request, frames, n_workers)
                rows["dask"][n_workers].append(speed)
                costs.append(cost)
            print(rows, flush=True)
    medians = {
        name: {n: statistics.median(own) for n, own in both.items()} for name, both in rows.items()
    }
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    result = {
        "machine": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg(),
        "commit": commit.stdout.strip(),
        "versions": {name: version(name) for name in ("torch", "distributed")},
        "teacher": arguments.teacher,
        "seconds_per_structure": statistics.median(costs),
        "structures_per_s": rows,
        "efficiency_of_two": {name: own[2] / (2 * own[1]) for name, own in medians.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(result["efficiency_of_two"])


if __name__ == "__main__":
    main()
