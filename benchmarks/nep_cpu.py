"""Energy and forces of NEP4 models on a CPU: our kernels against calorine's CPUNEP, turn by turn.

Every evaluation sees moved atoms, as in a simulation. Ours: float32, neighbours kept with a skin
of 1 Å ("kept", the usual step) and searched at every evaluation ("rebuilt"), as CPUNEP does.
CPUNEP runs on one thread, and its times hold what ASE and calorine spend in Python, some 0.3 ms.
Milliseconds an evaluation, median and least of repeats.

Others may use the cores as well. ``cores_to_be_had`` says how many there were: how much faster
all of them hash than one does, measured between evaluations; no number of threads gains more.

    python benchmarks/nep_cpu.py NEP_FILES --out benchmarks/results/nep_cpu.json

NEP_FILES is a folder with the models named below.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
import warnings
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import numpy as np
from ase.build import bulk

from mlff_distiller.engines.loading import ready_student
from mlff_distiller.engines.nep import NEPEngine
from mlff_distiller.students import read_nep

MODELS = {
    "Si_2022_NEP4_3body.txt": ("Si", {64: (2, 2, 2), 1000: (5, 5, 5), 4096: (8, 8, 8)}),
    "Song-2024-UNEP-v1-AgAlAuCrCuMgMoNiPbPdPtTaTiVWZr.txt": (
        "Cu",
        {64: (2, 2, 4), 1008: (6, 6, 7), 4096: (8, 8, 16)},
    ),
}


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def calorine(path, atoms):
    from calorine.calculators import CPUNEP  # benchmarks/lammps.py runs without it

    atoms = atoms.copy()
    atoms.calc = CPUNEP(str(path))

    def evaluate(positions):
        atoms.positions = positions
        return atoms.get_forces()

    return evaluate


def ours(student, atoms, n_threads, *, rebuild):
    engine = NEPEngine(student, n_threads=n_threads)
    cells = [atoms.cell.array, atoms.cell.array]
    cells[1] = cells[1] * (1.0 + 1e-15)
    calls = 0

    def evaluate(positions):
        nonlocal calls
        calls += 1
        # A cell that differs in the last digit is another cell.
        cell = cells[calls % 2] if rebuild else cells[0]
        return engine.evaluate(positions, atoms.numbers, cell, atoms.pbc).forces

    return evaluate


def cores_to_be_had(n_cores):
    """A hash is taken without Python's lock, and touches no memory to speak of."""
    data = b"x" * 2**20

    def seconds(n_threads):
        threads = [Thread(target=lambda: sha256(data).digest()) for _ in range(n_threads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    return n_cores * seconds(1) / seconds(n_cores)


def measure(ways, atoms, repeats, n_cores):
    rng = np.random.default_rng(0)
    first, *frames = (
        atoms.positions + rng.normal(0, 0.02, (len(atoms), 3)) for _ in range(repeats + 1)
    )
    results = {name: evaluate(first).copy() for name, evaluate in ways.items()}
    differences = {
        name: float(np.abs(forces - results["CPUNEP"]).max()) for name, forces in results.items()
    }
    assert max(differences.values()) < 5e-5, differences
    times, cores = {name: [] for name in ways}, []
    for positions in frames:
        cores.append(cores_to_be_had(n_cores))
        for name, evaluate in ways.items():
            start = time.perf_counter()
            evaluate(positions)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times, max(differences.values()), cores


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, metavar="NEP_FILES")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    n_cores = len(os.sched_getaffinity(0))
    rows = []
    for file, (element, sizes) in MODELS.items():
        path = arguments.models / file
        student = ready_student(read_nep(path), "cpu", "float32")
        for n_atoms, cells in sizes.items():
            atoms = bulk(element, cubic=True) * cells
            ways = {"CPUNEP": calorine(path, atoms)}
            for n_threads in sorted({1, n_cores}):
                for kind in ("kept", "rebuilt"):
                    name = f"{kind}, {n_threads} threads"
                    rebuild = kind == "rebuilt"
                    ways[name] = ours(student, atoms, n_threads, rebuild=rebuild)
            repeats = arguments.repeats * (8 if n_atoms < 100 else 1)
            times, difference, cores = measure(ways, atoms, repeats, n_cores)
            medians = {name: statistics.median(values) for name, values in times.items()}
            row = {
                "model": file,
                "element": element,
                "n_atoms": len(atoms),
                "repeats": repeats,
                "median_ms": {name: round(value, 3) for name, value in medians.items()},
                "least_ms": {name: round(min(values), 3) for name, values in times.items()},
                "speedup": {
                    name: round(medians["CPUNEP"] / value, 2) for name, value in medians.items()
                },
                "cores_to_be_had": round(statistics.median(cores), 2),
                "largest_force_difference_eV_per_A": difference,
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    about = {
        "processor": processor(),
        "cores": n_cores,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("calorine", "numpy", "warp-lang")},
        "commit": commit.stdout.strip(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
