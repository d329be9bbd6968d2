"""Choosing 1,000 of 100,000 structures of 64 atoms by farthest points: seconds and memory.

python benchmarks/selection.py --out benchmarks/results/selection.json
"""

import argparse
import json
import os
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ase.build import bulk

from mlff_distiller.sampling import descriptors, select


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    seed = bulk("SiC", "zincblende", 4.36, cubic=True).repeat(2)

    def frames():
        for k in range(arguments.frames):
            atoms = seed.copy()
            rng = np.random.default_rng(k)
            atoms.positions += rng.normal(0, rng.uniform(0.01, 0.2), (len(atoms), 3))
            yield atoms

    began = time.perf_counter()
    features = descriptors(frames(), elements=[6, 14], threads=arguments.threads)
    described = time.perf_counter()
    chosen = select(features, 1000)
    ended = time.perf_counter()
    result = {
        "frames": arguments.frames,
        "atoms": len(seed),
        "features": features.shape[1],
        "chosen": len(chosen),
        "threads": arguments.threads,
        "seconds_descriptors": round(described - began, 2),
        "seconds_selection": round(ended - described, 2),
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("ase", "numpy", "vesin")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
