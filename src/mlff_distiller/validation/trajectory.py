"""One trajectory of any force field: students on their own integrators, others through ASE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.errors import DistillerError, DynamicsError
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.structure import at_rest, default_time_step_fs, thermalise

Array = NDArray[np.float64]
OnStep = Callable[[int, int], None]
Row = tuple[int, Array, Array, float]
"""Step, positions (n_atoms, 3) Å, velocities, potential energy in eV."""

_TOO_HOT = 10.0
"""Times the target: beyond it something flew apart, as in ``Ensemble.max_temperature_K``."""


@dataclass(frozen=True)
class ForceField:
    """What is examined: any ASE calculator, by a name.

    The dynamics of a ``StudentCalculator`` runs as ``run_md`` does, on the student's device; of
    any other calculator, in ASE's loop.
    """

    name: str
    calculator: BaseCalculator
    dtype: Literal["float32", "float64"] = "float32"
    """Of a student's dynamics."""

    def energy(self, atoms: Atoms) -> float:
        """eV."""
        return float(self._with(atoms).get_potential_energy())

    def forces(self, atoms: Atoms) -> Array:
        """(n_atoms, 3) eV/Å."""
        return np.array(self._with(atoms).get_forces(), dtype=np.float64)

    def stress(self, atoms: Atoms) -> Array:
        """(3, 3) eV/Å³."""
        return np.array(self._with(atoms).get_stress(voigt=False), dtype=np.float64)

    def _with(self, atoms: Atoms) -> Atoms:
        copy: Atoms = atoms.copy()
        copy.calc = self.calculator
        return copy


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Recorded frames, evenly spaced, of a run that may have ended early."""

    atoms: Atoms
    """As it began; numbers, masses, cell and pbc hold for every frame."""
    ensemble: Ensemble
    time_step_fs: float
    n_steps: int
    """Steps done."""
    completed: bool
    time_ps: Array  # (n,)
    positions: Array  # (n, n_atoms, 3) Å, not wrapped
    velocities: Array  # (n, n_atoms, 3) Å / ASE's unit of time
    potential: Array  # (n,) eV
    why: str = ""
    """What ended it early."""

    @property
    def temperature_K(self) -> float:
        """The thermostat's, or that of the first velocities."""
        return self.ensemble.temperature_K[0]

    @property
    def n_degrees(self) -> int:
        """Degrees of freedom: without a thermostat the centre of mass is at rest."""
        return 3 * len(self.atoms) - (0 if self.ensemble.has_langevin else 3)

    @property
    def kinetic(self) -> Array:
        """(n,) eV."""
        masses = self.atoms.get_masses()
        return np.asarray(0.5 * np.einsum("i,tik,tik->t", masses, self.velocities, self.velocities))

    @property
    def temperatures(self) -> Array:
        """(n,) K."""
        return np.asarray(2.0 * self.kinetic / (self.n_degrees * units.kB))

    @property
    def total_energy(self) -> Array:
        """(n,) meV/atom, relative to the first."""
        total = self.potential + self.kinetic
        return np.asarray(1e3 * (total - total[:1]) / len(self.atoms))

    def frame(self, index: int) -> Atoms:
        """One frame, with momenta, without a calculator."""
        atoms: Atoms = self.atoms.copy()
        atoms.positions = self.positions[index]
        atoms.set_velocities(self.velocities[index])
        return atoms

    def part(self, start: int, stop: int) -> Trajectory:
        """Frames ``start`` to ``stop``."""
        own = slice(start, stop)
        return replace(
            self,
            time_ps=self.time_ps[own],
            positions=self.positions[own],
            velocities=self.velocities[own],
            potential=self.potential[own],
        )


