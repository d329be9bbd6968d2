"""What a step of a painn student costs: by kernels of ours, and by PyTorch in three ways.

    python benchmarks/painn_md.py --student benchmarks/silicon/painn --device cuda --out table.json

Of silicon: evaluations of the student and of presets with random weights, on neighbours that are
there; then whole steps of the student, by ``run_md`` and by ASE, velocity Verlet, 1 fs, 300 K.
Medians of repeats, all in one process. ``--ways`` chooses among kernels, "one by one" (PyTorch's),
"as a graph" and "compiled", which takes half a minute for each row.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
import warp as wp
from ase import units
from ase.md.verlet import VelocityVerlet
from md_bench import crystal

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.engines.painn import PainnEngine
from mlff_distiller.engines.torch import TorchEngine
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.structure import thermalise
from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.painn_setup import initialise

WAYS = {
    "kernels": PainnEngine,
    "one by one": partial(TorchEngine, padded=False),
    "as a graph": partial(TorchEngine, padded=True),
    "compiled": partial(TorchEngine, padded=True, compile=True),
}
BY_ASE = {
    "kernels": {"backend": "warp"},
    "as a graph": {"backend": "torch"},
    "compiled": {"backend": "torch", "compile": True},
}
REPEATS, LEAST_S = 7, 0.15


def preset(channels, layers):
    student = PaiNN(("Si",), 5.0, channels, layers, 12, 0.2)
    initialise(student, torch.Generator().manual_seed(0))
    return student


def rattled(n_atoms):
    atoms = crystal("Si", n_atoms)
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def median_ms(call, device):
    call()
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    n = max(1, int(LEAST_S / (time.perf_counter() - began)))
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(n):
            call()
        synchronize(device)
        seconds.append((time.perf_counter() - began) / n)
    return round(1e3 * statistics.median(seconds), 4)


def evaluations(ways, students, sizes, device, skin):
    for name, given in students.items():
        student = ready_student(given, device, "float32")
        for n_atoms in sizes:
            atoms = rattled(n_atoms)
            row = {"what": "evaluation", "student": name, "atoms": len(atoms), "skin_A": skin}
            for way in ways:
                try:
                    engine = WAYS[way](student, skin).for_frames([atoms])
                    engine.positions.assign(atoms.positions)
                    began = time.perf_counter()
                    engine.rebuild(atoms.cell.array[None], atoms.pbc[None])
                    for _ in range(4):
                        engine.compute()
                    synchronize(device)
                    row[f"{way}: first"] = round(time.perf_counter() - began, 2)
                    row[f"{way}, ms"] = median_ms(engine.compute, device)
                except Exception as error:
                    row[f"{way}: failed"] = repr(error)[:200]
            yield row


def steps(ways, name, given, sizes, device, skins):
    for n_atoms in sizes:
        for skin in skins:
            student, atoms = ready_student(given, device, "float32"), crystal("Si", n_atoms)
            thermalise(atoms, 300.0, np.random.default_rng(0))
            row = {"what": "run_md", "student": name, "atoms": len(atoms), "skin_A": skin}
            for way in ways:
                engine = WAYS[way](student, skin).for_frames([atoms])
                simulation = Simulation(engine, [atoms], Ensemble(time_step_fs=1.0))
                simulation.advance(50)
                before = simulation.n_rebuilds, simulation.step
                row[f"{way}, ms"] = median_ms(lambda s=simulation: s.advance(20), device) / 20
                done = simulation.step - before[1]
                row["steps a rebuild"] = round(done / max(1, simulation.n_rebuilds - before[0]))
            yield row
        row = {"what": "ASE", "student": name, "atoms": len(atoms)}
        for way in filter(BY_ASE.get, ways):
            atoms = crystal("Si", n_atoms)
            thermalise(atoms, 300.0, np.random.default_rng(0))
            atoms.calc = StudentCalculator(given, device=device, **BY_ASE[way])
            dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
            dynamics.run(20)
            row[f"{way}, ms"] = median_ms(lambda d=dynamics: d.run(10), device) / 10
        yield row


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--student", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1000, 8000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seconds", type=float, default=200.0, help="no row begins later")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("default")
    device, sizes = arguments.device, arguments.sizes
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    about = {"device": name, "torch": torch.__version__, "warp": wp.__version__}
    about["repeats"] = REPEATS
    students = {"silicon/painn": arguments.student}
    ways = dict.fromkeys(arguments.ways).keys()
    parts = [
        evaluations(ways, students, sizes[:1], device, 0.5),
        steps(ways, "silicon/painn", arguments.student, sizes[:2], device, [0.3, 0.5, 1.0]),
        evaluations(ways, {"painn-64x2": preset(64, 2)}, sizes, device, 0.5),
        evaluations(ways, {"painn-128x3": preset(128, 3)}, sizes[:2], device, 0.5),
        evaluations(ways, students, sizes[1:], device, 0.5),
        steps(ways, "silicon/painn", arguments.student, sizes[2:], device, [0.5, 1.0]),
    ]
    began, rows = time.perf_counter(), []
    for row in (row for part in parts for row in part):
        rows.append(row)
        print(round(time.perf_counter() - began, 1), json.dumps(row), flush=True)
        arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        if time.perf_counter() - began > arguments.seconds:
            break


if __name__ == "__main__":
    main()
