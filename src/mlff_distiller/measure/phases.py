"""Where the time of a step goes: functions wrapped for the while, their own time added up."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from ase import Atoms
from ase.calculators import calculator as ase_calculator
from ase.md.md import MolecularDynamics

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines import torch as torch_engine
from mlff_distiller.engines.engine import Engine
from mlff_distiller.errors import TeacherError
from mlff_distiller.md import Simulation
from mlff_distiller.teachers.registry import parse_spec

COMPARING, BOOKKEEPING, INTEGRATOR = "comparing atoms", "bookkeeping", "integrator"
NEIGHBORS, TO_DEVICE, MODEL, TO_HOST = "neighbour list", "to device", "model", "to host"
GRAPHS = "graphs of steps"
PHASES = (BOOKKEEPING, COMPARING, INTEGRATOR, NEIGHBORS, TO_DEVICE, MODEL, TO_HOST, GRAPHS)
MEANING = {
    BOOKKEEPING: "the loop around the steps; passing results on",
    COMPARING: "whether the atoms are those of the last results",
    INTEGRATOR: "moving atoms, thermostat, barostat",
    NEIGHBORS: "who is near whom",
    TO_DEVICE: "arrays to the model: tensors, copies to the GPU",
    MODEL: "energy, forces and stress",
    TO_HOST: "results back: copies from the GPU, arrays",
    GRAPHS: "whole steps in CUDA graphs; the table of kernels tells their parts apart",
}

_SEARCHES = {
    "sevennet": ("sevenn.train.dataload", "unlabeled_atoms_to_graph"),
    "orb": ("orb_models.forcefield.atomic_system", "ase_atoms_to_atom_graphs"),
    "mace": ("mace.data.neighborhood", "get_neighborhood"),
    "chgnet": ("chgnet.graph.converter", "CrystalGraphConverter.forward"),
}
"""What finds neighbours in a teacher's library; of others it is part of the model."""


class Phases:
    """Adds up the time of phases while ``active``; a phase's own, without those inside it.

    With ``synchronize`` the device is waited for at both ends of whatever it computes in, so that
    kernels count where they were launched. ``mark`` also names the phases in PyTorch's profile and
    as NVTX ranges.
    """

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.active, self.mark = clock, False, False
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self.inner_calls: dict[str, int] = {}
        """Of the phases directly inside each."""
        self.reset()
        self._is_cuda = device.startswith("cuda")
        self._stack: list[str] = []
        self._last = 0.0
        self._restore, self._lasting = ExitStack(), ExitStack()
        self.cost = 0.0
        """Seconds that entering and leaving a phase take; see ``calibrate``."""

    @contextmanager
    def running(self, phase: str = BOOKKEEPING) -> Iterator[None]:
        """Count from here on, into ``phase`` what no other phase takes."""
        self.active, self._stack, self._last = True, [phase], self.clock()
        self.calls[phase] += 1
        try:
            yield
        finally:
            self._switch()
            self.active, self._stack = False, []

    def wrap(
        self,
        owner: Any,
        name: str,
        phase: str,
        *,
        then: str = "",
        waits: bool = False,
        lasting: bool = False,
    ) -> None:
        """Let ``owner.name`` count into ``phase``, and what follows in its caller into ``then``.

        Nothing happens if there is no such thing: its time then counts where it is called.
        ``lasting`` survives ``release``.
        """
        function = getattr(owner, name, None)
        if not callable(function):
            return
        own = name in getattr(owner, "__dict__", {})
        before = owner.__dict__.get(name) if own else None
        waits = waits and self._is_cuda

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not self.active:
                return function(*arguments, **named)
            with self._inside(phase, then, waits):
                return function(*arguments, **named)

        def restore() -> None:
            if own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)

        setattr(owner, name, wrapped)
        (self._lasting if lasting else self._restore).callback(restore)

    @contextmanager
    def _inside(self, phase: str, then: str, waits: bool) -> Iterator[None]:
        if waits:
            torch.cuda.synchronize()
        self._switch()
        self.inner_calls[self._stack[-1]] += 1
        self._stack.append(phase)
        self.calls[phase] += 1
        with self._marked(phase):
            try:
                yield
            finally:
                if waits:
                    torch.cuda.synchronize()
                self._switch()
                self._stack.pop()
                if then:
                    self._stack[-1] = then

    def _switch(self) -> None:
        now = self.clock()
        self.seconds[self._stack[-1]] += now - self._last
        self._last = now

    @contextmanager
    def _marked(self, phase: str) -> Iterator[None]:
        if not self.mark:
            yield
            return
        if self._is_cuda:
            torch.cuda.nvtx.range_push(phase)
        try:
            with torch.profiler.record_function(phase):
                yield
        finally:
            if self._is_cuda:
                torch.cuda.nvtx.range_pop()

    def calibrate(self, n: int = 2000) -> None:
        """Find out what a phase itself costs, to be taken off."""

        class Probe:
            def nothing(self) -> None: ...

        probe = Probe()
        plain = self._time(probe.nothing, n)
        before = dict(self.seconds), dict(self.calls), dict(self.inner_calls)
        self.wrap(probe, "nothing", INTEGRATOR)
        with self.running():
            wrapped = self._time(probe.nothing, n)
        self.seconds, self.calls, self.inner_calls = before
        self.cost = max(0.0, (wrapped - plain) / n)

    def _time(self, function: Callable[[], None], n: int) -> float:
        began = self.clock()
        for _ in range(n):
            function()
        return self.clock() - began

    def reset(self) -> None:
        """Count from zero."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.calls = dict.fromkeys(PHASES, 0)
        self.inner_calls = dict.fromkeys(PHASES, 0)

    def corrected(self) -> dict[str, float]:
        """Seconds of each phase, less what counting cost: half of it inside, half around."""
        return {
            name: max(0.0, s - 0.5 * self.cost * (self.calls[name] + self.inner_calls[name]))
            for name, s in self.seconds.items()
        }

    def release(self) -> None:
        """Put back as it was what is not ``lasting``."""
        self._restore.close()

    def close(self) -> None:
        """Put everything back as it was."""
        self.release()
        self._lasting.close()


# -- what is wrapped -------------------------------------------------------------------------------


def follow_ase(phases: Phases, dynamics: MolecularDynamics, atoms: Atoms) -> None:
    """Phases of ASE's dynamics, around whatever calculator."""
    phases.wrap(dynamics, "step", INTEGRATOR)
    for name in ("get_forces", "get_stress", "get_potential_energy"):
        phases.wrap(atoms, name, BOOKKEEPING)
    phases.wrap(ase_calculator, "compare_atoms", COMPARING)
    if isinstance(atoms.calc, StudentCalculator):
        _follow_student(phases, atoms.calc)
    elif isinstance(atoms.calc, InProcessTeacher):
        phases.wrap(atoms.calc, "evaluate", MODEL, waits=True)
    else:
        phases.wrap(atoms.calc, "calculate", MODEL, waits=True)
    if phases._is_cuda:
        _follow_copies(phases)


