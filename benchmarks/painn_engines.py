"""What an evaluation and a step of painn cost by PyTorch and by kernels of ours, in turns.

    python benchmarks/painn_engines.py --threads 2 --out table.json
    python benchmarks/painn_engines.py --device cuda --sizes 64 1000 8000 100000 --out table.json

Water at the density of the liquid, random weights, float32, neighbours that are there (skin 0.5 Å).
Engines take turns within one process; medians, and the least of each: other programs may run.
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.md.verlet import VelocityVerlet

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.painn import PainnEngine
from mlff_distiller.engines.torch import TorchEngine
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.measure.systems import build_system
from mlff_distiller.structure import thermalise
from mlff_distiller.students.painn import PaiNN
from mlff_distiller.students.painn_setup import initialise
from mlff_distiller.students.repulsion import UNIVERSAL

PRESETS = {"painn-32x2": (32, 2), "painn-64x2": (64, 2), "painn-128x3": (128, 3)}
SKIN = 0.5


def preset(name, device):
    pair = (0.4, 0.8, *UNIVERSAL)
    student = PaiNN(("H", "O"), 5.0, *PRESETS[name], 12, 0.1, zbl=((pair, pair), (pair, pair)))
    initialise(student, torch.Generator().manual_seed(0))
    student.scale.fill_(0.05)
    return student.float().eval().to(device)


def in_turns(calls, turns, device):
    """Median and least milliseconds of each."""

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    times = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            wait()
            began = time.perf_counter()
            call()
            wait()
            times[name].append(1e3 * (time.perf_counter() - began))
    return {
        name: {"median_ms": round(statistics.median(own), 3), "least_ms": round(min(own), 3)}
        for name, own in times.items()
    }


def rows_of(name, n_atoms, device, turns):
    atoms = build_system(f"water:{n_atoms}").atoms
    student = preset(name, device)
    what = {"student": name, "atoms": len(atoms)}
    engines = {"kernels": PainnEngine(student, SKIN), "PyTorch": TorchEngine(student, SKIN)}
    for engine in engines.values():
        engine.for_frames([atoms]).positions.assign(atoms.positions)
        engine.rebuild(atoms.cell.array[None], atoms.pbc[None])
        for _ in range(4):
            engine.compute()
            engine.total()
    forces = [engine.forces.numpy() for engine in engines.values()]
    apart = float(np.abs(forces[0] - forces[1]).max())
    calls = {own: engine.compute for own, engine in engines.items()}
    yield (
        what | {"what": "evaluation", "forces apart, eV/A": apart} | in_turns(calls, turns, device)
    )

    thermalise(atoms, 300.0, np.random.default_rng(0))
    settings = Ensemble(temperature_K=300.0, time_step_fs=0.25)
    runs = {own: Simulation(engine, [atoms], settings) for own, engine in engines.items()}
    calls = {own: lambda run=run: run.advance(4) for own, run in runs.items()}
    yield what | {"what": "run_md, 4 steps"} | in_turns(calls, turns, device)

    calls = {}
    for own, backend in (("kernels", "warp"), ("PyTorch", "torch")):
        moving = atoms.copy()
        moving.calc = StudentCalculator(copy.deepcopy(student), device=device, backend=backend)
        dynamics = VelocityVerlet(moving, 0.25 * units.fs)
        dynamics.run(4)
        calls[own] = lambda dynamics=dynamics: dynamics.run(1)
    yield what | {"what": "ASE, 1 step"} | in_turns(calls, turns, device)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[192])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("default")
    torch.set_num_threads(arguments.threads)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    on_gpu = arguments.device == "cuda"
    about = {
        "machine": torch.cuda.get_device_name() if on_gpu else platform.processor(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "turns": arguments.turns,
    }
    rows = []
    for n_atoms in arguments.sizes:
        for name in PRESETS:
            try:
                for row in rows_of(name, n_atoms, arguments.device, arguments.turns):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
            except Exception as error:
                rows.append({"student": name, "atoms": n_atoms, "failed": repr(error)[:200]})
            arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
