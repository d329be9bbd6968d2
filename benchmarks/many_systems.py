"""Many systems at once: TorchSim with `MLFFDModel`, replicas of `run_md`, and ASE one by one.

    python benchmarks/many_systems.py --out table.json

NVE of 8- and 64-atom cells of silicon at 300 K, as many as make 4,096 atoms, by the students of
``silicon``. Rates are atom-steps a second of the processor's time, on one thread: others may use
the machine. The median of three.
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from mlff_distiller import StudentCalculator
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.md.ensemble import Ensemble
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.structure import thermalise

HERE = Path(__file__).parent
N_ATOMS = 4096


def torchsim(student, frames):
    """What does steps in TorchSim."""
    import torch_sim

    from mlff_distiller.deploy.torchsim import MLFFDModel

    model = MLFFDModel(student, device="cpu")
    state = torch_sim.initialize_state(frames, model.device, model.dtype)
    state.rng = 0
    state = torch_sim.nve_init(state, model, kT=300 * units.kB)
    dt = 1e-3 * float(torch_sim.units.MetalUnits.time)

    def advance(n_steps):
        nonlocal state
        for _ in range(n_steps):
            state = torch_sim.nve_step(state, model, dt=dt)

    return advance


def replicas(student, frames):
    """What does steps as `run_md` does."""
    ensemble = Ensemble(ensemble="nve", time_step_fs=1.0, seed=0)
    engine = choose_engine(ready_student(student, "cpu", "float32"), frames)
    return Simulation(engine, frames, ensemble).advance


def ase(student, frames):
    """The same of the first frame alone."""
    atoms = frames[0].copy()
    atoms.calc = StudentCalculator(student, device="cpu")
    return VelocityVerlet(atoms, units.fs).run


def rate(advance, n_atoms, n_steps):
    """Atom-steps a second of the processor's time."""
    advance(5)
    rates = []
    for _ in range(3):
        began = time.process_time()
        advance(n_steps)
        rates.append(n_steps * n_atoms / (time.process_time() - began))
    return round(float(np.median(rates)), -2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    about = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "commit": commit,
    }
    rows = []
    for name, n_steps in (("nep", 40), ("painn", 10)):
        for repeat in (1, 2):
            cell = bulk("Si", cubic=True).repeat(repeat)
            frames = [cell.copy() for _ in range(N_ATOMS // len(cell))]
            for seed, atoms in enumerate(frames):
                thermalise(atoms, 300.0, np.random.default_rng(seed))
            row = {"student": name, "systems": len(frames), "atoms": len(cell)}
            for way in (torchsim, replicas):
                row[way.__name__] = rate(way(HERE / "silicon" / name, frames), N_ATOMS, n_steps)
            one = ase(HERE / "silicon" / name, frames)
            row["ase"] = rate(one, len(cell), n_steps * len(frames) // 8)
            rows.append(row)
            print(row, flush=True)
    arguments.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
