"""``run_md``: molecular dynamics on the device, with files that survive whatever ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from pydantic import ValidationError

from mlff_distiller.engines.choice import BackendName, choose_engine
from mlff_distiller.engines.guarding import EVERY
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import ConfigError, DynamicsError, UntrustedError, from_pydantic
from mlff_distiller.md.checkpoint import hash_of_structures, hash_of_student
from mlff_distiller.md.ensemble import Ensemble, Explosion
from mlff_distiller.md.guard import Guard, Mode, guard_of
from mlff_distiller.md.output import Files
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.md.takeover import Takeover
from mlff_distiller.md.thermo_log import Row, rows_of
from mlff_distiller.structure import warn_of_what_is_ignored
from mlff_distiller.students import Student

Progress = Callable[[str, int, int, str], None]
Observer = Callable[[Simulation], None]


@dataclass(frozen=True)
class MDResult:
    """What ``run_md`` leaves behind."""

    atoms: list[Atoms]
    """The last frame of each system, with momenta and results."""
    n_steps: int
    """In all, of this run and those that it continued."""
    seconds: float
    """Wall time of this run's steps, without start-up."""
    ns_per_day: float
    seed: int
    """What repeats it, given again: drawn, if none was given."""
    log: list[Row] = field(repr=False)
    """Rows of the thermodynamic log that this run wrote."""
    files: dict[str, Path] = field(default_factory=dict)
    """``trajectory``, ``log`` and ``checkpoint`` of an ``out``; ``untrusted`` frames of a guard."""
    trusted: float | None = None
    """The fraction of all the guard's looks at atoms at which the estimated force error was below
    the limit; None without a guard."""
    max_forces_error: float | None = None
    """The largest estimate, eV/Å."""
    teacher_steps: tuple[tuple[int, int], ...] = ()
    """First and last of steps in a row that the teacher made, of ``guard="teacher"``."""


