"""One trajectory of any force field: students on their own integrators, others through ASE."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.errors import DistillerError, DynamicsError
from mlff_distiller.md.ase import AseSimulation
from mlff_distiller.md.ensemble import Ensemble
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.structure import at_rest, degrees_of_freedom, thermalise
from mlff_distiller.students import Student

Array = NDArray[np.float64]
OnStep = Callable[[int, int], None]

_BURST = 2.0
"""A volume this much larger or smaller than the first is another phase, or none."""
_LONGEST = 2048
"""Steps of one sample of the clock."""


class Row(NamedTuple):
    """One instant of a run."""

    step: int
    positions: Array  # (n_atoms, 3) Å, not wrapped
    velocities: Array  # (n_atoms, 3) Å / ASE's unit of time
    potential: float  # eV
    cell: Array  # (3, 3) Å
    pressure_GPa: float
    """Kinetic part included; NaN where it is not known."""


@dataclass(frozen=True)
class ForceField:
    """What is examined: any ASE calculator, by a name.

    The dynamics of a `StudentCalculator` runs as ``run_md`` does, on the student's device; of
    any other calculator, in ASE's loop.
    """

    name: str
    calculator: BaseCalculator
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of a student's dynamics."""

    @property
    def student(self) -> Student | None:
        """What runs without ASE; None if the calculator is not made of a student."""
        student = getattr(self.calculator, "student", None)
        return student if isinstance(student, Student) else None

    def simulation(
        self, atoms: Atoms, ensemble: Ensemble, n_steps: int = 0
    ) -> Simulation | AseSimulation:
        """What moves a copy of ``atoms``, for about ``n_steps``; in ASE what it alone can hold."""
        student, atoms = self.student, atoms.copy()
        if student is None or not all(isinstance(one, FixAtoms) for one in atoms.constraints):
            return AseSimulation(atoms, self.calculator, ensemble)
        engine = choose_engine(student, [atoms], skin=ensemble.skin_A, n_steps=n_steps)
        return Simulation(engine, [atoms], ensemble)

    def energy(self, atoms: Atoms) -> float:
        """eV."""
        return float(self._with(atoms).get_potential_energy(apply_constraint=False))

    def forces(self, atoms: Atoms) -> Array:
        """(n_atoms, 3) eV/Å."""
        forces = self._with(atoms).get_forces(apply_constraint=False)
        return np.array(forces, dtype=np.float64)

    def stress(self, atoms: Atoms) -> Array:
        """(3, 3) eV/Å³."""
        stress = self._with(atoms).get_stress(voigt=False, apply_constraint=False)
        return np.array(stress, dtype=np.float64)

    def _with(self, atoms: Atoms) -> Atoms:
        copy: Atoms = atoms.copy()
        copy.calc = self.calculator
        return copy


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Recorded frames, evenly spaced, of a run that may have ended early."""

    atoms: Atoms
    """As it began; numbers, masses and pbc hold for every frame, the cell unless it may change."""
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
    cells: Array = field(default_factory=lambda: np.empty((0, 3, 3)))
    """(n, 3, 3) Å at constant pressure, else none."""
    pressure_GPa: Array = field(default_factory=lambda: np.empty(0))
    """(n,) at constant pressure, kinetic part included, else none."""

    @property
    def temperature_K(self) -> float:
        """The thermostat's, or that of the first velocities."""
        return self.ensemble.temperature_K[0]

    @property
    def n_degrees(self) -> int:
        """Degrees of freedom: without a thermostat or constraint the centre of mass is at rest."""
        if self.atoms.constraints:
            return round(float(degrees_of_freedom(self.atoms).sum()))
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

    @property
    def volume(self) -> Array:
        """(n,) Å³."""
        cells = self.cells if len(self.cells) else self.atoms.cell.array[None]
        return np.broadcast_to(np.abs(np.linalg.det(cells)), len(self.time_ps))

    @property
    def density(self) -> Array:
        """(n,) g/cm³."""
        grams = self.atoms.get_masses().sum() / units.kg * 1e3
        return np.asarray(grams / (self.volume * 1e-24))

    def frame(self, index: int) -> Atoms:
        """One frame, with momenta, without a calculator."""
        atoms: Atoms = self.atoms.copy()
        if len(self.cells):
            atoms.set_cell(self.cells[index])
        atoms.positions = self.positions[index]
        atoms.set_velocities(self.velocities[index])
        return atoms

    def part(self, start: int, stop: int | None = None, every: int = 1) -> Trajectory:
        """Each ``every``-th of frames ``start`` to ``stop``, or to the end."""
        own = slice(start, stop, every)
        names = ("time_ps", "positions", "velocities", "potential", "cells", "pressure_GPa")
        return replace(self, **{name: getattr(self, name)[own] for name in names})


def simulate(
    force_field: ForceField,
    atoms: Atoms,
    ensemble: Ensemble,
    n_steps: int,
    every: int,
    on_step: OnStep = lambda done, total: None,
) -> Trajectory:
    """``n_steps`` from ``atoms``, recorded at the start and ``every`` k steps.

    Velocities are drawn at the ensemble's temperature where the structure has none; at constant
    energy the whole is at rest, unless constraints hold it. A run that the force field breaks
    (NaN, an error, an explosion, a volume that doubles or halves) ends there, with ``why``.
    """
    atoms, ensemble = begun(atoms, ensemble)
    rows: list[Row] = []
    why = ""
    try:
        for row in steps_of(force_field, atoms, ensemble, n_steps, every):
            _check(row, atoms, ensemble)
            rows.append(row)
            on_step(row.step, n_steps)
    except DistillerError as error:
        why = str(error)
    except Exception as error:  # whatever a foreign calculator raises is a result of the run
        why = f"{type(error).__name__}: {error}"
    return _recorded(atoms, ensemble, rows, n_steps, why)


