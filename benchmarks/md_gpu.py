"""Molecular dynamics with NEP models on one device: is it right, and how fast is it?

Correctness comes first (forces, energy and virial of the compiled kernels against the PyTorch
reference in float64; repeats and restarts bit for bit), then ASE's velocity Verlet, ``Simulation``
(what ``run_md`` runs) from 64 to 10^6 atoms, replicas, the kernels one by one, sudden compression,
the device's limits (``md_limits.py``), long runs (``md_endurance.py``), the largest system that
fits, and Orb-v3 beside it, if orb-models is there. A section that fails prints its traceback, and
the rest goes on; one that the time no longer allows is left out, and says so.

    python benchmarks/md_gpu.py --nep NEP_FILES --out OUT/md_gpu.json
    python benchmarks/md_gpu.py --nep NEP_FILES --device cpu --tiny

NEP_FILES is a folder with the models that ``md_bench.py`` names. Crystals begin at 600 K, half of
which becomes potential energy, and their neighbour lists have a skin of 1 Å.
"""

import argparse
import os
import statistics
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import warp as wp
from ase import Atoms
from md_bench import (
    MODELS,
    Bench,
    blocks_of_verlet,
    crystal,
    rate,
    timed,
)
from md_endurance import density_jump, soak
from md_limits import limits

from mlff_distiller.batch import Batch
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import DeviceMemoryError
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import NEP, load_student, read_nep

LARGEST_FORCE_ERROR = 5e-5
"""eV/Å, of float32 kernels."""
GPUMD = {"Si": 2.57e7, "Cu": 2.87e7}
"""Atom-steps a second at 10^6 atoms on an H100 80 GB, measured earlier with the same files."""


# -- is it right? --------------------------------------------------------------------------------


def worst_errors(bench, calculator, reference, element, symbols=None):
    """Kernels against the float64 ``reference``, in strained and rattled crystals."""
    rng = np.random.default_rng(0)
    worst = dict.fromkeys(("forces", "energy_per_atom", "virial_per_atom", "largest_force"), 0.0)
    for n, cell_noise in product((8, 64) if bench.tiny else (8, 64, 216), (0.0, 0.3)):
        atoms = crystal(element, n)
        if symbols is not None and n >= 64 and cell_noise:
            atoms.symbols = rng.choice(np.array(symbols), len(atoms))
        atoms.set_cell(atoms.cell.array + rng.normal(0, cell_noise, (3, 3)), scale_atoms=True)
        for _ in range(2):
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
            atoms.calc = calculator
            forces, energy = atoms.get_forces(), atoms.get_potential_energy()
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
    return worst | {"passed": worst["forces"] <= LARGEST_FORCE_ERROR}


def correctness(bench):
    for element in MODELS:
        path = bench.folder / MODELS[element]
        if not path.exists():
            continue
        reference = read_nep(path).double().eval().to(bench.device)
        start = time.perf_counter()
        calculator = StudentCalculator(read_nep(path), device=bench.device, backend="warp")
        calculator.get_potential_energy(crystal(element, 8))
        row = {"model": path.name, "first_evaluation_s": round(time.perf_counter() - start, 2)}
        symbols = calculator.student.elements if element == "Cu" else None
        bench.note(
            "correctness", row | worst_errors(bench, calculator, reference, element, symbols)
        )


def trained(bench):
    """Students that were distilled from a teacher, on crystals of silicon."""
    for folder in bench.students:
        reference, name = load_student(folder), "/".join(folder.parts[-2:])
        if not isinstance(reference, NEP) or "Si" not in reference.elements:
            bench.note("trained", {"student": name, "left out": "no nep of silicon"})
            continue
        calculator = StudentCalculator(folder, device=bench.device, backend="warp")
        reference = reference.double().eval().to(bench.device)
        errors = worst_errors(bench, calculator, reference, "Si")
        bench.note("trained", {"student": name} | errors)


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
        calculator = StudentCalculator(bench.student("Si"), device=bench.device, backend="warp")
        n_blocks, n_steps, settle = (3, 5, 10) if bench.tiny else (10, 100, 200)
        seconds = blocks_of_verlet(bench, atoms, calculator, n_blocks, n_steps, settle)
        engine = calculator._engine
        row = {"n_atoms": n, "ms": 1e3 * statistics.median(seconds), "ms_least": 1e3 * min(seconds)}
        row |= {"graph": engine._graph is not None, "us_of": parts_of_a_step(bench, atoms)}
        engine._with_graphs, engine._graph = False, None
        plain = blocks_of_verlet(bench, atoms, calculator, 3, n_steps, 1)
        bench.note("ase_step", row | {"ms_without_graph": 1e3 * statistics.median(plain)})


def parts_of_a_step(bench, atoms):
    """Median microseconds of calls, each contained in the one before, each timed by itself.

    The last two are one after the other, in ``_run``: the host hands the graph over, and waits.
    """
    engine = atoms.calc._engine
    parts = {}
    for owner, name in (
        (atoms, "get_forces"),
        (engine, "evaluate"),
        (engine, "_run"),
        (wp, "capture_launch"),
        (wp, "synchronize_stream"),
    ):
        call, seconds = getattr(owner, name), []

        def timed_call(*args, call=call, seconds=seconds, **kwargs):
            start = time.perf_counter()
            result = call(*args, **kwargs)
            seconds.append(time.perf_counter() - start)
            return result

        with patch.object(owner, name, timed_call):
            for k in range(20 if bench.tiny else 300):
                atoms.positions += 1e-4 * (-1) ** k
                atoms.get_forces()
        parts[name] = round(1e6 * statistics.median(seconds), 2) if seconds else None
    return parts


