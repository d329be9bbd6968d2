"""How fast a ``nep`` learns: updates per second of two versions in turns, and error against time.

    python benchmarks/nep_training.py BEFORE_SRC AFTER_SRC --device cuda --frames FRAMES --out JSON

Updates: silicon, and an alloy of three elements, in minibatches of 256, 1,024 and 4,096 atoms.
FRAMES, of one molecule or crystal with energies and forces: four fifths train with the defaults,
the rest is what the error is of. Each turn is a process with one version on its PYTHONPATH.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.io import read


def labelled(system, n):
    from mlff_distiller.batch import Batch

    rng = np.random.default_rng(0)
    frames = []
    for seed in range(n):
        atoms = bulk("Si" if system == "silicon" else "Cu", cubic=True) * 2
        if system == "alloy":
            atoms.symbols[::2], atoms.symbols[1::4] = "Ni", "Al"
        atoms.rattle(0.1, seed=seed)
        labels = {
            "energy": torch.tensor([0.1 * rng.normal() * len(atoms)], dtype=torch.float64),
            "forces": torch.tensor(rng.normal(size=(len(atoms), 3))).float(),
            "stress": torch.tensor(0.01 * np.eye(3)[None] * rng.normal()),
        }
        frames.append(dataclasses.replace(Batch.from_atoms([atoms]), labels=labels))
    return frames


def updates(system, atoms, device):
    """Milliseconds an update: one after another, as in a training; on a CPU of process time."""
    from mlff_distiller.students.nep_setup import NEPSettings, nep_for
    from mlff_distiller.training.loss import Spread
    from mlff_distiller.training.minibatch import Minibatches
    from mlff_distiller.training.settings import TrainingSettings
    from mlff_distiller.training.update import Updater
    from mlff_distiller.training.workers import ALONE

    frames = labelled(system, max(16, atoms // 8))
    student = nep_for(frames[:8], NEPSettings(), 0).to(device).train()
    settings = TrainingSettings(atoms_per_batch=atoms, compile=False)
    minibatches = Minibatches(frames, student, atoms)
    spread = Spread.of(frames[:8], student)
    updater = Updater(student, minibatches, spread, settings, ALONE)
    plan, weights = minibatches.plan(0), settings.loss.weights(0.1, curvature=True)

    def some(n):
        for k in range(n):
            updater.update(plan[k % len(plan)], 1e-3, weights)
        if device == "cuda":
            torch.cuda.synchronize()

    some(6)
    clock = time.perf_counter if device == "cuda" else time.process_time
    n, times = (200 if device == "cuda" else 10), []
    for _ in range(5):
        began = clock()
        some(n)
        times.append(1e3 * (clock() - began) / n)
    return statistics.median(times)


def curve(path, device, n_updates):
    """(updates, seconds, force MAE in meV/Å) of each validation."""
    from mlff_distiller.batch import Batch
    from mlff_distiller.students.nep_setup import NEPSettings, nep_for
    from mlff_distiller.training import train
    from mlff_distiller.training.settings import TrainingSettings

    frames = [Batch.from_atoms([atoms]) for atoms in read(path, ":")]
    order = np.random.default_rng(0).permutation(len(frames)).tolist()
    parts = order[: 4 * len(frames) // 5], order[4 * len(frames) // 5 :]
    training, validation = ([frames[k] for k in own] for own in parts)
    settings = TrainingSettings(updates=n_updates, patience_fraction=1.0, compile=False)
    began = time.perf_counter()
    student = nep_for(training, NEPSettings(), 0).to(device)
    rows = train(student, training, validation, settings, seed=0)
    key = "validation_forces_mae_meV_per_A"
    found = [(row["updates"], row["seconds"], round(row[key], 2)) for row in rows]
    return {"seconds": time.perf_counter() - began, "curve": found[::5] + found[-1:]}


def one_turn(words):
    torch.set_num_threads(words.threads)
    found = {}
    for system in ("silicon", "alloy"):
        for atoms in words.atoms:
            found[f"update_ms_{system}_{atoms}"] = updates(system, atoms, words.device)
    if words.frames:
        for n in words.updates:
            found[f"training_{n}"] = curve(words.frames, words.device, n)
    print("RESULT " + json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="folder of the source")
    parser.add_argument("after", type=Path, help="folder of the source")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--atoms", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--updates", type=int, nargs="*", default=[8000])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turn", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.turn:
        one_turn(words)
        return
    turns = {"before": [], "after": []}
    for _ in range(words.turns):
        for name in turns:
            source = getattr(words, name).resolve()
            path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--turn"],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(words.threads)},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            line = next(row for row in done.stdout.splitlines() if row.startswith("RESULT "))
            turns[name].append(json.loads(line.removeprefix("RESULT ")))
            print(name, line, flush=True)
    medians = {
        name: {
            key: statistics.median(turn[key] for turn in own)
            for key in own[0]
            if key.startswith("update_ms")
        }
        for name, own in turns.items()
    }
    on_gpu = words.device == "cuda"
    report = {
        "hardware": torch.cuda.get_device_name() if on_gpu else platform.processor(),
        "threads": words.threads,
        "torch": torch.__version__,
        "after_over_before": {
            key: round(medians["after"][key] / value, 3) for key, value in medians["before"].items()
        },
        "medians": medians,
        "turns": turns,
    }
    print(json.dumps(report["after_over_before"], indent=1))
    if words.out:
        words.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
