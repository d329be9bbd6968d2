"""``profile``: where a step of molecular dynamics goes, on a real trajectory."""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import ConfigError
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.measure.benchmark import named_systems, start_of
from mlff_distiller.measure.contenders import Contender, Model, contender, distinct
from mlff_distiller.measure.findings import findings
from mlff_distiller.measure.machine import describe
from mlff_distiller.measure.phases import (
    PHASES,
    InProcessTeacher,
    Phases,
    follow_ase,
    follow_forces,
    follow_simulation,
)
from mlff_distiller.measure.systems import System
from mlff_distiller.measure.trace import STEP, analyse
from mlff_distiller.measure.trial import (
    STEPS_A_SAMPLE,
    Clock,
    EnsembleName,
    Plan,
    ase_dynamics,
)
from mlff_distiller.structure import default_time_step_fs

SCHEMA = 1
KEPT = 0.5
"""Share of the blocks of steps that count, the quickest: others compute on this machine too."""
_BLOCKS = 20
_LEAST_TRACED = 32
"""Steps of ``run_md`` on a GPU, so that its graphs of many steps are seen."""

Progress = Callable[[str, int, int, str], None]
Steps = Callable[[int], None]


@dataclass(frozen=True)
class ProfileSettings:
    """``n_steps`` are timed plainly and as many by phases, in turns; ``traced`` then in detail."""

    n_steps: int = 200
    warm_up: int = 30
    traced: int = 10
    ensemble: EnsembleName = "nve"
    temperature_K: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_steps, self.warm_up, self.traced) < 1:
            raise ConfigError("a profile needs steps", expected="at least 1 of each kind")


@dataclass
class Profile:
    """What was found; ``content`` is the JSON."""

    content: dict[str, Any]

    @property
    def cases(self) -> list[dict[str, Any]]:
        return self.content["cases"]  # type: ignore[no-any-return]


def profile(
    models: Iterable[Model | Contender] | Mapping[str, Model],
    systems: Iterable[str | Path | Atoms] = ("silicon:64",),
    *,
    engines: Sequence[Literal["ase", "run_md"]] = ("ase", "run_md"),
    settings: ProfileSettings | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    out: str | Path | None = None,
    clock: Clock = time.perf_counter,
    on_progress: Progress | None = None,
) -> Profile:
    """Profile every model on every system, by every engine that can run it.

    A teacher is loaded into this process, last of all, for its library may change global state.

    Parameters
    ----------
    out
        Folder for Chrome traces, ``trace-CASE.json.gz``: open them in Perfetto or chrome://tracing.

    Raises
    ------
    ConfigError
        There are several teachers, which spoil each other in one process.
    """
    settings = settings or ProfileSettings()
    named = models.items() if isinstance(models, Mapping) else [(None, m) for m in models]
    contenders = distinct(
        model
        if isinstance(model, Contender)
        else contender(model, name, device=device, dtype=dtype)
        for name, model in named
    )
    contenders.sort(key=lambda one: one.kind == "teacher")
    if sum(one.kind == "teacher" for one in contenders) > 1:
        raise ConfigError(
            "one teacher at a time: in one process they spoil each other",
            found=", ".join(one.name for one in contenders if one.kind == "teacher"),
        )
    cases = [
        (one, system, engine)
        for one in contenders
        for system in named_systems(systems)
        for engine in engines
        if engine == "ase" or one.student is not None
    ]
    if not cases:
        raise ConfigError("nothing to profile", expected="a model; run_md runs students only")
    where = contenders[0].device
    content: dict[str, Any] = {"schema": SCHEMA, "kind": "md-profile", "about": describe(where)}
    content |= {"settings": asdict(settings), "cases": []}
    teachers: dict[str, tuple[InProcessTeacher, Phases]] = {}
    try:
        for number, (one, system, engine) in enumerate(cases):
            label = f"{one.name} {engine} {system.name}"
            if on_progress is not None:
                on_progress("profile", number, len(cases), label)
            run = _Run(one, system, engine, settings, dtype, clock, teachers)
            path = None if out is None else Path(out) / f"trace-{_file_name(label)}.json.gz"
            content["cases"].append(run.measure(path))
    finally:
        for _, phases in teachers.values():
            phases.close()
    if on_progress is not None:
        on_progress("profile", len(cases), len(cases), "")
    return Profile(content)