def simulate(
    force_field: ForceField,
    atoms: Atoms,
    ensemble: Ensemble,
    n_steps: int,
    every: int,
    on_step: OnStep = lambda done, total: None,
) -> Trajectory:
    """``n_steps`` of NVE or NVT (Langevin) from ``atoms``, recorded at the start and ``every`` k.

    Velocities are drawn at the ensemble's temperature where the structure has none. A run that
    the force field breaks (NaN, an error, an explosion) ends there, with ``why``.
    """
    if ensemble.ensemble == "npt":
        raise DynamicsError("a trajectory is of nve or nvt", found=ensemble.ensemble)
    step_fs = ensemble.time_step_fs or default_time_step_fs(atoms)
    ensemble = replace(ensemble, time_step_fs=step_fs)
    atoms = atoms.copy()
    if not atoms.get_momenta().any():
        thermalise(atoms, ensemble.temperature_K[0], np.random.default_rng(ensemble.seed))
    if ensemble.ensemble == "nve":
        at_rest(atoms)
    rows: list[Row] = []
    why = ""
    try:
        for row in steps_of(force_field, atoms, ensemble, n_steps, every):
            if not all(np.isfinite(part).all() for part in row[1:]):
                raise DynamicsError("positions, velocities or energy are not finite")
            rows.append(row)
            on_step(row[0], n_steps)
    except DistillerError as error:
        why = str(error)
    except Exception as error:  # whatever a foreign calculator raises is a result of the run
        why = f"{type(error).__name__}: {error}"
    done = rows[-1][0] if rows else 0
    n = len(atoms)
    return Trajectory(
        atoms,
        ensemble,
        step_fs,
        done,
        not why and done >= n_steps,
        np.array([1e-3 * step_fs * row[0] for row in rows]),
        np.array([row[1] for row in rows]).reshape(-1, n, 3),
        np.array([row[2] for row in rows]).reshape(-1, n, 3),
        np.array([row[3] for row in rows]),
        why,
    )


def steps_of(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
) -> Iterator[Row]:
    """The states of a run of NVE or NVT one by one, from the first on, kept by nobody here."""
    student = isinstance(force_field.calculator, StudentCalculator)
    return (_on_device if student else _in_ase)(force_field, atoms, ensemble, n_steps, every)


def simulations(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
) -> Iterator[Simulation]:
    """A student's dynamics: one `Simulation`, at the start and every ``every`` steps of it."""
    calculator = force_field.calculator
    if not isinstance(calculator, StudentCalculator):
        raise TypeError(f"{force_field.name} is no student")
    engine = choose_engine(calculator.student, [atoms], skin=ensemble.skin_A, n_steps=n_steps)
    simulation = Simulation(engine, [atoms], ensemble)
    yield simulation
    while simulation.step < n_steps:
        simulation.advance(min(every, n_steps - simulation.step))
        yield simulation


def _on_device(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
) -> Iterator[Row]:
    for simulation in simulations(force_field, atoms, ensemble, n_steps, every):
        frame = simulation.snapshot()
        yield frame.step, frame.positions, frame.velocities, float(frame.energy[0])


def _in_ase(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
) -> Iterator[Row]:
    atoms.calc = force_field.calculator
    target = ensemble.temperature_K[0]
    step = (ensemble.time_step_fs or 1.0) * units.fs
    dynamics: VelocityVerlet | Langevin
    if ensemble.ensemble == "nve":
        dynamics = VelocityVerlet(atoms, step)
    else:
        dynamics = Langevin(
            atoms,
            step,
            temperature_K=target,
            friction=1e-3 * ensemble.friction_per_ps / units.fs,
            rng=np.random.default_rng(ensemble.seed),
            fixcm=False,
        )
    too_hot = ensemble.max_temperature_K or _TOO_HOT * max(300.0, target, atoms.get_temperature())
    while True:
        yield (
            dynamics.nsteps,
            atoms.positions.copy(),
            atoms.get_velocities().copy(),
            float(atoms.get_potential_energy()),
        )
        if dynamics.nsteps >= n_steps:
            return
        dynamics.run(min(every, n_steps - dynamics.nsteps))
        if atoms.get_temperature() > too_hot:
            fastest = int(np.argmax(np.linalg.norm(atoms.get_velocities(), axis=1)))
            raise DynamicsError(
                f"the run exploded near step {dynamics.nsteps}: atom {fastest} "
                f"({atoms.symbols[fastest]}) is the fastest",
                expected=f"at most {too_hot:.4g} K",
                found=f"{atoms.get_temperature():.4g} K",
            )
