"""What a step of a painn of few atoms costs, by two versions of the source in turns.

    python benchmarks/painn_few_atoms.py ../before/src src --device cuda --out JSON

Silicon, float32, 300 K, 1 fs: the ``painn-32x2`` of ``silicon/``, and a ``painn-64x2`` of random
weights, too small to move atoms. By ``evaluate``, which waits for a GPU's graph; by ``run_md``'s
dynamics at constant energy; and by ASE. Each turn is a process of its own with one of the two on
its PYTHONPATH; medians of all turns, in ms. Where the version has both ways, also with products by
cuBLAS. ``first_s`` is a first evaluation with nothing compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.md.verlet import VelocityVerlet

HERE = Path(__file__).parent
REPEATS, LEAST_S = 5, 0.08


def median_ms(call, steps):
    call()
    began = time.perf_counter()
    call()
    n = max(1, int(LEAST_S / (time.perf_counter() - began)))
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(n):
            call()
        times.append((time.perf_counter() - began) / n)
    return 1e3 * statistics.median(times) / steps


def evaluation(engine, atoms):
    given = atoms.numbers, atoms.cell.array, atoms.pbc
    start, turns = atoms.positions.copy(), iter(range(10**9))
    return lambda: engine.evaluate(start + 1e-4 * (next(turns) % 7), *given)


def rows_of(name, student, n_atoms, device):
    from md_bench import crystal

    from mlff_distiller.deploy import StudentCalculator
    from mlff_distiller.engines.loading import ready_student
    from mlff_distiller.engines.painn import PainnEngine
    from mlff_distiller.md import Ensemble, Simulation
    from mlff_distiller.structure import thermalise

    def warm():
        atoms = crystal("Si", n_atoms)
        thermalise(atoms, 300.0, np.random.default_rng(0))
        return atoms

    atoms, ready = warm(), ready_student(student, device, "float32")
    what = f"{name}, {len(atoms)} atoms"
    ways = {"": {}}
    if "chained" in signature(PainnEngine).parameters:
        ways |= {", cuBLAS": {"chained": False}}
    for way, settings in ways.items():
        engine = PainnEngine(ready, **settings)
        began = time.perf_counter()
        engine.evaluate(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
        yield f"{what}: first_s{way}", time.perf_counter() - began
        yield f"{what}: evaluate{way}", median_ms(evaluation(engine, atoms), 1)
        engine = PainnEngine(ready, **settings).for_frames([atoms])
        run = Simulation(engine, [atoms], Ensemble(time_step_fs=1.0))
        run.advance(100)
        before = run.n_rebuilds, run.step
        yield f"{what}: run_md{way}", median_ms(lambda run=run: run.advance(100), 100)
        yield (
            f"{what}: steps a rebuild{way}",
            (run.step - before[1]) / max(1, run.n_rebuilds - before[0]),
        )
    atoms = warm()
    atoms.calc = StudentCalculator(student, device=device)
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.run(20)
    yield f"{what}: ASE", median_ms(lambda: dynamics.run(10), 10)


def one_turn(device, sizes):
    from painn_md import preset

    calm = preset(64, 2)
    calm.scale.fill_(0.002)
    students = {"painn-32x2": HERE / "silicon" / "painn", "painn-64x2": calm}
    found = {}
    for n_atoms in sizes:
        for name, student in students.items():
            found |= dict(rows_of(name, student, n_atoms, device))
    print("RESULT " + json.dumps(found))


def turn(source, arguments):
    command = [sys.executable, __file__, source, source, "--one", "--device", arguments.device]
    command += ["--sizes", *map(str, arguments.sizes)]
    with tempfile.TemporaryDirectory() as cache:
        given = os.environ.get("PYTHONPATH", "")
        path = os.pathsep.join([str(source.resolve()), str(HERE.resolve()), given])
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    rows = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not rows:
        sys.exit(f"{source}: {done.stderr[-2000:]}")
    return json.loads(rows[-1].removeprefix("RESULT "))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="folder of the source")
    parser.add_argument("after", type=Path, help="folder of the source")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one_turn(arguments.device, arguments.sizes)
    on_gpu = arguments.device == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else "CPU"
    sources = {"before": arguments.before, "after": arguments.after}
    turns = {name: [] for name in sources}
    for _ in range(arguments.turns):
        for name, source in sources.items():
            turns[name].append(turn(source, arguments))
            medians = {
                which: {key: round(statistics.median(t[key] for t in own), 4) for key in own[0]}
                for which, own in turns.items()
                if own
            }
            about = {"machine": machine, "torch": torch.__version__, "turns": arguments.turns}
            found = {"about": about, "ms": medians}
            if arguments.out:
                arguments.out.write_text(json.dumps(found, indent=1) + "\n")
            print(name, json.dumps(turns[name][-1], indent=1), flush=True)
    return None


if __name__ == "__main__":
    main()