def orb_ratio(bench):
    """A step with Orb-v3-conservative-inf (random weights) over one with the student.

    Both by ASE's velocity Verlet in this process; Orb as it is and compiled.
    """
    try:
        import orb_models.forcefield.pretrained  # noqa: F401
        from orb_random import calculator as orb
    except ImportError as error:
        bench.note("orb_ratio", {"left out": repr(error)})
        return
    precision = torch.get_float32_matmul_precision()
    sizes, n_blocks, n_steps = ((8,), 3, 2) if bench.tiny else ((64, 1000), 10, 5)
    ours = {}
    for n in sizes:
        student = StudentCalculator(bench.student("Si"), device=bench.device, backend="warp")
        seconds = blocks_of_verlet(bench, crystal("Si", n), student, n_blocks, 20 * n_steps, 50)
        ours[n] = statistics.median(seconds)
    try:
        for compiled in (False,) if bench.tiny else (False, True):
            if compiled and bench.left() < 120:
                bench.note("orb_ratio", {"compiled": True, "left out": "no time"})
                break
            teacher = orb(compiled=compiled)
            for n in sizes:
                start = time.perf_counter()
                atoms = crystal("Si", n)
                teacher.get_potential_energy(atoms)
                first = time.perf_counter() - start
                seconds = statistics.median(
                    blocks_of_verlet(bench, atoms, teacher, n_blocks, n_steps, 10)
                )
                row = {"orb_models": version("orb-models"), "compiled": compiled}
                row |= {"n_atoms": len(atoms), "first_evaluation_s": round(first, 1)}
                row |= {"orb_ms": 1e3 * seconds, "student_ms": 1e3 * ours[n]}
                bench.note("orb_ratio", row | {"ratio": seconds / ours[n]})
    finally:
        torch.set_float32_matmul_precision(precision)


def steps(bench):
    sizes = (64,) if bench.tiny else (64, 512, 1000, 4096)
    for n in sizes:
        simulation = bench.simulation("Si", crystal("Si", n))
        seconds, n_steps, rebuilds = rate(bench, simulation, 0.2 if bench.tiny else 1.5)
        row = {"ensemble": "nve", "n_atoms": simulation.engine.systems.n_atoms}
        row |= {"us": 1e6 * seconds, "n_steps": n_steps, "rebuilds": rebuilds}
        bench.note("steps", row | {"graphs": simulation._with_graphs})
    for settings in (
        {"ensemble": "nvt"},
        {"ensemble": "nvt", "thermostat": "bussi"},
        {"ensemble": "npt", "thermostat": "bussi"},
    ):
        simulation = bench.simulation("Si", crystal("Si", sizes[-1]), **settings)
        seconds, n_steps, rebuilds = rate(bench, simulation, 0.2 if bench.tiny else 1.0)
        row = settings | {"n_atoms": simulation.engine.systems.n_atoms, "us": 1e6 * seconds}
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
            n_atoms, seen = simulation.engine.systems.n_atoms, simulation.observables()
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
            forces = simulation.engine
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
            slots = simulation.engine.neighbors
            row = {"element": element, "n_atoms": forces.systems.n_atoms, "us": parts}
            counts = float(slots.counts.numpy().mean())
            bench.note("kernels", row | {"slots": slots.capacity, "mean_neighbours": counts})
            if bench.left() < 20:
                return


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
        n_atoms = simulation.engine.systems.n_atoms
        row = {"n_atoms": n_atoms, "ms": 1e3 * seconds, "start_s": round(started, 1)}
        row["used_GiB"] = round(bench.device_bytes() / 2**30, 2)
        bench.note("largest", row | {"atom_steps_per_s": n_atoms / seconds})
        del simulation
    small = bench.simulation("Si", crystal("Si", 64))
    small.advance(10)
    bench.note("largest", {"afterwards": "a small system runs", "n_atoms": 64})


def memory(bench):
    """Many steps, and changing numbers of atoms: does memory stay?"""
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
        marks.append(bench.device_bytes())
    simulation = bench.simulation("Si", crystal("Si", 64))
    simulation.advance(100)
    before = bench.device_bytes()
    simulation.advance(100 if bench.tiny else 20_000)
    row = {"changing_atoms_bytes": marks[-1] - marks[len(marks) // 2]}
    bench.note("memory", row | {"20000_steps_bytes": bench.device_bytes() - before})


SECTIONS = {
    "correctness": (correctness, 0),
    "trained": (trained, 2),
    "repeats": (repeats, 5),
    "ase_step": (ase_step, 5),
    "steps": (steps, 5),
    "kernels": (kernels, 15),
    "throughput": (throughput, 15),
    "replicas": (replicas, 5),
    "drift": (drift, 10),
    "density_jump": (density_jump, 5),
    "memory": (memory, 5),
    "limits": (limits, 20),
    "soak": (soak, 15),
    "largest": (largest, 15),
    "orb_ratio": (orb_ratio, 20),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nep", type=Path, required=True, metavar="NEP_FILES")
    ours = Path(__file__).parent / "silicon" / "nep"
    parser.add_argument(
        "--students",
        type=Path,
        nargs="*",
        metavar="DIR",
        default=[ours] if ours.is_dir() else [],
        help="folders of trained nep students that know silicon",
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=500.0, help="time for all of it")
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
