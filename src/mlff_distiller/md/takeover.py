"""A teacher that makes some steps of a simulation, where its student does not know the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from ase.calculators.calculator import BaseCalculator

from mlff_distiller.errors import ConfigError
from mlff_distiller.md.ase import AseSimulation
from mlff_distiller.md.files import Frame
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.md.state import Observables, State


class Takeover:
    """Steps of ``simulation``'s only system by ``teacher``, from its present state, in ASE's loop.

    Has the methods of `Simulation` that files are written by; energies and forces are the
    teacher's.

    Raises
    ------
    ConfigError
        There are several systems.
    DynamicsError
        ASE's integrators cannot do what the ensemble asks for.
    """

    def __init__(self, simulation: Simulation, teacher: BaseCalculator) -> None:
        if len(simulation.templates) != 1:
            raise ConfigError(
                "guard=teacher is for one system",
                expected="one structure",
                found=f"{len(simulation.templates)}",
                remedy="run them one by one, or take guard=harvest",
            )
        self._simulation, self._first = simulation, simulation.step
        atoms = simulation.atoms()
        # Random forces differ from one takeover to the next, and are the same when it is repeated.
        seed = np.random.SeedSequence(simulation.ensemble.seed, spawn_key=(2, self._first))
        self._own = AseSimulation(atoms, teacher, simulation.ensemble, np.random.default_rng(seed))

    @property
    def step(self) -> int:
        return self._first + self._own.step

    @property
    def time_ps(self) -> float:
        return 1e-3 * self._own.time_step_fs * self.step

    def steps(self, n_steps: int, ends: Callable[[], bool]) -> Iterator[int]:
        """Make up to ``n_steps``, and say the number after each; then the simulation goes on there.

        Whatever ``ends`` them, an error apart.
        """
        for _ in range(n_steps):
            self._own.advance(1)
            yield self.step
            if ends():
                break
        state = self._own.state()
        self._simulation.load(State(self.step, state.positions, state.velocities, state.cell))

    def observables(self) -> Observables:
        return self._own.observables()

    def snapshot(self) -> Frame:
        state, seen = self._own.state(), self._own.observables()
        return Frame(
            self.step,
            self.time_ps,
            state.positions,
            state.velocities,
            self._own.atoms.get_forces(apply_constraint=False),
            state.cell,
            seen.potential_energy,
            seen.stress,
        )
