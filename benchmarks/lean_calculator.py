"""What a velocity Verlet step costs around the model: StudentCalculator against a stock zero.

The stock calculator returns zeros through ASE's own machinery, so all of its step is bookkeeping.
Of the student's step, the time inside the model (neighbours, network, conversion) is taken out.
Both in one process, turn by turn; microseconds a step, median of repeats.

    python benchmarks/lean_calculator.py --out benchmarks/results/lean_calculator.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.md.verlet import VelocityVerlet

from mlff_distiller import StudentCalculator
from mlff_distiller.batch import Batch
from mlff_distiller.structure import thermalise
from mlff_distiller.students import NEPSettings, nep_for


class Zero(Calculator):
    """The stock way: ``calculate`` fills ``results``; ASE compares and copies."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


class Timed(StudentCalculator):
    """Adds up the seconds spent inside the model."""

    inside = 0.0

    def _evaluate(self, *arrays):
        start = time.perf_counter()
        results = super()._evaluate(*arrays)
        self.inside += time.perf_counter() - start
        return results


def student():
    frame = bulk("Si", cubic=True)
    frame.rattle(0.05, seed=0)
    batch = Batch.from_atoms([frame])
    labels = {
        "energy": torch.zeros(1, dtype=torch.float64),
        "forces": torch.zeros(8, 3),
        "stress": torch.zeros(1, 3, 3, dtype=torch.float64),
    }
    batch = Batch(
        batch.positions, batch.atomic_numbers, batch.system_idx, batch.cell, batch.pbc, labels
    )
    return nep_for([batch], NEPSettings(), 0)


def dynamics(n_cells, calculator):
    atoms = bulk("Si", cubic=True) * n_cells
    atoms.calc = calculator
    thermalise(atoms, 300.0, np.random.default_rng(0))
    return atoms, VelocityVerlet(atoms, 0.5 * units.fs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    rows = []
    for cells, n_steps in (((2, 2, 2), 100), ((5, 5, 5), 20)):
        timed = Timed(student(), device="cpu")
        atoms, lean = dynamics(cells, timed)
        _, stock = dynamics(cells, Zero())
        lean.run(5), stock.run(5)
        samples = {"stock_zero_us": [], "lean_total_us": [], "lean_around_model_us": []}
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            stock.run(n_steps)
            samples["stock_zero_us"].append(1e6 * (time.perf_counter() - start) / n_steps)
            timed.inside = 0.0
            start = time.perf_counter()
            lean.run(n_steps)
            total = time.perf_counter() - start
            samples["lean_total_us"].append(1e6 * total / n_steps)
            samples["lean_around_model_us"].append(1e6 * (total - timed.inside) / n_steps)
        medians = {name: round(statistics.median(own), 1) for name, own in samples.items()}
        ratio = medians["stock_zero_us"] / medians["lean_around_model_us"]
        rows.append({"n_atoms": len(atoms), **medians, "ratio": round(ratio, 2)})
        print(json.dumps(rows[-1]), flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    about = {
        "machine": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ase", "torch", "numpy", "mlff-distiller")},
        "commit": commit.stdout.strip(),
        "repeats": arguments.repeats,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
