"""One trajectory, timed step by step, as a user runs it: through ASE, or by ``run_md``."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from mlff_distiller.errors import DynamicsError
from mlff_distiller.md import Simulation, run_md
from mlff_distiller.measure.meters import MemoryMeter
from mlff_distiller.students import Student

Array = NDArray[np.float64]
Clock = Callable[[], float]
EnsembleName = Literal["nve", "nvt", "npt"]

LOOK_EVERY = 10
"""Steps between two looks at energy and memory; the clock stands meanwhile."""
STEPS_A_SAMPLE = 100
"""Of ``run_md``, which does not come back to the host after each; its log's interval too."""
_EXPLOSION_FACTOR = 10.0
_PILOT_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What is run. At least ``n_steps`` and ``least_seconds``, at most ``most_seconds``."""

    ensemble: EnsembleName
    time_step_fs: float
    temperature_K: float = 300.0
    pressure_GPa: float = 0.0
    n_steps: int = 1000
    warm_up: int = 50
    least_seconds: float = 0.0
    most_seconds: float = np.inf
    seed: int = 0
    compressibility_per_GPa: float = 0.01

    def is_done(self, n_steps: int, seconds: float) -> bool:
        if seconds >= self.most_seconds:
            return True
        return n_steps >= self.n_steps and seconds >= self.least_seconds


@dataclass
class Trial:
    """Samples and observables of one trajectory after its warm-up."""

    first_call_s: float = 0.0
    warm_up_s: float = 0.0
    warm_up_steps: int = 0
    samples_ms: Array = field(default_factory=lambda: np.empty(0))  # a step each, or a mean of some
    steps_a_sample: int = 1
    seen: array[float] = field(default_factory=lambda: array("d"))
    """Rows of four: step, total energy in eV, temperature in K, pressure in GPa or NaN."""

    @property
    def n_steps(self) -> int:
        return len(self.samples_ms) * self.steps_a_sample

    @property
    def seconds(self) -> float:
        return 1e-3 * float(self.samples_ms.sum()) * self.steps_a_sample


def ase_dynamics(atoms: Atoms, plan: Plan) -> MolecularDynamics:
    """ASE's integrator for the ensemble, coupled as gently as ``run_md``'s."""
    step = plan.time_step_fs * units.fs
    if plan.ensemble == "nve":
        return VelocityVerlet(atoms, step)
    if plan.ensemble == "nvt":
        return Langevin(
            atoms,
            step,
            temperature_K=plan.temperature_K,
            friction=1e-3 / units.fs,
            rng=np.random.default_rng(plan.seed),
            fixcm=False,
        )
    return IsotropicMTKNPT(
        atoms,
        step,
        temperature_K=plan.temperature_K,
        pressure_au=plan.pressure_GPa * units.GPa,
        tdamp=100 * units.fs,
        pdamp=1000 * units.fs,
    )


def run_ase(
    start: Atoms, calculator: BaseCalculator, plan: Plan, memory: MemoryMeter, clock: Clock
) -> Trial:
    """ASE's dynamics. A sample is one step: what its ``irun`` takes from one step to the next."""
    atoms, trial = start.copy(), Trial()
    atoms.calc = calculator
    memory.mark(-1)
    began = clock()
    atoms.get_forces()
    trial.first_call_s = clock() - began
    dynamics = ase_dynamics(atoms, plan)
    steps = dynamics.irun(10**9)
    next(steps)  # before the first step
    began = clock()
    while trial.warm_up_steps < plan.warm_up and trial.warm_up_s < plan.most_seconds:
        next(steps)
        trial.warm_up_steps += 1
        trial.warm_up_s = clock() - began
    samples = array("d")  # not objects: memory that grows is what is looked for
    seconds, done = 0.0, 0
    memory.mark(0)
    trial.seen.extend(_look(atoms, 0))
    while not plan.is_done(done, seconds):
        began = clock()
        next(steps)
        samples.append(clock() - began)
        seconds += samples[-1]
        done += 1
        if done % LOOK_EVERY == 0:
            memory.mark(done)
            trial.seen.extend(_look(atoms, done))
            _check(trial.seen[-4:], plan)
    trial.samples_ms = 1e3 * np.frombuffer(samples)
    return trial