def run_md(
    structures: Atoms | Sequence[Atoms],
    student: str | Path | Student,
    *,
    time_ps: float | None = None,
    n_steps: int | None = None,
    out: str | Path | None = None,
    frames_every: int = 1000,
    log_every: int = 100,
    log_format: Literal["csv", "jsonl"] = "csv",
    checkpoint_every_s: float = 60.0,
    observers: Sequence[tuple[int, Observer]] = (),
    overwrite: bool = False,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    backend: BackendName = "auto",
    compile: bool | None = None,
    guard: Mode | None = None,
    guard_every: int = EVERY,
    guard_limit: float | None = None,
    harvest: str | Path | None = None,
    teacher: BaseCalculator | None = None,
    teacher_steps: int = 100,
    on_progress: Progress | None = None,
    ensemble: Literal["nve", "nvt", "npt"] = "nve",
    temperature_K: float | Sequence[float] = 300.0,
    pressure_GPa: float | Sequence[float] = 0.0,
    time_step_fs: float | None = None,
    thermostat: Literal["langevin", "bussi"] = "langevin",
    friction_per_ps: float = 1.0,
    thermostat_time_fs: float = 100.0,
    pressure_coupling: Literal["isotropic", "anisotropic", "triclinic"] = "isotropic",
    barostat_time_fs: float = 1000.0,
    compressibility_per_GPa: float = 0.01,
    max_temperature_K: float | None = None,
    max_step_A: float = 0.5,
    skin_A: float | None = None,
    seed: int | None = None,
) -> MDResult:
    """Run molecular dynamics of one or several systems, all of them at once.

    Parameters
    ----------
    structures
        Where they begin; see ``Simulation`` for momenta and constraints.
    student
        Folder, ``nep.txt`` or ``Student``.
    time_ps, n_steps
        How long, counted from the very beginning; one of the two.
    out
        The trajectory: ``.extxyz``, ``.traj`` or ``.h5``. Beside it are written
        ``NAME.log.csv`` and ``NAME.checkpoint.safetensors``. The same call again continues from
        the checkpoint, on a CPU bit for bit as if it had not been interrupted, if the student is
        not compiled; a longer time extends the run. No two calls write the same files at a time.
    frames_every, log_every
        In steps.
    checkpoint_every_s
        Seconds between checkpoints. There is one at the end, after ctrl-C, SIGTERM and errors too.
    observers
        Pairs (k, function): called with the ``Simulation`` every k steps, and may change it.
    compile
        Whether a student without kernels of ours is compiled first, which takes most of a minute
        and makes steps some three times as fast; None: where it pays, on a GPU from 10,000 steps
        on, on a CPU from 300,000 steps times atoms on.
    guard
        What to do where the student, by its own estimate, does not know an atom's environment:
        ``warn`` once for each system and keep some frames in ``NAME.untrusted.extxyz``, which is
        the default of a student that can tell; ``stop`` at the last state before; ``harvest``
        frames to label, in the folder ``harvest``, by default ``NAME.harvest``; or ``off``. None of
        these changes the trajectory. ``teacher`` goes back to the last state that was trusted,
        from which ``teacher`` makes steps in ASE's loop, ``teacher_steps`` or as many times more,
        until one is trusted again; of one system.
    guard_every
        Steps between looks.
    guard_limit
        eV/Å, in place of the student's own limit.
    ensemble, temperature_K, pressure_GPa, ..., seed
        See ``Ensemble``. Temperature and pressure are those of all systems, or one for each.
        Without a seed each new run draws its own, and a continued one keeps that of its checkpoint.

    Raises
    ------
    UntrustedError
        ``guard="stop"``, and the student does not know what it has met. The checkpoint is that of
        the last state that was trusted, which is also the trajectory's last frame.
    DynamicsError
        The simulation has blown up (its last good frame is in the trajectory), a constraint is not
        supported, or a file cannot be written, or is not as the checkpoint left it.
    ConfigError
        A setting is wrong, ``out`` belongs to another simulation, or another process writes it.
    """
    frames = [structures] if isinstance(structures, Atoms) else list(structures)
    if not frames:
        raise DynamicsError("there is no structure", expected="at least one")
    every = {"frames_every": frames_every, "log_every": log_every}
    look_every = whole_number("guard_every", guard_every, 1)
    teacher_steps = whole_number("teacher_steps", teacher_steps, 1)
    every |= {f"observer {k}": interval for k, (interval, _) in enumerate(observers)}
    steps = {name: whole_number(name, value, 1) for name, value in every.items()}
    if not checkpoint_every_s >= 0:
        raise ConfigError(
            "checkpoint_every_s is not a time", expected="0 or more", found=checkpoint_every_s
        )
    settings = _settings(
        ensemble=ensemble,
        temperature_K=temperature_K,
        pressure_GPa=pressure_GPa,
        time_step_fs=time_step_fs,
        thermostat=thermostat,
        friction_per_ps=friction_per_ps,
        thermostat_time_fs=thermostat_time_fs,
        pressure_coupling=pressure_coupling,
        barostat_time_fs=barostat_time_fs,
        compressibility_per_GPa=compressibility_per_GPa,
        max_temperature_K=max_temperature_K,
        max_step_A=max_step_A,
        skin_A=skin_A,
        seed=seed,
    )
    target = _n_steps(n_steps, time_ps, settings.step_fs(*frames))
    model = ready_student(student, device, dtype)
    mode = guard_of(guard, model, teacher)
    with Files(out, log_format, overwrite, mode, harvest) as files:
        if seed is None:
            settings = replace(settings, seed=files.seed(settings.seed))
        about = {
            "student_sha256": hash_of_student(model),
            "structures_sha256": hash_of_structures(frames),
            "dtype": dtype,
            **asdict(settings),
        }
        engine = choose_engine(
            model,
            frames,
            backend=backend,
            skin=settings.skin_A,
            compile=bool(compile),
            n_steps=target if compile is None else 0,
        )
        simulation = Simulation(engine, frames, settings)
        warn_of_what_is_ignored(frames)
        files.open(simulation, frames, about)
        if teacher is not None:
            Takeover(simulation, teacher)  # refuses what it cannot do before a step is made
        watching: Guard | None = None
        if mode != "off":
            looks = look_every, steps.values(), guard_limit
            kept = files.paths.get("untrusted")
            watching = Guard(mode, simulation, *looks, kept, files.of_guard, teacher, teacher_steps)
        run = _Run(simulation, files, about, steps, observers, on_progress, watching)
        with _interruptions() as interrupted:
            run.until(target, checkpoint_every_s, interrupted)
    if interrupted:
        _end_by(interrupted[0])
    seconds = run.seconds
    simulated_ns = 1e-6 * simulation.time_step_fs * run.n_steps
    rate = 86400.0 * simulated_ns / seconds if seconds > 0 else 0.0
    return MDResult(
        simulation.frames(),
        simulation.step,
        seconds,
        rate,
        settings.seed,
        run.rows,
        {name: path for name, path in files.paths.items() if path.exists()},
        **({} if watching is None else watching.summary()),
    )


def _settings(**ensemble: Any) -> Ensemble:
    try:
        return Ensemble(**ensemble)
    except ValidationError as error:
        raise from_pydantic(error, "invalid settings of the simulation") from error


def _n_steps(n_steps: int | None, time_ps: float | None, time_step_fs: float) -> int:
    if (n_steps is None) == (time_ps is None):
        raise ConfigError(
            "the length of the run is not given", expected="either time_ps or n_steps"
        )
    if n_steps is not None:
        return whole_number("n_steps", n_steps, 0)
    if not isinstance(time_ps, int | float | np.number) or not 0 <= time_ps < np.inf:
        raise ConfigError("time_ps is not a duration", expected="0 or more, in ps", found=time_ps)
    return round(1e3 * float(time_ps) / time_step_fs)


def whole_number(name: str, value: object, least: int) -> int:
    """``value`` as an integer; ``ConfigError`` if it is none, or below ``least``."""
    if isinstance(value, int | float | np.number) and value >= least and float(value).is_integer():
        return int(value)
    raise ConfigError(
        f"{name} is not a number of steps", expected=f"a whole number, {least} or more", found=value
    )


