"""What painn students cost on a CPU: steps of training, and evaluations as MD asks for them.

    python benchmarks/painn_cpu.py sets --out table.json
    PYTHONPATH=OLDER/src python benchmarks/painn_cpu.py sets --out before.json

``sets`` holds water/test.safetensors and 3bpa/test.safetensors, as ``studies/training_sets.py``
makes them.
Medians over tens of updates, and over repeats of evaluations on neighbours that are there (skin
0.5 Å).
"""

import argparse
import json
import platform
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from painn_md import WAYS, median_ms, rattled
from studies.label_sets import load_set

import mlff_distiller
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.engines.torch import TorchEngine
from mlff_distiller.students import load_student
from mlff_distiller.training import train
from mlff_distiller.workflows.config import load_config

TRAININGS = [
    *(("water", "painn-64x2", 192, f"painn.max_moment={order}") for order in (3, 4, 8)),
    ("3bpa", "painn-64x2", 250),
    ("3bpa", "painn-32x2", 250),
    ("3bpa", "painn-32x2", 250, "training.compile=true"),
]
PRESETS = "painn-32x2", "painn-64x2", "painn-128x3"
TENS = 6


def training(frames, student, n_atoms, settings):
    """Seconds an update, validations of two frames included."""
    words = [
        *settings,
        f"training.updates={10 * TENS}",
        f"training.validations={TENS}",
        f"training.atoms_per_batch={n_atoms}",
        "training.md_checks=0",
    ]
    config, times = load_config(None, words, student=student), []
    train(
        config.new_student(frames),
        frames[:40],
        frames[40:42],
        config.training,
        on_validation=lambda row, updates: times.append(time.perf_counter()),
    )
    return round(float(np.median(np.diff(times[1:]))) / 10, 4)


def evaluation(student, atoms):
    """Milliseconds, one by one and compiled."""
    times = {}
    for way in ("one by one", "compiled"):
        engine = TorchEngine(ready_student(student, "cpu", "float32"), 0.5, **WAYS[way])
        engine.for_frames([atoms]).positions.assign(atoms.positions)
        engine.rebuild(atoms.cell.array[None], atoms.pbc[None])
        for _ in range(4):
            engine.compute()
        times[f"{way}, ms"] = median_ms(engine.compute, "cpu")
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    source = Path(mlff_distiller.__file__).parent
    commit = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    about = {
        "machine": platform.processor() or platform.machine(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }
    frames = {
        name: load_set(arguments.sets / name / "test.safetensors") for name in ("water", "3bpa")
    }
    rows = []
    for system, student, n_atoms, *settings in TRAININGS:
        seconds = training(frames[system], student, n_atoms, settings)
        what = {"what": "training", "system": system, "student": student, "settings": settings}
        rows.append(what | {"atoms": n_atoms, "s an update": seconds})
        print(rows[-1], flush=True)
    for preset in PRESETS:
        what = {"what": "evaluation", "system": "water", "student": preset, "atoms": 192}
        student = load_config(None, student=preset).new_student(frames["water"])
        rows.append(what | evaluation(student, frames["water"][0].to_atoms()[0]))
        print(rows[-1], flush=True)
    small = load_student(Path(__file__).parent / "silicon" / "painn")
    what = {"what": "evaluation", "system": "si", "student": "painn-32x2", "atoms": 64}
    rows.append(what | evaluation(small, rattled(64)))
    print(rows[-1], flush=True)
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
