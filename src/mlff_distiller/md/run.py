"""``run_md``: molecular dynamics on the device, with files that survive whatever ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ase import Atoms
from pydantic import ValidationError

from mlff_distiller.engines.choice import BackendName, choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import ConfigError, DynamicsError, from_pydantic
from mlff_distiller.md.checkpoint import (
    check_same,
    hash_of_structures,
    hash_of_student,
    read_checkpoint,
    write_checkpoint,
)
from mlff_distiller.md.ensemble import Ensemble
from mlff_distiller.md.files import TrajectoryThread, check_format
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.md.thermo_log import Row, ThermoLog, rows_of
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
    """Of this run's steps, without start-up."""
    ns_per_day: float
    log: list[Row] = field(repr=False)
    """Rows of the thermodynamic log that this run wrote."""
    files: dict[str, Path] = field(default_factory=dict)
    """``trajectory``, ``log`` and ``checkpoint``, if there was an ``out``."""


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
    on_progress: Progress | None = None,
    **ensemble: Any,
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
        not compiled; a longer time extends the run.
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
    ensemble
        Fields of ``Ensemble``: ``ensemble``, ``temperature_K``, ``pressure_GPa``, ``seed``, ...

    Raises
    ------
    DynamicsError
        The simulation has blown up (its last good frame is in the trajectory), a constraint is not
        supported, or a file cannot be written.
    ConfigError
        A setting is wrong, or ``out`` belongs to another simulation.
    """
    frames = [structures] if isinstance(structures, Atoms) else list(structures)
    if not frames:
        raise DynamicsError("there is no structure", expected="at least one")
    try:
        settings = Ensemble(**ensemble)
    except ValidationError as error:
        raise from_pydantic(error, "invalid settings of the simulation") from error
    every = {"frames_every": frames_every, "log_every": log_every}
    every |= {f"observer {k}": interval for k, (interval, _) in enumerate(observers)}
    for name, value in every.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1 step", found=value)
    model = ready_student(student, device, dtype)
    files = _Files(out, log_format, overwrite)
    about = {
        "student_sha256": hash_of_student(model),
        "structures_sha256": hash_of_structures(frames),
        "dtype": dtype,
        **asdict(settings),
    }
    target = _n_steps(n_steps, time_ps, settings.step_fs(*frames))
    engine = choose_engine(
        model,
        frames,
        backend=backend,
        skin=settings.skin_A,
        compile=bool(compile),
        n_steps=target if compile is None else 0,
    )
    simulation = Simulation(engine, frames, settings)
    files.open(simulation, frames, about)
    run = _Run(simulation, files, about, frames_every, log_every, observers, on_progress)
    with _interruptions() as interrupted:
        try:
            run.until(target, checkpoint_every_s, interrupted)
        finally:
            files.close()
    if interrupted:
        _end_by(interrupted[0])
    seconds = run.seconds
    simulated_ns = 1e-6 * simulation.time_step_fs * run.n_steps
    rate = 86400.0 * simulated_ns / seconds if seconds > 0 else 0.0
    return MDResult(simulation.frames(), simulation.step, seconds, rate, run.rows, files.paths)


def _n_steps(n_steps: int | None, time_ps: float | None, time_step_fs: float) -> int:
    if (n_steps is None) == (time_ps is None):
        raise ConfigError("how long?", expected="either time_ps or n_steps")
    if time_ps is not None:
        n_steps = round(1e3 * time_ps / time_step_fs)
    if n_steps is None or n_steps < 0:
        raise ConfigError("the duration is negative", found=time_ps if n_steps is None else n_steps)
    return n_steps


class _Files:
    """Trajectory, log and checkpoint of one run, or none of them."""

    def __init__(self, out: str | Path | None, log_format: str, overwrite: bool) -> None:
        self.paths: dict[str, Path] = {}
        self.trajectory: TrajectoryThread | None = None
        self.log: ThermoLog | None = None
        if out is None:
            return
        path = Path(out)
        check_format(path)
        self.paths = {
            "trajectory": path,
            "log": path.with_suffix(f".log.{log_format}"),
            "checkpoint": path.with_suffix(".checkpoint.safetensors"),
        }
        if overwrite:
            for old in self.paths.values():
                old.unlink(missing_ok=True)
        elif path.exists() and not self.paths["checkpoint"].exists():
            raise ConfigError(
                f"{path} exists, without a checkpoint to continue from",
                remedy="choose another name, or overwrite",
            )

    def open(self, simulation: Simulation, frames: Sequence[Atoms], about: dict[str, Any]) -> None:
        """Open them, and bring ``simulation`` to where its checkpoint is, if there is one."""
        if not self.paths:
            return
        marks: dict[str, int | None] = {"trajectory": None, "log": None}
        checkpoint = self.paths["checkpoint"]
        if checkpoint.exists():
            state, header = read_checkpoint(checkpoint, sum(map(len, frames)), len(frames))
            check_same(checkpoint, header["about"], about)
            for name in marks:
                marks[name] = int(header["files"][name])
                if not self.paths[name].exists():
                    raise DynamicsError(
                        f"{self.paths[name]} is missing, which {checkpoint.name} continues",
                        remedy="put it back, or overwrite to start anew",
                    )
            simulation.load(state)
        self.paths["trajectory"].parent.mkdir(parents=True, exist_ok=True)
        templates = simulation.templates
        trajectory = self.paths["trajectory"]
        self.trajectory = TrajectoryThread(trajectory, templates, marks["trajectory"])
        self.log = ThermoLog(self.paths["log"], marks["log"])

    def checkpoint(self, simulation: Simulation, about: dict[str, Any]) -> None:
        """Make all that was written durable, and say so."""
        if self.trajectory is None or self.log is None:
            return
        ends = {"trajectory": self.trajectory.mark(), "log": self.log.mark()}
        content = {"about": about, "files": ends}
        write_checkpoint(self.paths["checkpoint"], simulation.state(), content)

    def close(self) -> None:
        if self.trajectory is not None:
            self.trajectory.close()
        if self.log is not None:
            self.log.close()


class _Run:
    """The loop: steps up to the next thing to do, and that thing."""

    def __init__(
        self,
        simulation: Simulation,
        files: _Files,
        about: dict[str, Any],
        frames_every: int,
        log_every: int,
        observers: Sequence[tuple[int, Observer]],
        on_progress: Progress | None,
    ) -> None:
        self.simulation, self.files, self._about = simulation, files, about
        self._frames_every, self._log_every, self._observers = frames_every, log_every, observers
        self._on_progress = on_progress
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.n_steps = 0

    def until(self, target: int, checkpoint_every_s: float, interrupted: list[int]) -> None:
        simulation = self.simulation
        step, saved = simulation.step, time.monotonic()
        if step == 0:
            self._observe(0)
            self.files.checkpoint(simulation, self._about)
        self._report(step, target)
        try:
            while step < target and not interrupted:
                stop = self._next(step, target)
                began = time.perf_counter()
                simulation.advance(stop - step)
                self.seconds += time.perf_counter() - began
                self.n_steps += stop - step
                step = stop
                self._observe(step)
                self._report(step, target)
                if time.monotonic() - saved >= checkpoint_every_s:
                    self.files.checkpoint(simulation, self._about)
                    saved = time.monotonic()
        except DynamicsError:
            self.files.checkpoint(simulation, self._about)
            if self.files.trajectory is not None and simulation.step % self._frames_every:
                self.files.trajectory.append(simulation.snapshot())
            raise
        except Exception:
            self.files.checkpoint(simulation, self._about)
            raise
        self.files.checkpoint(simulation, self._about)

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
        if step % self._log_every == 0:
            rows = rows_of(step, self.simulation.time_ps, self.simulation.observables())
            self.rows += rows
            if self.files.log is not None:
                self.files.log.write(rows)
        if step % self._frames_every == 0 and self.files.trajectory is not None:
            self.files.trajectory.append(self.simulation.snapshot())

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