def _follow_student(phases: Phases, calculator: StudentCalculator) -> None:
    phases.wrap(calculator, "_is_current", COMPARING)
    engine: Any = calculator._engine
    phases.wrap(engine, "evaluate", TO_DEVICE)
    if not hasattr(engine, "neighbors"):
        phases.wrap(torch_engine, "neighbor_list", NEIGHBORS)
        phases.wrap(calculator.student, "forward", MODEL, then=TO_HOST, waits=True)
        return
    # Its copies are part of one CUDA graph with the kernels.
    phases.wrap(engine, "_run", MODEL, then=TO_HOST)
    phases.wrap(engine, "rebuild", NEIGHBORS)
    phases.wrap(engine.neighbors, "is_current", NEIGHBORS)
    if engine.device.is_cpu:
        phases.wrap(engine.neighbors, "follow", NEIGHBORS)


def _follow_copies(phases: Phases) -> None:
    """Of tensors between host and GPU, whoever makes them."""
    move, fetch = torch.Tensor.to, torch.Tensor.cpu

    def to(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        target = named.get("device", arguments[0] if arguments else None)
        if not phases.active or not isinstance(target, str | torch.device | int):
            return move(tensor, *arguments, **named)
        goes = torch.device(target).type
        if goes == tensor.device.type:
            return move(tensor, *arguments, **named)
        with phases._inside(TO_DEVICE if goes == "cuda" else TO_HOST, "", True):
            return move(tensor, *arguments, **named)

    def cpu(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if not phases.active or not tensor.is_cuda:
            return fetch(tensor, *arguments, **named)
        with phases._inside(TO_HOST, "", True):
            return fetch(tensor, *arguments, **named)

    torch.Tensor.to, torch.Tensor.cpu = to, cpu  # type: ignore[method-assign, assignment]

    def restore() -> None:
        del torch.Tensor.to, torch.Tensor.cpu  # what they inherit is seen again

    phases._restore.callback(restore)


def follow_forces(phases: Phases, engine: Engine) -> None:
    """Forces of ``run_md``; before its ``Simulation`` is made, which keeps what is wrapped."""
    if not (engine.device.is_cuda and engine.capturable):
        phases.wrap(engine, "compute", MODEL, waits=True)
        phases.wrap(engine, "total", MODEL, waits=True)
    phases.wrap(engine, "rebuild", NEIGHBORS, waits=True)


def follow_simulation(phases: Phases, simulation: Simulation) -> None:
    """The steps themselves. In CUDA graphs, only the host's part can be told apart."""
    graphs = simulation.device.is_cuda and simulation.engine.capturable
    phases.wrap(simulation, "advance", GRAPHS if graphs else INTEGRATOR)
    if not graphs:
        for name in ("_keep", "_settle"):  # looks of the host, between blocks of steps
            phases.wrap(simulation, name, BOOKKEEPING)


class InProcessTeacher(ase_calculator.Calculator):
    """A teacher loaded into this process, where a profiler can look into it.

    Its library may change global state (default dtype, ...): nothing else should be done here
    afterwards.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, spec: str, device: str, phases: Phases) -> None:
        super().__init__()
        source = parse_spec(spec)
        module, name = _SEARCHES.get(source.family, ("", ""))
        if module:
            owner: Any = _import(module, source.install)
            *classes, function = name.split(".")
            for part in classes:
                owner = getattr(owner, part, None)
            phases.wrap(owner, function, NEIGHBORS, lasting=True)
        family: Any = importlib.import_module(source.module)
        try:
            self.loaded = family.load(source.arguments, device, False)
        except ModuleNotFoundError as error:
            raise _missing(error, source.install) from error
        self.evaluate = self.loaded.evaluate
        self.tells_neighbors = bool(module)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = tuple(ase_calculator.all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        structure: Any = self.atoms
        found = self.evaluate(structure, bool(structure.pbc.all() and structure.cell.rank == 3))
        self.results = {"energy": found.energy, "free_energy": found.energy, "forces": found.forces}
        if found.stress is not None and len(found.stress) == 6:
            self.results["stress"] = found.stress


def _import(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(error, install) from error


def _missing(error: ModuleNotFoundError, install: str) -> TeacherError:
    return TeacherError(
        f"the teacher needs the Python package {error.name!r} in this process",
        expected="its library in this environment: a profiler sees no other process",
        remedy=f"pip install {install}" if install else "",
    )
