"""``profile``: where a step of molecular dynamics goes, each part measured from outside.

The whole step, and its parts alone, are timed in turns: ASE's dynamics with a calculator that
answers at once, a call of the calculator, the evaluation, a search for neighbours. What their
medians leave of the step is the remainder.
"""

from __future__ import annotations

import importlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import warp as wp
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import ConfigError, TeacherError
from mlff_distiller.kernels.compiling import recording
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.md.ase import ase_dynamics
from mlff_distiller.measure.benchmark import Engine, Progress, named_systems, start_of
from mlff_distiller.measure.contenders import Contender, Model, contenders_of
from mlff_distiller.measure.findings import (
    ASE,
    CALCULATOR,
    COMPARING,
    MEANING,
    MODEL,
    NEIGHBORS,
    REMAINDER,
    findings,
)
from mlff_distiller.measure.machine import describe
from mlff_distiller.measure.systems import System
from mlff_distiller.measure.trace import Steps, trace
from mlff_distiller.measure.trial import Clock, EnsembleName, Plan
from mlff_distiller.structure import default_time_step_fs
from mlff_distiller.teachers.family import full_stress
from mlff_distiller.teachers.registry import parse_spec
from mlff_distiller.teachers.session import is_crystal

_Times = NDArray[np.float64]

SCHEMA = 2
_TURNS = 8
_LEAST_TRACED = 32
"""Steps of ``run_md`` on a GPU, so that its graphs of many steps are seen."""


