"""What painn's parts are worth: errors of students trained on the same labels for as long.

Labelled frames of one molecule (rMD17's aspirin, say) in an order drawn from the seed: 300 train,
100 choose the epoch, the rest test. Every student takes the same number of updates of four frames.

    python benchmarks/painn_ablation.py aspirin.extxyz --out benchmarks/results/painn_ablation.json
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from ase.io import read

from mlff_distiller.batch import Batch
from mlff_distiller.students import NEPSettings, PaiNNSettings, nep_for, painn_for
from mlff_distiller.training import Samples, TrainingSettings, train, validate

VARIANTS = {
    "nep": None,
    "painn-32x2": ("32x2", {}),
    "painn-32x3, first moments": ("32x3", {"max_moment": 1}),
    "painn-64x2": ("64x2", {}),
    "painn-64x2, first moments": ("64x2", {"max_moment": 1}),
    "painn-64x2, second moments": ("64x2", {"max_moment": 2}),
    "painn-64x2, fourth moments": ("64x2", {"max_moment": 4}),
    "painn-64x2, 8 radial functions": ("64x2", {"radial_functions": 8}),
    "painn-64x2, 16 radial functions": ("64x2", {"radial_functions": 16}),
}


def load(path, seed):
    frames = read(path, ":")
    order = np.random.default_rng(seed).permutation(len(frames))
    nothing = torch.full((1, 3, 3), math.nan, dtype=torch.float64)
    batches = [Batch.from_atoms([frames[k]]) for k in order]
    return [dataclasses.replace(b, labels={**b.labels, "stress": nothing}) for b in batches]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=3_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-2])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    batches = load(arguments.frames, arguments.seed)
    training, validation, test = batches[:300], batches[300:400], batches[400:]
    per_update = 4 * batches[0].n_atoms
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    report = {
        "about": {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "device": arguments.device,
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
            "frames": arguments.frames.name,
            "n_train": len(training),
            "n_test": len(test),
            "updates": arguments.updates,
            "seed": arguments.seed,
        },
        "rows": [],
    }
    for name in arguments.only:
        for rate in arguments.rates:
            variant = VARIANTS[name]
            if variant is None:
                student = nep_for(training, NEPSettings(), arguments.seed)
            else:
                preset, options = variant
                channels, layers = map(int, preset.split("x"))
                own = PaiNNSettings(channels=channels, layers=layers, **options)
                student = painn_for(training, own, arguments.seed)
            student = student.to(arguments.device)
            settings = TrainingSettings(
                updates=arguments.updates,
                atoms_per_batch=per_update,
                learning_rate=rate,
            )
            started = time.perf_counter()
            train(student, training, validation, settings, seed=arguments.seed)
            seconds = time.perf_counter() - started
            errors = validate(student, Samples(test, student))
            row = {
                "student": name,
                "learning_rate": rate,
                "n_parameters": sum(p.numel() for p in student.parameters()),
                "training_s": round(seconds, 1),
                "load_average": round(os.getloadavg()[0], 1),
                **{key.replace("validation", "test"): value for key, value in errors.items()},
            }
            report["rows"].append(row)
            print(json.dumps(row), flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
