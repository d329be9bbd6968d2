"""Sections of ``md_gpu.py``: long runs, and a box that suddenly shrinks."""

import gc
import statistics
import time

import numpy as np
import psutil
from ase import units
from ase.md.verlet import VelocityVerlet
from md_bench import crystal

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.structure import thermalise

SIZES = (64, 63, 216, 200, 512)


def soak(bench):
    """Does a long run stay as it began, in memory a step and in speed?"""
    long_simulation(bench)
    changing_atoms(bench)


def long_simulation(bench):
    """Steps of ``Simulation``, in a hundred blocks; in half of the time that is left at most."""
    half, block = bench.left() / 2, 20 if bench.tiny else 10_000
    simulation = bench.simulation("Si", crystal("Si", 64))
    simulation.advance(2 * block)
    before, seconds = memory(bench), []
    for _ in range(100):
        start = time.perf_counter()
        simulation.advance(block)
        bench.synchronize()
        seconds.append((time.perf_counter() - start) / block)
        if bench.left() < half:
            break
    n_steps = block * len(seconds)
    row = {"of": "Simulation, 64 atoms", "n_steps": n_steps, "wanted": 100 * block}
    row |= bytes_a_step(before, memory(bench), n_steps)
    row |= {"us": 1e6 * statistics.median(seconds), "last_over_first": last_over_first(seconds)}
    bench.note("soak", row | {"rebuilds": simulation.n_rebuilds})


def changing_atoms(bench):
    """ASE's velocity Verlet with one calculator, each 500 steps in a crystal of another size."""
    calculator = StudentCalculator(bench.student("Si"), device=bench.device, backend="warp")
    n_steps, n_runs = (5, 10) if bench.tiny else (500, 200)
    rng = np.random.default_rng(0)

    def run(n):
        atoms = crystal("Si", n)[:n]
        atoms.positions += rng.normal(0, 0.02, (n, 3))
        thermalise(atoms, 300.0, rng)
        atoms.calc = calculator
        start = time.perf_counter()
        VelocityVerlet(atoms, 1.0 * units.fs).run(n_steps)
        return (time.perf_counter() - start) / n_steps

    for n in SIZES * 2:
        run(n)
    before, seconds = memory(bench), {n: [] for n in SIZES}
    for k in range(n_runs):
        n = SIZES[k % len(SIZES)]
        seconds[n].append(run(n))
        if bench.left() < 5:
            break
    n_done = n_steps * sum(map(len, seconds.values()))
    row = {"of": "ASE, changing numbers of atoms", "n_steps": n_done, "wanted": n_runs * n_steps}
    row |= bytes_a_step(before, memory(bench), n_done)
    row |= {"ms": {n: 1e3 * statistics.median(s) for n, s in seconds.items() if s}}
    ratios = {n: last_over_first(s) for n, s in seconds.items()}
    bench.note("soak", row | {"last_over_first": ratios})


def memory(bench):
    """Bytes on the device and of this process on the host."""
    gc.collect()
    bench.synchronize()
    return bench.device_bytes(), psutil.Process().memory_info().rss


def bytes_a_step(before, after, n_steps):
    device, host = ((b - a) / n_steps for a, b in zip(before, after, strict=True))
    return {"device_bytes_a_step": device, "host_bytes_a_step": host}


def last_over_first(seconds):
    """Medians of the last and the first tenth."""
    tenth = max(1, len(seconds) // 10)
    if len(seconds) < 2:
        return None
    return round(statistics.median(seconds[-tenth:]) / statistics.median(seconds[:tenth]), 3)


def density_jump(bench):
    """Volume times 0.7 at once: are all neighbours there? Against a calculator that starts anew."""
    simulation = bench.simulation("Si", crystal("Si", 216), ensemble="nvt")
    simulation.advance(50 if bench.tiny else 1000)

    def note_simulation(when, before):
        atoms, forces = simulation.atoms(), simulation.engine
        found = forces.forces.numpy(), float(simulation.observables().potential_energy[0])
        row = {"of": "Simulation", "when": when, "capacity_before": before}
        row |= {"capacity": forces.neighbors.capacity}
        bench.note("density_jump", row | differences(bench, atoms, *found))

    capacity = simulation.engine.neighbors.capacity
    simulation.set_cell(0.7 ** (1 / 3) * simulation.cell()[0])
    note_simulation("at once", capacity)
    simulation.advance(20 if bench.tiny else 500)
    note_simulation("some steps later", capacity)

    atoms = crystal("Si", 216)
    atoms.rattle(0.05, seed=0)
    atoms.calc = StudentCalculator(bench.student("Si"), device=bench.device, backend="warp")
    for _ in range(3):  # a graph is recorded at the second
        atoms.rattle(0.01, rng=np.random.default_rng(1))
        atoms.get_forces()
    for when, factor in (("compressed", 0.7), ("as before", 1 / 0.7)):
        capacity = atoms.calc._engine.neighbors.capacity
        atoms.set_cell(factor ** (1 / 3) * atoms.cell.array, scale_atoms=True)
        found = atoms.get_forces(), atoms.get_potential_energy()
        row = {"of": "StudentCalculator", "when": when, "capacity_before": capacity}
        row |= {"capacity": atoms.calc._engine.neighbors.capacity}
        bench.note("density_jump", row | differences(bench, atoms, *found))


def differences(bench, atoms, forces, energy):
    """From what a new calculator finds for the same atoms."""
    anew = atoms.copy()
    anew.calc = StudentCalculator(bench.student("Si"), device=bench.device, backend="warp")
    return {
        "largest_force": float(np.abs(forces).max()),
        "force_difference": float(np.abs(forces - anew.get_forces()).max()),
        "energy_difference": float(abs(energy - anew.get_potential_energy())),
    }