def _look(atoms: Atoms, step: int) -> tuple[int, float, float, float]:
    energy, temperature = atoms.get_total_energy(), atoms.get_temperature()
    pressure = np.nan
    results = getattr(atoms.calc, "results", {})
    if "stress" in results and atoms.cell.rank == 3:
        stress = atoms.get_stress(voigt=False, include_ideal_gas=True)
        pressure = -float(np.trace(stress)) / 3 / units.GPa
    return step, float(energy), float(temperature), pressure


def _check(seen: Sequence[float], plan: Plan) -> None:
    step, energy, temperature, _ = seen
    limit = _EXPLOSION_FACTOR * max(plan.temperature_K, 300.0)
    if not (np.isfinite(energy) and temperature < limit):
        raise DynamicsError(
            f"the simulation has blown up near step {step:.0f}",
            expected=f"less than {limit:.0f} K",
            found=f"{temperature:.0f} K",
            remedy="take a shorter time step, or a model that knows such structures",
        )


def run_student(
    start: Sequence[Atoms],
    student: Student,
    plan: Plan,
    memory: MemoryMeter,
    clock: Clock,
    *,
    device: str,
    dtype: Literal["float32", "float64"] = "float32",
    compile: bool = False,
) -> Trial:
    """``run_md``, all of ``start`` at once. A sample is the mean step of one interval of its log.

    A short run comes first: it tells how many steps fill ``least_seconds``, and whether ten
    samples fit into ``most_seconds``; if not, they are of fewer steps.
    """
    sample = max(1, min(STEPS_A_SAMPLE, plan.n_steps // 10))
    pilot = max(1, sample // 10)
    settings: dict[str, Any] = {
        "ensemble": plan.ensemble,
        "temperature_K": plan.temperature_K,
        "pressure_GPa": plan.pressure_GPa,
        "time_step_fs": plan.time_step_fs,
        "compressibility_per_GPa": plan.compressibility_per_GPa,
        "seed": plan.seed,
    }
    frames, trial = [atoms.copy() for atoms in start], Trial()
    n_atoms = sum(len(atoms) for atoms in frames)
    memory.mark(-1)
    marks: list[tuple[int, float, float]] = []

    def note(simulation: Simulation) -> None:
        arrived = clock()
        step = simulation.step
        if step >= warm_up:
            memory.mark(step - warm_up)
        marks.append((step, arrived, clock()))

    def run(n_steps: int, sample: int) -> Any:
        marks.clear()
        return run_md(
            frames,
            student,
            n_steps=n_steps,
            observers=[(sample, note)],
            log_every=sample,
            device=device,
            dtype=dtype,
            compile=compile,
            **settings,
        )

    warm_up = 10**12  # no marks of memory yet
    began = clock()
    run(2 * pilot, pilot)
    trial.first_call_s = marks[0][1] - began
    a_step = max((marks[-1][1] - marks[-2][2]) / pilot, 1e-9)
    if 2 * sample * a_step < _PILOT_SECONDS:  # where graphs of many steps come in
        run(2 * sample, sample)
        a_step = max((marks[-1][1] - marks[-2][2]) / sample, 1e-9)
    fit = max(1.0, plan.most_seconds / a_step)
    sample = trial.steps_a_sample = max(1, int(min(sample, fit / 10)))
    warm_up = sample * max(1, -(-int(min(plan.warm_up, fit)) // sample))
    wanted = max(plan.n_steps, plan.least_seconds / a_step)
    n_steps = sample * max(1, round(min(wanted, fit) / sample))
    result = run(warm_up + n_steps, sample)
    first = warm_up // sample
    trial.warm_up_s, trial.warm_up_steps = marks[first][1] - marks[0][2], warm_up
    intervals = [b[1] - a[2] for a, b in zip(marks[first:-1], marks[first + 1 :], strict=True)]
    trial.samples_ms = 1e3 * np.array(intervals) / sample
    rows = result.log
    for k in range(0, len(rows), len(frames)):
        own = rows[k : k + len(frames)]
        step = int(own[0]["step"]) - warm_up
        if step < 0:
            continue
        pressure = [np.nan if row["pressure_GPa"] is None else row["pressure_GPa"] for row in own]
        energy = float(sum(row["total_energy"] for row in own))
        temperature = float(np.mean([row["temperature_K"] for row in own]))
        trial.seen.extend((step, energy, temperature, float(np.mean(pressure))))
    if not np.isfinite(trial.seen[1::4]).all():
        raise DynamicsError("the simulation gave an energy that is not finite", found=n_atoms)
    return trial
