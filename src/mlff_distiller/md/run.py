"""``run_md``: molecular dynamics on the device, with files that survive whatever ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from pydantic import ValidationError

from mlff_distiller.durable import Lock, explaining
from mlff_distiller.engines.choice import BackendName, choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import ConfigError, DynamicsError, UntrustedError, from_pydantic
from mlff_distiller.md.checkpoint import (
    check_same,
    hash_of_structures,
    hash_of_student,
    read_checkpoint,
    read_header,
    students_of,
    write_checkpoint,
)
from mlff_distiller.md.ensemble import Ensemble, Explosion
from mlff_distiller.md.files import Mark, TrajectoryThread, check_format
from mlff_distiller.md.guard import EVERY, Guard, Mode, guard_of
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.md.thermo_log import OF_TRUST, Row, ThermoLog, rows_of
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
    """Of this run's steps, without start-up."""
    ns_per_day: float
    seed: int
    """What repeats it, given again: drawn, if none was given."""
    log: list[Row] = field(repr=False)
    """Rows of the thermodynamic log that this run wrote."""
    files: dict[str, Path] = field(default_factory=dict)
    """``trajectory``, ``log`` and ``checkpoint`` of an ``out``; ``untrusted`` frames of a guard."""
    trusted: float | None = None
    """Of all the guard's looks at atoms, the fraction at which the estimated force error was below
    the limit; None without a guard."""
    max_forces_error: float | None = None
    """The largest estimate, eV/Å."""


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
        them changes the trajectory.
    guard_every
        Steps between looks.
    guard_limit
        eV/Å, in place of the student's own limit.
    ensemble
        Fields of ``Ensemble``: ``ensemble``, ``temperature_K``, ``pressure_GPa``, ``seed``, ...
        Without a seed each new run draws its own, and a continued one keeps that of its checkpoint.

    Raises
    ------
    UntrustedError
        ``guard="stop"``, and the student does not know what it has met.
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
    every |= {f"observer {k}": interval for k, (interval, _) in enumerate(observers)}
    steps = {name: whole_number(name, value, 1) for name, value in every.items()}
    if not checkpoint_every_s >= 0:
        raise ConfigError(
            "checkpoint_every_s is not a time", expected="0 or more", found=checkpoint_every_s
        )
    settings = _settings(ensemble)
    target = _n_steps(n_steps, time_ps, settings.step_fs(*frames))
    model = ready_student(student, device, dtype)
    mode = guard_of(guard, model)
    with _Files(out, log_format, overwrite, mode, harvest) as files:
        if ensemble.get("seed") is None:
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
        watching: Guard | None = None
        if mode != "off":
            looks = look_every, steps.values(), guard_limit
            kept = files.paths.get("untrusted")
            watching = Guard(mode, simulation, *looks, kept, files.of_guard)
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


def _settings(ensemble: dict[str, Any]) -> Ensemble:
    try:
        return Ensemble(**ensemble)
    except ValidationError as error:
        raise from_pydantic(error, "invalid settings of the simulation") from error


def _n_steps(n_steps: int | None, time_ps: float | None, time_step_fs: float) -> int:
    if (n_steps is None) == (time_ps is None):
        raise ConfigError("how long?", expected="either time_ps or n_steps")
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
        f"{name} is no number of steps", expected=f"a whole number, {least} or more", found=value
    )


