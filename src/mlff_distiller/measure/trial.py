"""One trajectory, timed step by step, as a user runs it: through ASE, or by ``run_md``."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from mlff_distiller.errors import DynamicsError
from mlff_distiller.md import Ensemble, Simulation, run_md
from mlff_distiller.md.ase import AseSimulation
from mlff_distiller.measure.meters import MemoryMeter
from mlff_distiller.students import Student

Array = NDArray[np.float64]
Clock = Callable[[], float]
EnsembleName = Literal["nve", "nvt", "npt"]

LOOK_EVERY = 10
"""Steps between two looks at energy and memory; the clock stands meanwhile."""
STEPS_PER_SAMPLE = 100
"""Steps per sample of ``run_md``, which rarely returns to the host; its log's interval too."""
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

    @property
    def settings(self) -> Ensemble:
        """What the dynamics is to do, the same for both engines."""
        return Ensemble(
            ensemble=self.ensemble,
            temperature_K=(self.temperature_K,),
            pressure_GPa=(self.pressure_GPa,),
            time_step_fs=self.time_step_fs,
            compressibility_per_GPa=self.compressibility_per_GPa,
            seed=self.seed,
        )

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


def run_ase(
    start: Atoms, calculator: BaseCalculator, plan: Plan, memory: MemoryMeter, clock: Clock
) -> Trial:
    """ASE's dynamics. A sample is one step: what its ``irun`` takes from one step to the next."""
    trial, run = Trial(), AseSimulation(start.copy(), calculator, plan.settings)
    memory.mark(-1)
    began = clock()
    run.atoms.get_forces()
    trial.first_call_s = clock() - began
    steps = run.dynamics.irun(10**9)
    next(steps)  # before the first step
    began = clock()
    while trial.warm_up_steps < plan.warm_up and trial.warm_up_s < plan.most_seconds:
        next(steps)
        trial.warm_up_steps += 1
        trial.warm_up_s = clock() - began
    samples = array("d")  # not objects: memory that grows is what is looked for
    seconds, done = 0.0, 0
    memory.mark(0)
    trial.seen.extend(_look(run, 0))
    while not plan.is_done(done, seconds):
        began = clock()
        next(steps)
        samples.append(clock() - began)
        seconds += samples[-1]
        done += 1
        if done % LOOK_EVERY == 0:
            memory.mark(done)
            trial.seen.extend(_look(run, done))
            run.check()
    trial.samples_ms = 1e3 * np.frombuffer(samples)
    return _finite(trial)


def _look(run: AseSimulation, step: int) -> tuple[float, ...]:
    seen = run.observables()
    total = seen.potential_energy + seen.kinetic_energy
    return (step, *(float(one[0]) for one in (total, seen.temperature_K, seen.pressure_GPa)))


def _finite(trial: Trial) -> Trial:
    if not np.isfinite(trial.seen[1::4]).all():
        raise DynamicsError("the simulation gave an energy that is not finite")
    return trial


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
    sample = max(1, min(STEPS_PER_SAMPLE, plan.n_steps // 10))
    pilot = max(1, sample // 10)
    frames, trial, settings = [atoms.copy() for atoms in start], Trial(), asdict(plan.settings)
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
            guard="off",
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
    return _finite(trial)