@dataclass(frozen=True)
class ProfileSettings:
    """``n_steps`` are timed, and as many calls of each part; ``traced`` are seen in detail."""

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
    engines: Sequence[Engine] = ("ase", "run_md"),
    settings: ProfileSettings | None = None,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    out: str | Path | None = None,
    clock: Clock = time.perf_counter,
    on_progress: Progress = lambda stage, done, total, label: None,
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
        There is nothing to profile, or several teachers, which spoil each other in one process.
    TeacherError
        The teacher's library is not in this environment.
    """
    settings = settings or ProfileSettings()
    contenders = contenders_of(models, device=device, dtype=dtype)
    contenders.sort(key=lambda one: one.kind == "teacher")
    teachers = [one for one in contenders if one.kind == "teacher"]
    if len(teachers) > 1:
        raise ConfigError(
            "only one teacher can be profiled at a time",
            found=", ".join(one.name for one in teachers),
        )
    for one in teachers:
        make = partial(_InProcessTeacher, one.spec, one.device)
        contenders[-1] = replace(one, make=make, _calculator=None)
    cases = [
        _Case(one, system, engine, settings, dtype)
        for one in contenders
        for system in named_systems(systems)
        for engine in engines
        if engine == "ase" or one.student is not None
    ]
    if not cases:
        raise ConfigError("nothing to profile", expected="a model; run_md runs students only")
    about = describe(contenders[0].device)
    content: dict[str, Any] = {"schema": SCHEMA, "kind": "md-profile", "about": about}
    content |= {"settings": asdict(settings), "cases": []}
    for number, case in enumerate(cases):
        on_progress("profile", number, len(cases), case.label)
        content["cases"].append(case.measured(clock, None if out is None else Path(out)))
    on_progress("profile", len(cases), len(cases), "")
    return Profile(content)


@dataclass(frozen=True)
class _Case:
    """One model, on one system, by one engine."""

    one: Contender
    system: System
    engine: Engine
    settings: ProfileSettings
    dtype: Literal["float32", "float64"]

    @property
    def label(self) -> str:
        return f"{self.one.name} {self.engine} {self.system.name}"

    def measured(self, clock: Clock, folder: Path | None) -> dict[str, Any]:
        one, settings, on_gpu = self.one, self.settings, self.one.device.startswith("cuda")
        n, traced = max(1, settings.n_steps // _TURNS), settings.traced
        parts, rebuilds_per_step = ({}, 0.0) if one.student is None else self._of_student()
        if self.engine == "ase":
            parts |= self._by_ase(max(2, n))
            sizes = [1] * traced
        else:
            parts["step"] = partial(_advance, self._simulation())
            sizes = [max(traced, _LEAST_TRACED) if on_gpu else traced]
        parts["step"](settings.warm_up)
        turns = _in_turns(parts, n, clock)
        step_ms = float(np.median(turns["step"]))
        name = "trace-" + re.sub(r"[^A-Za-z0-9._-]+", "-", self.label).strip("-.") + ".json.gz"
        path = None if folder is None else folder / name
        case = {
            "model": one.name,
            "kind": one.kind,
            "engine": self.engine,
            "system": self.system.name,
            "formula": self.system.atoms.get_chemical_formula(),
            "n_atoms": len(self.system.atoms),
            "ensemble": settings.ensemble,
            "device": one.device,
            "n_steps": _TURNS * n,
            "step_ms": step_ms,
            "step_error_ms": _error_of_median(turns["step"]),
            "phases": _phases(turns, rebuilds_per_step),
            "steps_a_rebuild": 1 / rebuilds_per_step if rebuilds_per_step else None,
            "trace": trace(parts["step"], sizes, on_gpu=on_gpu, path=path),
            "trace_file": None if path is None else path.name,
        }
        return case | {"findings": findings(case)}

    def _by_ase(self, n_frames: int) -> dict[str, Steps]:
        """A ``step``; the same ``idle`` and ``compared`` without the model; a ``call`` of it.

        Of a student, a ``still`` call finds its list of neighbours as it was.
        """
        start = start_of(self.system, self.settings.temperature_K, self.settings.seed)
        time_step = default_time_step_fs(start)
        plan = Plan(self.settings.ensemble, time_step, self.settings.temperature_K)

        def steps_of(calculator: Any) -> Iterator[Atoms]:
            atoms = start.copy()
            atoms.calc = calculator
            return (atoms for _ in ase_dynamics(atoms, plan.settings).irun(10**9))

        def steps(calculator: Any) -> Steps:
            iterator = steps_of(calculator)
            next(iterator)
            return lambda n: deque(islice(iterator, n), maxlen=0)

        called: Any = self.one.calculator()
        frames = [atoms.copy() for atoms in islice(steps_of(called), n_frames)]

        def call(frames: Sequence[Atoms], n: int) -> None:
            for k in range(n):
                called.calculate(frames[k % len(frames)], ["energy", "forces"], all_changes)

        parts: dict[str, Steps] = {"step": steps(called), "call": partial(call, frames)}
        parts["idle"] = steps(_Stored(len(start), compares=False))
        if isinstance(called, StudentCalculator):
            moved = frames[0].copy()
            moved.positions += 1e-6
            parts["still"] = partial(call, [frames[0], moved])
        else:
            parts["compared"] = steps(_Stored(len(start), compares=True))
        return parts

    def _simulation(self) -> Simulation:
        atoms = start_of(self.system, self.settings.temperature_K, self.settings.seed)
        student = ready_student(self.one.student, self.one.device, self.dtype)  # type: ignore[arg-type]
        engine = choose_engine(student, [atoms], compile=self.one.compile)
        kelvin: Any = self.settings.temperature_K
        ensemble = Ensemble(self.settings.ensemble, kelvin, seed=self.settings.seed)
        return Simulation(engine, [atoms], ensemble)

    def _of_student(self) -> tuple[dict[str, Steps], float]:
        """An ``evaluation``, a ``rebuild`` of its neighbours, and how many a step needs."""
        simulation = self._simulation()
        simulation.advance(self.settings.warm_up)
        before = simulation.n_rebuilds
        simulation.advance(self.settings.n_steps)
        rate = (simulation.n_rebuilds - before) / self.settings.n_steps
        engine = simulation.engine
        rebuild = partial(engine.rebuild, simulation.cell(), self.system.atoms.pbc[None])
        rebuild()
        launch: Callable[[], object] = engine.compute
        if engine.device.is_cuda and engine.capturable:
            with (
                recording(),
                wp.ScopedCapture(device=engine.device, force_module_load=False) as capture,
            ):
                launch()
            launch = partial(wp.capture_launch, capture.graph)

        def run(function: Callable[[], object], n: int) -> None:
            for _ in range(n):
                function()
            wp.synchronize_device(engine.device)

        return {"evaluation": partial(run, launch), "rebuild": partial(run, rebuild)}, rate


def _advance(simulation: Simulation, n_steps: int) -> None:
    """As ``run_md`` does between two rows of its log."""
    simulation.advance(n_steps)
    simulation.observables()


def _in_turns(parts: Mapping[str, Steps], n: int, clock: Clock) -> dict[str, _Times]:
    """Time (ms) of one of n calls of each part, at each of its turns."""
    turns: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(_TURNS):
        for name, run in parts.items():
            run(1)  # whatever another part left in caches
            began = clock()
            run(n)
            turns[name].append(1e3 * (clock() - began) / n)
    return {name: np.array(values) for name, values in turns.items()}


def _error_of_median(turns: _Times) -> float:
    """Standard error of a median, from the median deviation: an outlier does not count."""
    deviation = float(np.median(np.abs(turns - np.median(turns))))
    return float(1.2533 * 1.4826 * deviation / np.sqrt(len(turns)))


def _phases(turns: Mapping[str, _Times], rebuilds_per_step: float) -> list[dict[str, Any]]:
    """Parts of the step (ms): medians of the turns, each with its standard error."""
    spent = {name: np.median(values) for name, values in turns.items()}
    found, scatter = (_parts(own, rebuilds_per_step) for own in (spent, turns))
    return [
        {
            "name": name,
            "ms": float(found[name]),
            "error_ms": _error_of_median(scatter[name]),
            "percent": float(100 * found[name] / spent["step"]),
        }
        for name in MEANING
        if name in found
    ]


def _parts(spent: Mapping[str, Any], rebuilds_per_step: float) -> dict[str, Any]:
    """Parts of the step, from what calls take alone."""
    found = {}
    if "idle" in spent:
        found[ASE] = spent["idle"]
    if "compared" in spent:
        found[COMPARING] = spent["compared"] - spent["idle"]
    if "evaluation" in spent:
        found[NEIGHBORS] = rebuilds_per_step * spent["rebuild"]
        if "still" in spent:
            found[CALCULATOR] = spent["still"] - spent["evaluation"]
            found[NEIGHBORS] += spent["call"] - spent["still"]  # as where the cell changes
    found[MODEL] = spent["evaluation"] if "evaluation" in spent else spent["call"]
    found[REMAINDER] = spent["step"] - sum(found.values())
    return found


class _Stored(Calculator):
    """Answers at once; ``compares`` the atoms as ASE does, or knows that nothing changed."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, n_atoms: int, *, compares: bool) -> None:
        super().__init__()
        forces, self.compares = np.zeros((n_atoms, 3)), compares
        self.stored = {"energy": 0.0, "free_energy": 0.0, "forces": forces, "stress": np.zeros(6)}
        self.results = self.stored

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        return super().check_state(atoms, tol) if self.compares else []

    def calculate(self, *_: Any) -> None:
        self.results = self.stored


class _InProcessTeacher(Calculator):
    """A teacher loaded into this process, where a profiler sees it.

    Its library may change global state (default dtype, ...): do nothing else here afterwards.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, spec: str, device: str) -> None:
        super().__init__()
        source = parse_spec(spec)
        try:
            family: Any = importlib.import_module(source.module)
            self.loaded = family.load(source.arguments, device, False)
        except ModuleNotFoundError as error:
            raise TeacherError(
                f"the teacher needs the Python package {error.name!r} in this process",
                expected="its library in this environment: a profiler sees no other process",
                remedy=source.install_into(None),
            ) from error

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        structure: Any = self.atoms
        found = self.loaded.evaluate(structure, is_crystal(structure))
        self.results = {"energy": found.energy, "free_energy": found.energy, "forces": found.forces}
        if found.stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(full_stress(found.stress))
