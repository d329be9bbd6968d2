"""What a step of 64 silicon atoms costs by students of each size, in processor time of one core.

python benchmarks/student_step.py --out benchmarks/results/student_step_cpu.json
"""

import argparse
import dataclasses
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
from ase.build import bulk

from mlff_distiller.batch import Batch
from mlff_distiller.durable import write_json
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.students import PaiNNSettings, load_student, painn_for

HERE = Path(__file__).parent
_TURNS = 7


def random_painn(atoms):
    """A painn-64x2 that has not been trained, with small forces: only its size matters here."""
    zero = {"energy": torch.zeros(1).double(), "forces": torch.zeros(len(atoms), 3).double()}
    frame = dataclasses.replace(Batch.from_atoms([atoms]), labels=zero)
    student = painn_for([frame], PaiNNSettings(channels=64, layers=2), 0)
    for own in student.parameters():
        own.data.mul_(0.05)
    return student


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    atoms, rows = bulk("Si", cubic=True) * 2, []
    students = {
        "nep": (load_student(HERE / "silicon" / "nep"), 300),
        "painn-32x2": (load_student(HERE / "silicon" / "painn"), 60),
        "painn-64x2": (random_painn(atoms), 60),
    }
    for name, (student, n_steps) in students.items():
        engine = choose_engine(ready_student(student, "cpu", "float32")).for_frames([atoms])
        run = Simulation(engine, [atoms], Ensemble(temperature_K=300, time_step_fs=0.5, seed=1))
        run.advance(20)
        ms = []
        for _ in range(_TURNS):
            began = time.process_time()
            run.advance(n_steps)
            ms.append(1e3 * (time.process_time() - began) / n_steps)
        rows.append({"student": name, "ms_per_step": statistics.median(ms), "turns": ms})
        print(f"{name}: {rows[-1]['ms_per_step']:.3g} ms per step")
    packages = ("torch", "warp-lang", "mlff-distiller")
    about = {
        "what": "64 silicon atoms, NVE, float32, one thread; processor time, medians of turns",
        "hardware": f"{platform.processor() or platform.machine()}, AMD EPYC, one shared core",
        "versions": {name: version(name) for name in packages},
    }
    write_json(out, {**about, "rows": rows})


if __name__ == "__main__":
    main()