def begun(atoms: Atoms, ensemble: Ensemble) -> tuple[Atoms, Ensemble]:
    """``atoms`` with the velocities, and ``ensemble`` with the time step, that a run begins with.

    Of what it returns it returns the same.
    """
    ensemble = replace(ensemble, time_step_fs=ensemble.step_fs(atoms))
    atoms = atoms.copy()
    if not atoms.get_momenta().any():
        thermalise(atoms, ensemble.temperature_K[0], np.random.default_rng(ensemble.seed))
    if ensemble.ensemble == "nve" and not atoms.constraints:
        at_rest(atoms)
    return atoms, ensemble


def steps_of(
    force_field: ForceField, atoms: Atoms, ensemble: Ensemble, n_steps: int, every: int
) -> Iterator[Row]:
    """The states of a run one by one, from the first on; none is kept."""
    run = force_field.simulation(atoms, ensemble, n_steps)
    while True:
        state, seen = run.state(), run.observables()
        yield Row(
            state.step,
            state.positions,
            state.velocities,
            float(seen.potential_energy[0]),
            state.cell[0],
            float(seen.pressure_GPa[0]),
        )
        if state.step >= n_steps:
            return
        run.advance(min(every, n_steps - state.step))


def _check(row: Row, first: Atoms, ensemble: Ensemble) -> None:
    parts: list[Array | float] = [row.positions, row.velocities, row.potential]
    if ensemble.ensemble == "npt":
        parts += [row.cell, row.pressure_GPa]
    if not all(np.isfinite(part).all() for part in parts):
        raise DynamicsError("positions, velocities, energy or pressure are not finite")
    before, now = abs(first.cell.volume), abs(float(np.linalg.det(row.cell)))
    if ensemble.ensemble == "npt" and not before / _BURST < now < before * _BURST:
        raise DynamicsError(
            "the cell burst" if now > before else "the cell collapsed",
            expected=f"a volume near {before:.0f} Å³",
            found=f"{now:.0f} Å³ at step {row.step}",
        )


def _recorded(
    atoms: Atoms, ensemble: Ensemble, rows: list[Row], n_steps: int, why: str
) -> Trajectory:
    done = rows[-1].step if rows else 0
    step_fs, is_npt = ensemble.step_fs(atoms), ensemble.ensemble == "npt"
    kept = rows if is_npt else []
    return Trajectory(
        atoms,
        ensemble,
        step_fs,
        done,
        not why and done >= n_steps,
        np.array([1e-3 * step_fs * row.step for row in rows]),
        np.array([row.positions for row in rows]).reshape(-1, len(atoms), 3),
        np.array([row.velocities for row in rows]).reshape(-1, len(atoms), 3),
        np.array([row.potential for row in rows]),
        why,
        np.array([row.cell for row in kept]).reshape(-1, 3, 3),
        np.array([row.pressure_GPa for row in kept]),
    )


def stays_up(
    force_field: ForceField, atoms: Atoms, temperature_K: float, n_steps: int, seed: int
) -> dict[str, float]:
    """How a short run ends: ``md_steps`` of ``n_steps`` at constant energy, and its mean T in K.

    As many steps with a thermostat of 20/ps come before, from twice the temperature: half of it
    goes into the potential energy of a structure that was relaxed.
    """
    start: Atoms = atoms.copy()
    thermalise(start, 2.0 * temperature_K, np.random.default_rng(seed))
    at_rest(start)
    before = Ensemble(
        ensemble="nvt", temperature_K=(temperature_K,), friction_per_ps=20.0, seed=seed
    )
    run = simulate(force_field, start, before, n_steps, n_steps)
    if not run.completed:
        return {"md_steps": 0.0, "md_temperature_K": 0.0}
    after = replace(before, ensemble="nve")
    run = simulate(force_field, run.frame(-1), after, n_steps, min(10, n_steps))
    mean = float(run.temperatures.mean()) if len(run.temperatures) else 0.0
    return {"md_steps": float(run.n_steps), "md_temperature_K": mean}


def ms_per_step(
    force_field: ForceField,
    atoms: Atoms,
    temperature_K: float = 300.0,
    *,
    time_step_fs: float | None = None,
    seconds: float = 0.2,
    samples: int = 3,
    in_ase: bool = False,
) -> float:
    """Median wall-clock time (ms) of a step at constant energy, of samples of about ``seconds``.

    A first step, in which kernels may be compiled, does not count. Then 1, 2, 4, ... steps are
    timed until they fill a sample. A student too runs through ASE if ``in_ase``.

    Raises
    ------
    DistillerError
        The force field breaks. Heat alone does not raise it.
    """
    ensemble = Ensemble(
        temperature_K=(temperature_K,), time_step_fs=time_step_fs, max_temperature_K=np.inf
    )
    atoms = atoms.copy()
    thermalise(atoms, temperature_K, np.random.default_rng(0))
    run = (
        AseSimulation(atoms, force_field.calculator, ensemble)
        if in_ase
        else force_field.simulation(atoms, ensemble)
    )
    run.advance(1)
    n = 1
    while (first := _seconds(run, n)) < seconds and n < _LONGEST:
        n *= 2
    return 1e3 / n * statistics.median([first, *(_seconds(run, n) for _ in range(samples - 1))])


def _seconds(run: Simulation | AseSimulation, n_steps: int) -> float:
    """Time of ``n_steps``; ``advance`` ends when the device has ended."""
    began = time.perf_counter()
    run.advance(n_steps)
    return time.perf_counter() - began
