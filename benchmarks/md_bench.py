"""What the parts of ``md_gpu.py`` share: crystals, students, timing and the results."""

import contextlib
import json
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

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.structure import thermalise
from mlff_distiller.students import read_nep

MODELS = {
    "Si": "Si_2022_NEP4_3body.txt",
    "Cu": "Song-2024-UNEP-v1-AgAlAuCrCuMgMoNiPbPdPtTaTiVWZr.txt",
    "C": "C_2022_NEP4.txt",
}


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
        self.folder, self.out, self.students = arguments.nep, arguments.out, arguments.students
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
        engine = choose_engine(self.student(element), frames)
        return Simulation(engine, frames, Ensemble(**settings))

    def synchronize(self):
        if self.device.startswith("cuda"):
            wp.synchronize()

    def device_bytes(self):
        """In use on the GPU, by whomever; 0 on a CPU."""
        if not self.device.startswith("cuda"):
            return 0
        free, total = torch.cuda.mem_get_info()
        return total - free


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


def blocks_of_verlet(bench, atoms, calculator, n_blocks, n_steps, settle):
    """Seconds a step of ASE's velocity Verlet at 600 K, in each of some blocks, settled first."""
    atoms.calc = calculator
    thermalise(atoms, 600.0, np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, 1.0 * units.fs)
    dynamics.run(settle)
    seconds = []
    for _ in range(n_blocks):
        bench.synchronize()
        start = time.perf_counter()
        dynamics.run(n_steps)
        bench.synchronize()
        seconds.append((time.perf_counter() - start) / n_steps)
    return seconds