class _Run:
    """One model on one system by one engine: set up, timed, timed by phases, traced."""

    def __init__(
        self,
        one: Contender,
        system: System,
        engine: str,
        settings: ProfileSettings,
        dtype: Literal["float32", "float64"],
        clock: Clock,
        teachers: dict[str, tuple[InProcessTeacher, Phases]],
    ) -> None:
        self.one, self.system, self.engine, self.settings = one, system, engine, settings
        self.clock, self.dtype = clock, dtype
        self.block = max(1, settings.n_steps // _BLOCKS)
        self.phases = Phases(one.device, clock)
        self.notes: list[str] = []
        self._teachers = teachers
        self.rebuilds: Callable[[], int] = lambda: 0

    def measure(self, path: Path | None) -> dict[str, Any]:
        steps = self._by_ase() if self.engine == "ase" else self._by_run_md()
        try:
            self.phases.calibrate()
            found = self._timed(steps)
            found["trace"], traced_ms = self._traced(steps, path)
        finally:
            self.phases.release()
        found["overhead"]["tracing_percent"] = 100 * (traced_ms / found["step_ms"] - 1)
        if found["trace"]["gpu"] is None and self.one.device.startswith("cuda"):
            self.notes.append("PyTorch's profiler saw nothing on the GPU")
        if not found["trace"]["operators"]:
            self.notes.append("compiled CPU kernels are no operators of PyTorch: no table of them")
        case = {
            "model": self.one.name,
            "kind": self.one.kind,
            "engine": self.engine,
            "system": self.system.name,
            "n_atoms": len(self.system.atoms),
            "ensemble": self.settings.ensemble,
            "device": self.one.device,
            **found,
            "notes": self.notes,
            "trace_file": None if path is None else path.name,
        }
        return case | {"findings": [asdict(one) for one in findings(case)]}

    # -- the trajectory ------------------------------------------------------------------------

    def _plan(self) -> Plan:
        time_step = default_time_step_fs(self.system.atoms)
        return Plan(self.settings.ensemble, time_step, self.settings.temperature_K)

    def _by_ase(self) -> Steps:
        atoms = start_of(self.system, self.settings.temperature_K, self.settings.seed)
        if self.one.kind == "teacher":
            atoms.calc = self._teacher()
        else:
            atoms.calc = self.one.calculator()
        atoms.get_forces()
        dynamics = ase_dynamics(atoms, self._plan())
        iterator = dynamics.irun(10**9)
        for _ in range(self.settings.warm_up + 1):
            next(iterator)
        follow_ase(self.phases, dynamics, atoms)

        def steps(n: int) -> None:
            for _ in range(n):
                next(iterator)

        return steps

    def _teacher(self) -> InProcessTeacher:
        """The library lives on from one system to the next; its wrapped functions do too."""
        if self.one.name not in self._teachers:
            spec = self.one.spec
            teacher = InProcessTeacher(spec, self.one.device, self.phases)
            self._teachers[self.one.name] = teacher, self.phases
        teacher, phases = self._teachers[self.one.name]
        phases.reset()
        self.phases = phases
        if not teacher.tells_neighbors:
            self.notes.append("its search for neighbours cannot be told from the model")
        return teacher

    def _by_run_md(self) -> Steps:
        if self.one.student is None:
            raise ConfigError(f"run_md cannot run {self.one.name}")
        atoms = start_of(self.system, self.settings.temperature_K, self.settings.seed)
        student = ready_student(self.one.student, self.one.device, self.dtype)
        engine = choose_engine(student, [atoms])
        follow_forces(self.phases, engine)
        ensemble = Ensemble(
            ensemble=self.settings.ensemble,
            temperature_K=self.settings.temperature_K,  # type: ignore[arg-type]
            seed=self.settings.seed,
        )
        simulation = Simulation(engine, [atoms], ensemble)
        simulation.advance(self.settings.warm_up)
        follow_simulation(self.phases, simulation)
        self.block = max(self.block, min(STEPS_A_SAMPLE, self.settings.n_steps // 8))
        self.rebuilds = lambda: simulation.n_rebuilds

        def steps(n: int) -> None:
            simulation.advance(n)
            simulation.observables()

        return steps

    # -- the clock -------------------------------------------------------------------------------

    def _timed(self, steps: Steps) -> dict[str, Any]:
        """Plain blocks and blocks by phases in turns; the slower half of each is left out."""
        phases, block = self.phases, self.block
        n_blocks = max(4, -(-self.settings.n_steps // block))
        plain, phased, parts = np.zeros(n_blocks), np.zeros(n_blocks), []
        entered: set[str] = set()
        before = self.rebuilds()
        for k in range(n_blocks):
            began = self.clock()
            steps(block)
            plain[k] = self.clock() - began
            phases.reset()
            began = self.clock()
            with phases.running():
                steps(block)
            phased[k] = self.clock() - began
            parts.append(phases.corrected())
            entered |= {name for name, seconds in phases.seconds.items() if seconds > 0}
        keep = max(1, round(KEPT * n_blocks))
        a_step = 1e3 / (keep * block)
        quick = np.argsort(phased)[:keep]
        step_ms = a_step * float(np.sort(plain)[:keep].sum())
        phased_ms = a_step * float(phased[quick].sum())
        spent = {name: a_step * sum(parts[k][name] for k in quick) for name in PHASES}
        total = sum(spent.values())
        n_steps = 2 * n_blocks * block
        found = self.rebuilds() - before
        return {
            "n_steps": n_blocks * block,
            "step_ms": step_ms,
            "sum_ms": total,
            "difference_percent": 100 * (total / step_ms - 1),
            "phases": [
                {"name": name, "ms": ms, "percent": 100 * ms / total}
                for name, ms in spent.items()
                if name in entered  # also those that cost less than counting them
            ],
            "steps_a_rebuild": n_steps / found if found else None,
            "overhead": {"phases_percent": 100 * (phased_ms / step_ms - 1)},
        }

    def _traced(self, steps: Steps, path: Path | None) -> tuple[dict[str, Any], float]:
        """Under PyTorch's profiler, phases named; and what a step takes there."""
        activities = [ProfilerActivity.CPU]
        if self.one.device.startswith("cuda"):
            activities.append(ProfilerActivity.CUDA)
        n = self.settings.traced
        # run_md records many steps into a graph: one range holds them all.
        ranges, size = (
            (n, 1)
            if self.engine == "ase"
            else (1, n if self.one.device == "cpu" else max(n, _LEAST_TRACED))
        )
        n = ranges * size
        self.phases.mark = True
        with torch_profile(activities=activities, profile_memory=True) as profiler:
            steps(1)  # the profiler's own beginning
            self._wait()
            began = self.clock()
            with self.phases.running():
                for _ in range(ranges):
                    with record_function(STEP):
                        steps(size)
                        self._wait()
            seconds = self.clock() - began
        self.phases.mark = False
        with _file(path) as file:
            profiler.export_chrome_trace(str(file))
            with gzip.open(file, "rt", encoding="utf-8", errors="replace") as stream:
                events = json.load(stream)["traceEvents"]
        return analyse(events, n), 1e3 * seconds / n

    def _wait(self) -> None:
        if self.one.device.startswith("cuda"):
            torch.cuda.synchronize()


@contextmanager
def _file(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "trace.json.gz"


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.")