class _Run:
    """The loop: steps up to the next thing to do, and that thing."""

    def __init__(
        self,
        simulation: Simulation,
        files: Files,
        about: dict[str, Any],
        steps: dict[str, int],  # of frames, of rows, of each observer
        observers: Sequence[tuple[int, Observer]],
        on_progress: Progress | None,
        guard: Guard | None,
    ) -> None:
        self.simulation, self.files, self._about = simulation, files, about
        self._guard = guard
        self._frames_every, self._log_every, *intervals = steps.values()
        called = (observer for _, observer in observers)
        self._observers = list(zip(intervals, called, strict=True))
        self._on_progress = on_progress
        self._observed = simulation.step
        self._is_trusted = True
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.n_steps = 0

    def until(self, target: int, checkpoint_every_s: float, interrupted: list[int]) -> None:
        simulation = self.simulation
        step, saved = simulation.step, time.monotonic()
        if self._guard is not None:
            self._is_trusted = self._guard.begin(continues=self.files.of_guard is not None)
        if not self.files.continues:
            self._observe(step)
            self._checkpoint()
        self._report(step, target)
        try:
            while step < target and not interrupted:
                began = time.perf_counter()
                before, step = step, self._advance(step, target, interrupted)
                self.seconds += time.perf_counter() - began
                self.n_steps += step - before
                self._report(step, target)
                if time.monotonic() - saved >= checkpoint_every_s:
                    self._checkpoint()
                    saved = time.monotonic()
        except (Explosion, UntrustedError):
            self._checkpoint()
            if self.files.trajectory is not None and simulation.step % self._frames_every:
                self.files.trajectory.append(simulation.snapshot())
            raise
        except Exception:
            if simulation.step == self._observed:  # else its row and frame would be missing
                self._checkpoint()
            raise
        self._checkpoint()

    def _advance(self, step: int, target: int, interrupted: list[int]) -> int:
        stop = self._next(step, target)
        try:
            if self._is_trusted:
                self.simulation.advance(stop - step)
                self._observe(stop)
                return stop
        except UntrustedError:
            if self._guard is None or self._guard.teacher is None:
                raise
        return self._by_teacher(target, interrupted)

    def _by_teacher(self, target: int, interrupted: list[int]) -> int:
        """From the last trusted state until one that is trusted again; observers see none of it."""
        guard, simulation = self._guard, self.simulation
        if guard is None or guard.teacher is None:
            raise ValueError("there is no teacher")
        step = first = simulation.step
        self._is_trusted, self._observed = False, -1
        while step < target and not interrupted and not self._is_trusted:
            takeover = Takeover(simulation, guard.teacher)
            n_steps = min(guard.teacher_steps, target - step)
            for now in takeover.steps(n_steps, lambda: bool(interrupted)):
                guard.by_teacher(first, now)
                self._write(now, takeover)
            step, self._is_trusted = takeover.step, guard.begin(continues=True)
        self._observed = step
        return step

    def _checkpoint(self) -> None:
        self.files.checkpoint(self.simulation, self._about, self._guard)

    def _next(self, step: int, target: int) -> int:
        intervals = [self._frames_every, self._log_every, *(every for every, _ in self._observers)]
        stop = min(target, *((step // every + 1) * every for every in intervals))
        # An interruption is answered within a second or so.
        seconds = self.simulation.seconds_a_step
        return min(stop, step + max(1, int(1.0 / seconds))) if seconds > 0 else stop

    def _observe(self, step: int) -> None:
        for every, observer in self._observers:
            if step % every == 0:
                observer(self.simulation)
        self._write(step, self.simulation)
        self._observed = step

    def _write(self, step: int, source: Simulation | Takeover) -> None:
        """A row and a frame, where they are due."""
        if step % self._log_every == 0:
            rows = rows_of(step, source.time_ps, source.observables())
            if self._guard is not None:
                seen = self._guard.row(step - self._log_every, step)
                rows = [row | own for row, own in zip(rows, seen, strict=True)]
            self.rows += rows
            if self.files.log is not None:
                self.files.log.write(rows)
        if step % self._frames_every == 0 and self.files.trajectory is not None:
            self.files.trajectory.append(source.snapshot())

    def _report(self, step: int, target: int) -> None:
        if self._on_progress is None:
            return
        news = ""
        if self.seconds > 0:
            rate = 0.0864 * self.simulation.time_step_fs * self.n_steps / self.seconds
            news = f"{rate:.3g} ns/day"
        if self.rows:
            news += f"  {self.rows[-1]['temperature_K'] or 0.0:.0f} K"
        self._on_progress("md", step, target, news)


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Signals met: the first SIGINT or SIGTERM waits for a good moment, the second does not."""
    met: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield met
        return

    def note(number: int, frame: object) -> None:
        if met:
            _end_by(number)
        met.append(number)

    # A job in the background of a shell ignores ctrl-C, which is meant for others.
    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield met
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_by(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
