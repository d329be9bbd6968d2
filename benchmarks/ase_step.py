"""Time of an ASE velocity Verlet step with a student, silicon from 64 atoms up, on one device.

python benchmarks/ase_step.py --device cuda --out benchmarks/results/ase_step_h100.json
"""

import argparse
import dataclasses
import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from ase.build import bulk

from mlff_distiller import StudentCalculator
from mlff_distiller.batch import Batch
from mlff_distiller.md.record import ForceField, ms_per_step
from mlff_distiller.students import NEPSettings, nep_for


def student():
    frame = bulk("Si", cubic=True)
    frame.rattle(0.05, seed=0)
    batch = Batch.from_atoms([frame])
    labels = {
        "energy": torch.zeros(1, dtype=torch.float64),
        "forces": torch.zeros(8, 3),
        "stress": torch.zeros(1, 3, 3, dtype=torch.float64),
    }
    return nep_for([dataclasses.replace(batch, labels=labels)], NEPSettings(), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    calculator = StudentCalculator(student(), device=arguments.device, backend=arguments.backend)
    on_gpu = calculator.student.device.type == "cuda"
    rows = []
    for cells in ((2, 2, 2), (3, 3, 3), (5, 5, 5), (8, 8, 8), *([(10, 10, 10)] if on_gpu else [])):
        atoms = bulk("Si", cubic=True) * cells
        time = ms_per_step(ForceField("nep", calculator), atoms, samples=7, in_ase=True)
        rows.append({"n_atoms": len(atoms), "ms_per_step": round(time, 4)})
        print(json.dumps(rows[-1]), flush=True)
    about = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "python": platform.python_version(),
        "versions": {
            name: version(name) for name in ("ase", "torch", "numpy", "vesin", "warp-lang")
        },
        "backend": arguments.backend,
        "model": "nep, float32, cutoff 6/5 Å, n_max 8 8, 50 neurons",
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
