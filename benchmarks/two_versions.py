"""Two versions of the source in turns: a step of ASE, an evaluation, run_md, a training update.

    python benchmarks/two_versions.py ../before/src src --nep SILICON_NEP --device cpu --out JSON

Each turn is a process of its own with one of the two on its PYTHONPATH; medians of all turns.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet


def silicon(n):
    atoms = bulk("Si", cubic=True) * (n, n, n)
    atoms.rattle(0.05, seed=0)
    return atoms


def median_us(function, n, repeats=7):
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(n):
            function()
        times.append((time.perf_counter() - began) / n)
    return 1e6 * statistics.median(times)


def in_ase(nep, device, n, steps):
    from mlff_distiller import StudentCalculator

    atoms = silicon(n)
    atoms.calc = StudentCalculator(nep, device=device)
    momenta = np.random.default_rng(0).normal(size=(len(atoms), 3))
    atoms.set_momenta(0.5 * momenta)
    dynamics = VelocityVerlet(atoms, units.fs)
    dynamics.run(20)
    step = median_us(lambda: dynamics.run(1), steps)
    start, count = atoms.positions.copy(), iter(range(10**9))

    def evaluate():
        atoms.positions = start + 1e-4 * (next(count) % 7)
        atoms.calc.get_property("forces", atoms)

    evaluate()
    return {
        f"ase_step_us_{len(atoms)}": step,
        f"evaluation_us_{len(atoms)}": median_us(evaluate, steps),
    }


def by_run_md(nep, device, n, steps):
    from mlff_distiller import run_md

    quiet = {"log_every": 10**9, "frames_every": 10**9, "device": device}
    seconds = [
        run_md(silicon(n), nep, n_steps=steps, ensemble="nve", temperature_K=(300.0,), **quiet)
        for _ in range(4)
    ]
    return {
        f"run_md_us_{8 * n**3}": 1e6 * statistics.median(r.seconds for r in seconds[1:]) / steps
    }


def update(student, device, stretch):
    """Between validations ``stretch`` updates apart, of one training: its start is not counted."""
    from mlff_distiller.batch import Batch
    from mlff_distiller.training import train

    try:
        from mlff_distiller.workflows.config import load_config
    except ImportError:  # earlier versions
        from mlff_distiller.config import load_config
    frames = []
    for seed in range(60):
        atoms = bulk("Cu", cubic=True) * 2
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(Batch.from_atoms([atoms]))
    config = load_config(None, [], student=student)
    new = config.new_student(frames).to(device)
    settings = dataclasses.replace(
        config.training,
        epochs=None,
        updates=10 * stretch,
        validations=10,
        patience_fraction=1.0,
        keep_best=0,
    )
    rows = train(new, frames, frames[:2], settings, seed=0)
    times = [
        (row["seconds"] - before["seconds"]) / (row["updates"] - before["updates"])
        for before, row in pairwise(rows)
    ]
    return {f"update_ms_{student}": 1e3 * statistics.median(times)}


def one_turn(nep, device):
    torch.set_num_threads(1)
    long, stretch = (20_000, 200) if device == "cuda" else (100, 6)
    found = {}
    for n, steps in ((2, 300), (5, 60)):
        found |= in_ase(nep, device, n, steps) | by_run_md(nep, device, n, long)
    for student in ("nep", "painn-32x2"):
        found |= update(student, device, stretch)
    print("RESULT " + json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="folder of the source")
    parser.add_argument("after", type=Path, help="folder of the source")
    parser.add_argument("--nep", required=True, help="a nep.txt of silicon")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.turn:
        one_turn(words.nep, words.device)
        return
    turns = {"before": [], "after": []}
    for _ in range(words.turns):
        for name in turns:
            source = getattr(words, name).resolve()
            path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--turn"],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
                text=True,
            )
            line = next(row for row in done.stdout.splitlines() if row.startswith("RESULT "))
            turns[name].append(json.loads(line.removeprefix("RESULT ")))
    medians = {
        name: {key: statistics.median(turn[key] for turn in rows) for key in rows[0]}
        for name, rows in turns.items()
    }
    ratios = {key: medians["after"][key] / medians["before"][key] for key in medians["before"]}
    found = {**medians, "ratio": ratios, "turns": turns, "device": words.device}
    for key, ratio in ratios.items():
        print(f"{key:24} {medians['before'][key]:10.4g} {medians['after'][key]:10.4g} {ratio:6.2f}")
    if words.out:
        words.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
