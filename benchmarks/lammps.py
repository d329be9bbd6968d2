"""A nep student in LAMMPS on a CPU: `pair_style mlffd` on one and two ranks, and others beside it.

NVE of silicon from 300 K with the input that `export lammps` writes, in --stretches of 10,000
atom-steps. Others may use the cores as well: the best stretch counts. Atom-steps a second; of
ways that use threads, one.

    python benchmarks/lammps.py STUDENT --out benchmarks/results/lammps_cpu.json \
        [--other nepadapterscpuplugin.so nep/cpu] [--lmp PROGRAM]

--other is a plugin of LAMMPS and its pair style, which reads the same nep.txt. --lmp may be a
script that gives LAMMPS priority over whatever else a shared machine runs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from ase.build import bulk
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from nep_cpu import processor

from mlff_distiller import StudentCalculator, run_md
from mlff_distiller.export import export
from mlff_distiller.export.lammps import LAMMPS
from mlff_distiller.export.lammps_files import write_data

SIZES = {512: (4, 4, 4), 4096: (8, 8, 8)}
STRETCH = 10_000
"""Atom-steps."""


def in_lammps(folder, atoms, n_ranks, n_stretches, lmp, plugin, style):
    steps = STRETCH // len(atoms)
    text = (folder / "in.lammps").read_text().replace("./mlffdplugin.so", str(plugin))
    text = re.sub(r"pair_style .*", f"pair_style {style}", text)
    watch = r"^(dump|thermo_style|fix +(errors|guard)|compute|variable).*\n"
    text = re.sub(watch, "", text, flags=re.MULTILINE)
    write_data(folder / "structure.data", atoms, ("Si",))
    text = text.replace("run           1000", f"run {steps}\n" * (1 + n_stretches))
    (folder / "in.speed").write_text(text)
    mpiexec = LAMMPS()._program("mpiexec")
    command = [mpiexec, "-n", str(n_ranks), lmp, "-in", "in.speed", "-log", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, env=environment
    )
    seconds = [float(word) for word in re.findall(r"Loop time of (\S+)", done.stdout)]
    return steps * len(atoms) / min(seconds[1:])  # the first warms up


def in_ase(student, atoms, n_stretches, dtype):
    atoms = atoms.copy()
    atoms.calc = StudentCalculator(student, device="cpu", dtype=dtype)
    dynamics = VelocityVerlet(atoms, 1.0 * fs)
    steps, seconds = STRETCH // len(atoms), []
    for _ in range(1 + n_stretches):
        start = time.perf_counter()
        dynamics.run(steps)
        seconds.append(time.perf_counter() - start)
    return steps * len(atoms) / min(seconds[1:])


def in_run_md(student, atoms, n_stretches, dtype):
    steps, seconds = STRETCH // len(atoms), []
    for _ in range(n_stretches):
        with tempfile.TemporaryDirectory() as folder:
            result = run_md(
                [atoms],
                student,
                time_ps=steps * 1e-3,
                time_step_fs=1.0,
                out=Path(folder, "md.extxyz"),
                frames_every=steps,
                device="cpu",
                dtype=dtype,
            )
        seconds.append(result.seconds)
    return steps * len(atoms) / min(seconds)


def measure(student, folder, atoms, n, lmp, other):
    """Atom-steps a second of each way, and the best gain that two ranks had in three tries."""

    def ranks(plugin, style):
        return [in_lammps(folder, atoms, n_ranks, n, lmp, plugin, style) for n_ranks in (1, 2)]

    pairs = [ranks("./mlffdplugin.so", "mlffd") for _ in range(3)]
    found = {"mlffd": [max(column) for column in zip(*pairs, strict=True)]}
    if other:
        found[other[1]] = ranks(*other)
    found = {f"{style}, {k + 1} ranks": two[k] for style, two in found.items() for k in (0, 1)}
    for dtype in ("float32", "float64"):
        found[f"ASE calculator, {dtype}"] = in_ase(student, atoms, n, dtype)
        found[f"run_md, {dtype}"] = in_run_md(student, atoms, n, dtype)
    return found, max(two / one for one, two in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stretches", type=int, default=20)
    parser.add_argument("--other", nargs=2, metavar=("PLUGIN", "STYLE"))
    parser.add_argument("--lmp", default=LAMMPS()._program("lmp"), help="runs in its place")
    options = parser.parse_args()
    other = options.other and [str(Path(options.other[0]).resolve()), options.other[1]]
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export("lammps", options.student, folder)
        LAMMPS().build(folder)
        for n_atoms, repeat in SIZES.items():
            atoms = bulk("Si", cubic=True).repeat(repeat)
            MaxwellBoltzmannDistribution(atoms, temperature_K=300.0)
            found, gain = measure(
                options.student, folder, atoms, options.stretches, options.lmp, other
            )
            speed = {way: round(rate) for way, rate in found.items()}
            row = {"n_atoms": n_atoms, "atom_steps_per_s": speed, "two_ranks": round(gain, 2)}
            rows.append(row)
            print(json.dumps(row, indent=1), flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    about = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("lammps", "mpich", "ase", "warp-lang")},
        "commit": commit.stdout.strip(),
        "stretches": options.stretches,
    }
    options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
