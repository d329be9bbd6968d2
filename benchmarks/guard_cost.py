"""What a guard costs per step: the same run with and without looks at the student's errors.

    python benchmarks/guard_cost.py STUDENT STRUCTURE --sizes 64 1000 10000 --out table.json
    python benchmarks/guard_cost.py STUDENT STRUCTURE --device cuda --sizes 1000 1000000

STRUCTURE is repeated to about so many atoms, with random velocities. All runs are NVE by `run_md`'s
own engine, in turns within one process: a look every 50 steps (the default), every 10, and none.
"""

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch
from ase.io import read

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.guarding import EVERY
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.md.guard import Guard
from mlff_distiller.students import load_student


def repeated(atoms, n_atoms):
    """So many cells along each axis that the atoms come closest to ``n_atoms``."""
    n = max(1, round((n_atoms / len(atoms)) ** (1 / 3)))
    return atoms.repeat((n, n, n))


def milliseconds(words, atoms, seconds):
    """Median and least ms per step of each: without looks, every 50 steps, every 10."""
    runs = {}
    for name, every in (("off", 0), (f"every {EVERY}", EVERY), ("every 10", 10)):
        student = ready_student(load_student(words.student), words.device, "float32")
        dynamics = Ensemble("nve", words.kelvin, time_step_fs=1.0, seed=0)
        simulation = Simulation(choose_engine(student, [atoms]), [atoms], dynamics)
        guard = None
        if every:
            guard = Guard("warn", simulation, every, (), math.inf, None)
            guard.begin(continues=False)
        simulation.advance(100)
        runs[name] = (simulation, guard, [])
    began = time.perf_counter()
    runs["off"][0].advance(100)
    wait(words)
    n = max(1, round(seconds / (time.perf_counter() - began))) * 100
    for _ in range(words.turns):
        for simulation, _, times in runs.values():
            wait(words)
            began = time.perf_counter()
            simulation.advance(n)
            wait(words)
            times.append(1e3 * (time.perf_counter() - began) / n)
    row = {"atoms": len(atoms), "steps": n}
    for name, (_, _, times) in runs.items():
        row[name] = [round(statistics.median(times), 5), round(min(times), 5)]
    row["cost of every 50"] = round(row[f"every {EVERY}"][1] / row["off"][1] - 1.0, 4)
    return row


def wait(words):
    if words.device.startswith("cuda"):
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kelvin", type=float, default=300.0)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 1000])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn without looks")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(1)
    start, rows = read(words.structure, ":")[0], []
    for size in words.sizes:
        atoms = repeated(start, size)
        rows.append(milliseconds(words, atoms, words.seconds))
        print(json.dumps(rows[-1]), flush=True)
        on_gpu = words.device.startswith("cuda")
        report = {
            "hardware": torch.cuda.get_device_name() if on_gpu else platform.processor(),
            "torch": torch.__version__,
            "student": load_student(words.student).architecture,
            "unit": "ms per step: median and least of the turns",
            "rows": rows,
        }
        if words.out:
            words.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