class _Files:
    """Trajectory, log and checkpoint of one run, or none of them; nobody else writes them."""

    def __init__(
        self,
        out: str | Path | None,
        log_format: str,
        overwrite: bool,
        guard: Mode,
        harvest: str | Path | None,
    ) -> None:
        self.paths: dict[str, Path] = {}
        self.trajectory: TrajectoryThread | None = None
        self.log: ThermoLog | None = None
        self._overwrite, self._stack = overwrite, ExitStack()
        self._header: dict[str, Any] | None = None
        if log_format not in ("csv", "jsonl"):
            raise ConfigError(
                "unknown format of the log", expected="csv or jsonl", found=log_format
            )
        self._guarded = guard != "off"
        if (guard == "harvest" and out is None) or (guard != "harvest" and harvest is not None):
            raise ConfigError(
                "no frames can be harvested",
                expected="guard=harvest, and a trajectory that names them",
                found=f"guard={guard}, out={out}",
            )
        if out is None:
            return
        path = Path(out)
        check_format(path)
        self.paths = {
            "trajectory": path,
            "log": path.with_suffix(f".log.{log_format}"),
            "checkpoint": path.with_suffix(".checkpoint.safetensors"),
            "untrusted": path.with_suffix(".untrusted.extxyz"),
        }
        if guard == "harvest":
            folder = path.with_suffix(".harvest") if harvest is None else Path(harvest)
            self.paths["untrusted"] = folder / f"{path.stem}.extxyz"

    def __enter__(self) -> _Files:
        if not self.paths:
            return self
        try:
            self._claim(self.paths["checkpoint"], str(self.paths["trajectory"]))
            self._claim(self.paths["untrusted"])
            self._look()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _claim(self, path: Path, what: str = "") -> None:
        with explaining(str(path.parent), DynamicsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._stack.enter_context(Lock(path, what, refused=DynamicsError))

    def _look(self) -> None:
        """See whether there is a run to continue, or files that are not of one."""
        if self._overwrite:
            return
        files = {name: path for name, path in self.paths.items() if path.exists()}
        if "checkpoint" in files:
            self._header = read_header(files["checkpoint"])
            if self._header["files"]["trajectory"] is None:
                self._header = None  # it ended before it had written anything
        elif files:
            raise ConfigError(
                f"{next(iter(files.values()))} exists, without a checkpoint to continue from",
                remedy="choose another name, or overwrite",
            )

    @property
    def continues(self) -> bool:
        """Whether there is a run that goes on here."""
        return self._header is not None

    def seed(self, drawn: int) -> int:
        """The seed of the run that is continued, or ``drawn`` of a new one."""
        return drawn if self._header is None else int(self._header["about"]["seed"])

    @property
    def of_guard(self) -> dict[str, Any] | None:
        """What the checkpoint says of the guard; None if it had none."""
        return None if self._header is None else self._header.get("guard")

    def open(self, simulation: Simulation, frames: Sequence[Atoms], about: dict[str, Any]) -> None:
        """Open them, and bring ``simulation`` to where its checkpoint is, if there is one."""
        if not self.paths:
            return
        marks: dict[str, Mark | None] = {"trajectory": None, "log": None}
        checkpoint = self.paths["checkpoint"]
        if self._header is None:
            with explaining(str(checkpoint.parent), DynamicsError):
                for old in self.paths.values():
                    old.unlink(missing_ok=True)
            # From now on they are this run's, whatever ends it.
            write_checkpoint(checkpoint, simulation.state(), {"about": about, "files": marks})
        else:
            check_same(checkpoint, self._header["about"], about)
            state = read_checkpoint(checkpoint, sum(map(len, frames)), len(frames))
            for name in marks:
                mark = self._header["files"][name]
                marks[name] = Mark(*mark) if isinstance(mark, list) else Mark(int(mark))
                if not self.paths[name].exists():
                    raise DynamicsError(
                        f"{self.paths[name]} is missing, which {checkpoint.name} continues",
                        remedy="put it back, or overwrite to start again",
                    )
            simulation.load(state)
        extra = OF_TRUST if self._guarded else ()
        self.log = ThermoLog(self.paths["log"], marks["log"], extra)
        self._stack.callback(self.log.close)
        self.trajectory = TrajectoryThread(
            self.paths["trajectory"], simulation.templates, marks["trajectory"]
        )
        self._stack.callback(self.trajectory.close)

    def checkpoint(
        self, simulation: Simulation, about: dict[str, Any], guard: Guard | None
    ) -> None:
        """Make all that was written durable, and say so."""
        if self.trajectory is None or self.log is None:
            return
        ends = {"trajectory": self.trajectory.mark(), "log": self.log.mark()}
        of_guard = self.of_guard if guard is None else guard.state()
        students = students_of(self._header or {"about": about})
        content = {"about": about, "files": ends, "guard": of_guard, "students": students}
        write_checkpoint(self.paths["checkpoint"], simulation.state(), content)

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class _Run:
    """The loop: steps up to the next thing to do, and that thing."""

    def __init__(
        self,
        simulation: Simulation,
        files: _Files,
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
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.n_steps = 0

    def until(self, target: int, checkpoint_every_s: float, interrupted: list[int]) -> None:
        simulation = self.simulation
        step, saved = simulation.step, time.monotonic()
        if not self.files.continues:
            self._observe(step)
            self._checkpoint()
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
        if step % self._log_every == 0:
            rows = rows_of(step, self.simulation.time_ps, self.simulation.observables())
            if self._guard is not None:
                seen = self._guard.watch.row()
                rows = [row | own for row, own in zip(rows, seen, strict=True)]
            self.rows += rows
            if self.files.log is not None:
                self.files.log.write(rows)
        if step % self._frames_every == 0 and self.files.trajectory is not None:
            self.files.trajectory.append(self.simulation.snapshot())
        self._observed = step

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
