"""Molecular dynamics with NEP models on one device: is it right, and how fast is it?

Correctness comes first (forces, energy and virial of the compiled kernels against the PyTorch
reference in float64; repeats and restarts bit for bit), then ASE's velocity Verlet, ``Simulation``
(what ``run_md`` runs) from 64 to 10^6 atoms, replicas, the kernels one by one, and the largest
system that fits. A section that fails prints its traceback, and the rest goes on; one that the time
no longer allows is left out, and says so.

    python benchmarks/md_gpu.py --nep NEP_FILES --out OUT/md_gpu.json
    python benchmarks/md_gpu.py --nep NEP_FILES --device cpu --tiny

NEP_FILES is a folder with the models named below. Crystals begin at 600 K, half of which becomes
potential energy, and their neighbour lists have a skin of 1 Å.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import time
import traceback
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import warp as wp
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import Ensemble, Simulation, StudentCalculator
from mlff_distiller.deploy.calculator import ready_student
from mlff_distiller.deploy.forces import choose_forces
from mlff_distiller.errors import DeviceMemoryError
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import read_nep

MODELS = {
    "Si": "Si_2022_NEP4_3body.txt",
    "Cu": "Song-2024-UNEP-v1-AgAlAuCrCuMgMoNiPbPdPtTaTiVWZr.txt",
    "C": "C_2022_NEP4.txt",
}
GPUMD = {"Si": 2.57e7, "Cu": 2.87e7}
"""Atom-steps a second at 10^6 atoms on an H100 80 GB, measured earlier with the same files."""


def crystal(element: str, n_atoms: int) -> Atoms:
    """A cubic crystal of about so many atoms, fast for millions."""
    cell = bulk(element, cubic=True)
    n = max(1, round((n_atoms / len(cell)) ** (1 / 3)))
    if element == "Si" and n_atoms == 512:
        n = 4
    steps = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    edge = cell.cell[0, 0]
    positions = (steps * edge + cell.positions).reshape(-1, 3)
    numbers = np.full(len(positions), cell.numbers[0])
    return Atoms(numbers, positions, cell=[n * edge] * 3, pbc=True)


class Bench:
    def __init__(self, arguments):
        self.began = time.monotonic()
        self.tiny, self.device, self.budget = arguments.tiny, arguments.device, arguments.seconds
        self.folder, self.out = arguments.nep, arguments.out
        self.results = {"about": self.about()}
        print(json.dumps(self.results["about"]), flush=True)

    def about(self):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
            commit = subprocess.run(command, capture_output=True, text=True, check=True)
        facts = {
            "device": platform.processor() or platform.machine(),
            "commit": commit.stdout.strip() if "commit" in locals() else None,
            "versions": {p: version(p) for p in ("torch", "warp-lang", "numpy", "ase")},
            "python": platform.python_version(),
            "tiny": self.tiny,
        }
        if self.device.startswith("cuda"):
            facts["device"] = torch.cuda.get_device_name(0)
            with contextlib.suppress(OSError):
                query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm", "--format=csv"]
                facts["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True).stdout
        return facts

    def left(self):
        return self.budget - (time.monotonic() - self.began)

    def note(self, section, row):
        self.results.setdefault(section, []).append(row)
        print(f"[{time.monotonic() - self.began:6.1f} s] {section}: {json.dumps(row)}", flush=True)
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(json.dumps(self.results, indent=1) + "\n")

    def section(self, function, least_seconds=0.0):
        name = function.__name__
        if self.left() < least_seconds:
            self.note("left out", {"section": name, "seconds_left": round(self.left(), 1)})
            return
        try:
            function(self)
        except Exception as error:
            traceback.print_exc()
            self.note("failed", {"section": name, "error": repr(error)[:500]})

    def student(self, element):
        return ready_student(read_nep(self.folder / MODELS[element]), self.device, "float32")

    def simulation(self, element, frames, **settings):
        settings = {"ensemble": "nve", "temperature_K": 600.0, "time_step_fs": 1.0} | settings
        frames = [frames] if isinstance(frames, Atoms) else frames
        forces = choose_forces(self.student(element), frames)
        return Simulation(forces, frames, Ensemble(**settings))

    def synchronize(self):
        if self.device.startswith("cuda"):
            wp.synchronize()


def rate(bench, simulation, seconds, at_least=20):
    """Seconds a step, settled first; and how often neighbours were found meanwhile."""
    simulation.advance(at_least)
    start = time.perf_counter()
    simulation.advance(at_least)
    bench.synchronize()
    guess = (time.perf_counter() - start) / at_least
    n = max(at_least, int(seconds / guess))
    before, blocks = simulation.n_rebuilds, []
    for _ in range(3):
        start = time.perf_counter()
        simulation.advance(max(1, n // 3))
        bench.synchronize()
        blocks.append((time.perf_counter() - start) / max(1, n // 3))
    return statistics.median(blocks), 3 * max(1, n // 3), simulation.n_rebuilds - before


# -- is it right? --------------------------------------------------------------------------------


def correctness(bench):
    rng = np.random.default_rng(0)
    for element in MODELS:
        if not (bench.folder / MODELS[element]).exists():
            continue
        reference = read_nep(bench.folder / MODELS[element]).double().eval().to(bench.device)
        start = time.perf_counter()
        calculator = StudentCalculator(
            read_nep(bench.folder / MODELS[element]), device=bench.device, backend="warp"
        )
        worst = {
            "forces": 0.0,
            "energy_per_atom": 0.0,
            "virial_per_atom": 0.0,
            "largest_force": 0.0,
        }
        first = None
        sizes = (8, 64) if bench.tiny else (8, 64, 216)
        for n in sizes:
            for cell_noise in (0.0, 0.3):
                atoms = crystal(element, n)
                if element == "Cu" and n >= 64:
                    known = np.array(calculator.student.elements)
                    atoms.symbols = rng.choice(known, len(atoms)) if cell_noise else atoms.symbols
                atoms.set_cell(
                    atoms.cell.array + rng.normal(0, cell_noise, (3, 3)), scale_atoms=True
                )
                for _ in range(2):
                    atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
                    atoms.calc = calculator
                    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
                    if first is None:
                        first = time.perf_counter() - start
                    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
                    batch = Batch.from_atoms([bare])
                    near = neighbor_list(batch, reference.cutoff).to(bench.device)
                    with torch.no_grad():
                        wanted = reference(batch.to(bench.device), near)
                    stress = atoms.get_stress(voigt=False) - wanted.stress[0].cpu().numpy()
                    n_atoms, exact = len(atoms), wanted.forces.cpu().numpy()
                    for name, value in {
                        "forces": np.abs(forces - exact).max(),
                        "energy_per_atom": abs(energy - float(wanted.energy[0])) / n_atoms,
                        "virial_per_atom": np.abs(stress).max() * atoms.cell.volume / n_atoms,
                        "largest_force": np.abs(exact).max(),
                    }.items():
                        worst[name] = max(worst[name], float(value))
        row = {"model": MODELS[element], "first_evaluation_s": round(first, 2), **worst}
        bench.note("correctness", row | {"passed": worst["forces"] <= 5e-5})


def repeats(bench):
    """Twice the same steps, and a run cut in the middle."""
    for ensemble, thermostat in (("nve", "langevin"), ("nvt", "langevin"), ("npt", "bussi")):
        atoms = crystal("Si", 64)
        settings = {"ensemble": ensemble, "thermostat": thermostat, "temperature_K": 900.0}
        ends = []
        for cut in (False, False, True):
            simulation = bench.simulation("Si", atoms, **settings)
            simulation.advance(150)
            if cut:
                state = simulation.state()
                simulation = bench.simulation("Si", atoms, **settings)
                simulation.load(state)
            simulation.advance(150)
            ends.append(simulation.state())
        same = [
            bool(
                np.array_equal(ends[0].positions, end.positions)
                and np.array_equal(ends[0].velocities, end.velocities)
                and np.array_equal(ends[0].cell, end.cell)
            )
            for end in ends[1:]
        ]
        row = {"ensemble": ensemble, "repeat_identical": same[0], "restart_identical": same[1]}
        bench.note("repeats", row | {"graphs": simulation._with_graphs})


def drift(bench):
    atoms, time_step = crystal("Si", 64 if bench.tiny else 512), 0.5
    simulation = bench.simulation("Si", atoms, time_step_fs=time_step)
    n_samples, every = (10, 20) if bench.tiny else (200, 1000)
    simulation.advance(1 if bench.tiny else 2000)
    times, energies = [], []
    for _ in range(n_samples):
        simulation.advance(every)
        seen = simulation.observables()
        times.append(simulation.time_ps)
        energies.append(float(seen.potential_energy[0] + seen.kinetic_energy[0]))
    slope, _ = np.polyfit(times, np.array(energies) / len(atoms) * 1e3, 1)
    row = {"n_atoms": len(atoms), "time_step_fs": time_step, "ps": times[-1] - times[0]}
    row |= {"drift_meV_per_atom_per_ps": float(slope)}
    row |= {"fluctuation_meV_per_atom": float(np.std(energies) / len(atoms) * 1e3)}
    bench.note("drift", row | {"temperature_K": float(seen.temperature_K[0])})


# -- how fast is it? -----------------------------------------------------------------------------


def ase_step(bench):
    for n in (64,) if bench.tiny else (64, 1000):
        atoms = crystal("Si", n)
        atoms.calc = StudentCalculator(bench.student("Si"), device=bench.device, backend="warp")
        rng = np.random.default_rng(0)
        spread = np.sqrt(units.kB * 600.0 * atoms.get_masses())[:, None]
        atoms.set_momenta(spread * rng.standard_normal((len(atoms), 3)))
        dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
        dynamics.run(10 if bench.tiny else 200)
        blocks = []
        for _ in range(3 if bench.tiny else 10):
            start = time.perf_counter()
            dynamics.run(5 if bench.tiny else 100)
            blocks.append((time.perf_counter() - start) / (5 if bench.tiny else 100))
        evaluator = atoms.calc._backend._evaluator
        evaluator._with_graphs, graphs = False, evaluator._graph is not None
        start = time.perf_counter()
        dynamics.run(5 if bench.tiny else 200)
        plain = (time.perf_counter() - start) / (5 if bench.tiny else 200)
        row = {"n_atoms": n, "ms": 1e3 * statistics.median(blocks), "ms_least": 1e3 * min(blocks)}
        bench.note("ase_step", row | {"graph": graphs, "ms_without_graph": 1e3 * plain})


def steps(bench):
    sizes = (64,) if bench.tiny else (64, 512, 1000, 4096)
    for n in sizes:
        simulation = bench.simulation("Si", crystal("Si", n))
        seconds, n_steps, rebuilds = rate(bench, simulation, 0.2 if bench.tiny else 1.5)
        row = {"ensemble": "nve", "n_atoms": simulation.forces.systems.n_atoms}
        row |= {"us": 1e6 * seconds, "n_steps": n_steps, "rebuilds": rebuilds}
        bench.note("steps", row | {"graphs": simulation._with_graphs})
    for settings in (
        {"ensemble": "nvt"},
        {"ensemble": "nvt", "thermostat": "bussi"},
        {"ensemble": "npt", "thermostat": "bussi"},
    ):
        simulation = bench.simulation("Si", crystal("Si", sizes[-1]), **settings)
        seconds, n_steps, rebuilds = rate(bench, simulation, 0.2 if bench.tiny else 1.0)
        row = settings | {"n_atoms": simulation.forces.systems.n_atoms, "us": 1e6 * seconds}
        bench.note("steps", row | {"n_steps": n_steps, "rebuilds": rebuilds})


def throughput(bench):
    for element in ("Si", "Cu"):
        for n in (500,) if bench.tiny else (1000, 10_000, 100_000, 1_000_000):
            if bench.left() < 15:
                return
            start = time.perf_counter()
            simulation = bench.simulation(element, crystal(element, n))
            started = time.perf_counter() - start
            seconds, n_steps, rebuilds = rate(bench, simulation, 0.2 if bench.tiny else 2.0, 10)
            n_atoms, seen = simulation.forces.systems.n_atoms, simulation.observables()
            row = {"element": element, "n_atoms": n_atoms, "ms": 1e3 * seconds}
            row |= {"atom_steps_per_s": n_atoms / seconds, "n_steps": n_steps}
            row |= {"rebuilds": rebuilds, "temperature_K": float(seen.temperature_K[0])}
            row |= {"start_s": round(started, 2)}
            if n == 1_000_000:
                row["ratio_to_GPUMD"] = row["atom_steps_per_s"] / GPUMD[element]
            bench.note("throughput", row)
            del simulation


def replicas(bench):
    n = 4 if bench.tiny else 1024
    simulation = bench.simulation("Si", [crystal("Si", 64)] * n)
    seconds, n_steps, rebuilds = rate(bench, simulation, 0.2 if bench.tiny else 2.0, 10)
    row = {"replicas": n, "n_atoms": 64 * n, "ms": 1e3 * seconds, "n_steps": n_steps}
    bench.note("replicas", row | {"atom_steps_per_s": 64 * n / seconds, "rebuilds": rebuilds})


def kernels(bench):
    """Each kernel of a step by itself, in a row; and finding neighbours."""
    for element in ("Si", "Cu"):
        for n in (64,) if bench.tiny else (64, 1000, 1_000_000):
            simulation = bench.simulation(element, crystal(element, n))
            simulation.advance(20)
            forces = simulation.forces
            launches = {
                "nep": [forces._gradients._ranges[0], forces._forces._ranges[0]],
                "totals": [forces._chunk_totals._ranges[0], forces._totals._ranges[0]],
                "kick": [simulation._end[-1]._ranges[0]],
                "follow": [forces.neighbors._follow._ranges[0]],
            }
            parts = {}
            for name, groups in launches.items():
                for group in groups:
                    for command in group:
                        label = f"{name} {command.kernel.key.split('__')[-1]}"
                        parts[label] = timed(bench, command.launch)
            simulation = bench.simulation(element, crystal(element, n))
            parts["rebuild"] = timed(bench, simulation._list, repeats=5)
            slots = simulation.forces.neighbors
            row = {"element": element, "n_atoms": forces.systems.n_atoms, "us": parts}
            counts = float(slots.counts.numpy().mean())
            bench.note("kernels", row | {"slots": slots.capacity, "mean_neighbours": counts})
            if bench.left() < 20:
                return


def timed(bench, launch, repeats=None):
    """Microseconds a call: in a CUDA graph where it may be recorded."""
    launch()
    bench.synchronize()
    start = time.perf_counter()
    launch()
    bench.synchronize()
    once = time.perf_counter() - start
    n = repeats or int(np.clip(0.05 / once, 3, 200))
    if bench.device.startswith("cuda") and repeats is None:
        with wp.ScopedCapture(device=bench.device, force_module_load=False) as capture:
            for _ in range(n):
                launch()
        wp.capture_launch(capture.graph)
        bench.synchronize()
        start = time.perf_counter()
        wp.capture_launch(capture.graph)
    else:
        start = time.perf_counter()
        for _ in range(n):
            launch()
    bench.synchronize()
    return round(1e6 * (time.perf_counter() - start) / n, 2)


def largest(bench):
    for n in (1000,) if bench.tiny else (5_000_000, 10_000_000, 20_000_000, 30_000_000):
        if bench.left() < 2e-6 * n:
            bench.note("largest", {"n_atoms": n, "left out": "no time"})
            return
        try:
            start = time.perf_counter()
            simulation = bench.simulation("Si", crystal("Si", n))
            started = time.perf_counter() - start
            simulation.advance(2)
            start = time.perf_counter()
            simulation.advance(3)
            bench.synchronize()
            seconds = (time.perf_counter() - start) / 3
        except DeviceMemoryError as error:
            bench.note("largest", {"n_atoms": n, "does not fit": str(error)[:300]})
            break
        n_atoms = simulation.forces.systems.n_atoms
        row = {"n_atoms": n_atoms, "ms": 1e3 * seconds, "start_s": round(started, 1)}
        if bench.device.startswith("cuda"):
            free, total = torch.cuda.mem_get_info()
            row["used_GiB"] = round((total - free) / 2**30, 2)
        bench.note("largest", row | {"atom_steps_per_s": n_atoms / seconds})
        del simulation
    small = bench.simulation("Si", crystal("Si", 64))
    small.advance(10)
    bench.note("largest", {"afterwards": "a small system runs", "n_atoms": 64})


def memory(bench):
    """Many steps, and changing numbers of atoms: does memory stay?"""

    def used():
        if not bench.device.startswith("cuda"):
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free

    calculator = StudentCalculator(bench.student("Si"), device=bench.device, backend="warp")
    marks = []
    for k in range(6 if bench.tiny else 60):
        atoms = crystal("Si", 64 if k % 2 else 216)
        del atoms[: k % 7]
        atoms.rattle(0.05, seed=k)
        atoms.calc = calculator
        for _ in range(3):
            atoms.positions += 0.001
            atoms.get_forces()
        marks.append(used())
    simulation = bench.simulation("Si", crystal("Si", 64))
    simulation.advance(100)
    before = used()
    simulation.advance(100 if bench.tiny else 20_000)
    row = {"changing_atoms_bytes": marks[-1] - marks[len(marks) // 2]}
    bench.note("memory", row | {"20000_steps_bytes": used() - before})


SECTIONS = {
    "correctness": (correctness, 0),
    "repeats": (repeats, 5),
    "ase_step": (ase_step, 5),
    "steps": (steps, 5),
    "kernels": (kernels, 15),
    "throughput": (throughput, 15),
    "replicas": (replicas, 5),
    "drift": (drift, 10),
    "memory": (memory, 5),
    "largest": (largest, 15),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nep", type=Path, required=True, metavar="NEP_FILES")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=150.0, help="time for all of it")
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that all runs")
    default = Path(os.environ["OUT"]) / "md_gpu.json" if "OUT" in os.environ else None
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    for name in arguments.sections:
        bench.section(*SECTIONS[name])
    print(f"done in {time.monotonic() - bench.began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
