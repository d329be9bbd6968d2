"""``Watch``: looks at a student's own estimate of its errors, at intervals in a simulation.

The looks are kernels that are launched between steps. What they count stays on the device, and is
read where the host waits for it anyway; see ``kernels/dynamics/warp_watch``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import warp as wp
from numpy.typing import NDArray

from mlff_distiller.kernels.compiling import Launch, load
from mlff_distiller.kernels.dynamics import warp_watch
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.md.state import State

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """The first of some looks at which an error was above the limit."""

    state: State
    errors: Array  # (n_atoms,) eV/Å

    @property
    def step(self) -> int:
        return self.state.step


@dataclass
class Trust:
    """What all looks of a run have met, those of the runs that it continues included."""

    n_looks: int
    n_untrusted: list[int]
    """For each system, how often an atom's error was above the limit."""
    largest: list[float]
    """For each system, eV/Å."""
    n_recent: int = 0
    """Looks since the last row of the log."""
    recent: list[float] = field(default_factory=list)
    """The largest errors of these."""

    @classmethod
    def none(cls, n_systems: int) -> Trust:
        """Before the first look."""
        return cls(0, [0] * n_systems, [0.0] * n_systems, 0, [0.0] * n_systems)

    def fractions(self, sizes: NDArray[np.int64]) -> list[float | None]:
        """The trusted ones of each system's looks at an atom; None before the first look."""
        if not self.n_looks:
            return [None] * len(sizes)
        pairs = zip(self.n_untrusted, sizes.tolist(), strict=True)
        return [1.0 - bad / (self.n_looks * size) for bad, size in pairs]


class Watch:
    """Looks of ``simulation`` at its engine's ``errors``.

    Parameters
    ----------
    every
        At each step that one of these divides.
    limit
        eV/Å: above it the environment of an atom is not trusted.
    on_event
        Called with each `Event` as soon as the host learns of it; may raise to end the run.
    trust
        What earlier runs have met.
    """

    def __init__(
        self,
        simulation: Simulation,
        every: Collection[int],
        limit: float,
        on_event: Callable[[Event], None],
        trust: Trust | None = None,
    ) -> None:
        self.simulation, self.every, self.limit = simulation, every, limit
        self.on_event = on_event
        self.systems, self.device = simulation.engine.systems, simulation.device
        self.trust = trust or Trust.none(self.systems.n_systems)
        n, n_systems = self.systems.n_atoms, self.systems.n_systems
        with wp.ScopedDevice(self.device):
            self._largest = wp.zeros(n_systems, dtype=wp.float64)
            self._n_untrusted = wp.zeros(n_systems, dtype=wp.int64)
            self._first_step = wp.full(1, warp_watch.NEVER, dtype=wp.int64)
            self._n_looks = wp.zeros(1, dtype=wp.int64)
            self._good_step = wp.full(1, -1, dtype=wp.int64)
            self._errors = wp.zeros(n, dtype=wp.float64)
            self._good, self._bad = (
                (
                    wp.zeros(n, dtype=wp.vec3d),
                    wp.zeros(n, dtype=wp.vec3d),
                    wp.zeros(n_systems, dtype=wp.mat33d),
                )
                for _ in range(2)
            )
        simulation.watch = self
        self.record()

    def record(self) -> None:
        """Record the launches of a look; again when the simulation's arrays were replaced."""
        own, engine, systems = self.simulation, self.simulation.engine, self.systems
        errors = engine.errors
        kernels = warp_watch.build("cpu" if self.device.is_cpu else "cuda")
        load(kernels.module, self.device)
        now = (own.halt, own.step_on_device, systems.system_idx)
        count = (
            *(*now, errors, wp.float64(self.limit)),
            *(self._largest, self._n_untrusted, self._first_step),
        )
        keep = (
            *(*now, systems.first_atom, errors),
            *(engine.positions, own.velocities, engine.neighbors.lattice),
            *(self._first_step, self._n_looks, self._good_step),
            *(*self._good, self._errors, *self._bad),
        )
        # On a CPU one core counts: Warp's atomics are none there.
        self._launches = [
            Launch([(kernel, arguments)], systems.n_atoms, self.device, cores)
            for kernel, arguments, cores in (
                (kernels.count, count, 1),
                (kernels.keep, keep, engine.n_threads),
            )
        ]

    # -- looks ---------------------------------------------------------------------------------

    def next_look(self, step: int) -> int:
        """The first step after ``step`` that is looked at."""
        return min((step // every + 1) * every for every in self.every)

    def look(self) -> None:
        """Launch a look at the present state."""
        self.simulation.engine.estimate_errors()
        for launch in self._launches:
            launch()

    def begin(self, *, continues: bool) -> None:
        """Look at the state that a run begins with; one that it continues with counts no more."""
        self.simulation.keep(self.simulation.step)
        self._good_step.fill_(-1)
        self.look()
        if continues:
            self._forget()
        self._tell()

    def settle(self, step: int) -> None:
        """Look where ``step``, the present one, is due, and tell of what any look has met."""
        if self.next_look(step - 1) == step:
            self.look()
        self._tell()

    def _tell(self) -> None:
        first = int(self._first_step.numpy()[0])
        if first != warp_watch.NEVER:
            event = Event(self.simulation.state_of(first, *self._bad), self._errors.numpy().copy())
            self._first_step.fill_(warp_watch.NEVER)
            self.on_event(event)

    # -- what was met --------------------------------------------------------------------------

    def seen(self) -> Trust:
        """What all looks so far have met."""
        trust, n_new = self.trust, int(self._n_looks.numpy()[0])
        if n_new:
            largest, bad = self._largest.numpy().tolist(), self._n_untrusted.numpy().tolist()
            trust.n_looks += n_new
            trust.n_recent += n_new
            trust.n_untrusted = [a + b for a, b in zip(trust.n_untrusted, bad, strict=True)]
            trust.largest = [max(pair) for pair in zip(trust.largest, largest, strict=True)]
            trust.recent = [max(pair) for pair in zip(trust.recent, largest, strict=True)]
            self._forget()
        return trust

    def row(self) -> list[dict[str, Any]]:
        """What a row of the log says of each system, and begin what the next one will say."""
        trust = self.seen()
        fractions = trust.fractions(self.systems.sizes)
        recent = trust.recent if trust.n_recent else [None] * len(fractions)
        trust.n_recent, trust.recent = 0, [0.0] * len(fractions)
        return [
            {"max_forces_error": error, "trusted": fraction}
            for error, fraction in zip(recent, fractions, strict=True)
        ]

    def go_back(self, event: Event) -> State:
        """Return the simulation to the last look before ``event``; those after it were none."""
        step, end = event.step, self.simulation.step
        n_looks = int(self._n_looks.numpy()[0])
        while step <= end:
            n_looks, step = n_looks - 1, self.next_look(step)
        self.trust.n_looks += max(0, n_looks)
        self.trust.n_recent += max(0, n_looks)
        self._forget()
        good = int(self._good_step.numpy()[0])
        state = self.simulation.kept() if good < 0 else self.simulation.state_of(good, *self._good)
        self.simulation.load(state)
        return state

    def _forget(self) -> None:
        for array in (self._largest, self._n_untrusted, self._n_looks):
            array.zero_()
