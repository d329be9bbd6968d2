"""A nep student in LAMMPS on a CPU: `pair_style mlffd` on one and two ranks, and others beside it.

NVE of silicon from 300 K with the input that `export lammps` writes. Every way runs in turn,
--rounds times over; its best round counts, for others may use the cores as well. Atom-steps a
second. The gain of two ranks is the best of a round's pairs.

    python benchmarks/lammps.py STUDENT --out benchmarks/results/lammps_cpu.json \
        [--other nepadapterscpuplugin.so nep/cpu]

--other is a plugin of LAMMPS and its pair style, which reads the same nep.txt.
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
STEPS = 150_000
"""Atom-steps of a run."""


def in_lammps(folder, atoms, n_ranks, plugin, style):
    steps = STEPS // len(atoms)
    text = (folder / "in.lammps").read_text().replace("./mlffdplugin.so", str(plugin))
    text = re.sub(r"pair_style .*", f"pair_style {style}", text)
    text = re.sub(r"^(dump|thermo_style).*\n", "", text, flags=re.MULTILINE)
    write_data(folder / "structure.data", atoms, ("Si",))
    # A tenth first, to warm up.
    text = text.replace("run           1000", f"run {steps // 10}\nrun {steps}")
    (folder / "in.speed").write_text(text)
    programs = [LAMMPS()._program(name) for name in ("mpiexec", "lmp")]
    command = [programs[0], "-n", str(n_ranks), programs[1], "-in", "in.speed", "-log", "none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, env=environment
    )
    seconds = float(re.findall(r"Loop time of (\S+)", done.stdout)[-1])
    return steps * len(atoms) / seconds


def in_ase(student, atoms, dtype):
    atoms = atoms.copy()
    atoms.calc = StudentCalculator(student, device="cpu", dtype=dtype)
    dynamics = VelocityVerlet(atoms, 1.0 * fs)
    steps = STEPS // len(atoms)
    dynamics.run(steps // 10)
    start = time.perf_counter()
    dynamics.run(steps)
    return steps * len(atoms) / (time.perf_counter() - start)


def in_run_md(student, atoms, dtype):
    steps = STEPS // len(atoms)
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
    return result.n_steps * len(atoms) / result.seconds


def ways(student, folder, other):
    own = ("./mlffdplugin.so", "mlffd")
    found = {}
    for n_ranks in (1, 2):
        found[f"mlffd, {n_ranks} ranks"] = lambda a, n=n_ranks: in_lammps(folder, a, n, *own)
        if other:
            found[f"{other[1]}, {n_ranks} ranks"] = lambda a, n=n_ranks: in_lammps(
                folder, a, n, *other
            )
    for dtype in ("float32", "float64"):
        found[f"ASE calculator, {dtype}"] = lambda a, d=dtype: in_ase(student, a, d)
        found[f"run_md, {dtype}"] = lambda a, d=dtype: in_run_md(student, a, d)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", nargs=2, metavar=("PLUGIN", "STYLE"))
    options = parser.parse_args()
    other = options.other and [str(Path(options.other[0]).resolve()), options.other[1]]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        export("lammps", options.student, folder)
        LAMMPS().build(folder)
        for n_atoms, repeat in SIZES.items():
            atoms = bulk("Si", cubic=True).repeat(repeat)
            MaxwellBoltzmannDistribution(atoms, temperature_K=300.0)
            rounds = [
                {way: run(atoms) for way, run in ways(options.student, folder, other).items()}
                for _ in range(options.rounds)
            ]
            best = {way: round(max(one[way] for one in rounds)) for way in rounds[0]}
            gain = max(one["mlffd, 2 ranks"] / one["mlffd, 1 ranks"] for one in rounds)
            rows.append({"n_atoms": n_atoms, "atom_steps_per_s": best, "two_ranks": round(gain, 2)})
            print(json.dumps(rows[-1], indent=1), flush=True)
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
        "rounds": options.rounds,
    }
    options.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
