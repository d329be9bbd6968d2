"""Segments of walkers: each on its own in ASE's loop, or those of a student as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.errors import DistillerError, DynamicsError
from mlff_distiller.md.ase import AseSimulation
from mlff_distiller.md.compressibility import compressibility
from mlff_distiller.md.ensemble import Ensemble, too_hot_K
from mlff_distiller.md.record import ForceField
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.sampling.walkers import DynamicsSettings, Walker
from mlff_distiller.structure import bare, degrees_of_freedom, shortest_distance, thermalise
from mlff_distiller.students import Student

_LOOK_FS = 5.0
_QUIET_LOOKS = 4
_BAROSTAT = 1e4
"""fs times the friction: the cell answers ten times as slowly as velocities do."""


def run_segments(
    group: Sequence[Walker], calculator: Calculator, settings: DynamicsSettings, seed: int
) -> list[tuple[Atoms | None, float]]:
    """`run_segment` of each walker; where ``calculator`` is a student, of all at once.

    All run as one batch on the student's device, with other random numbers than alone. Where a
    walker breaks, each runs on its own.
    """
    student = ForceField("student", calculator).student
    alike = len({_has_pressure(walker.atoms) for walker in group}) == 1
    if student is not None and alike and len(group) > 1:
        try:
            return _at_once(group, calculator, student, settings, seed)
        except DistillerError:
            pass
    return [run_segment(walker, calculator, settings, seed) for walker in group]


def _at_once(
    group: Sequence[Walker],
    calculator: Calculator,
    student: Student,
    settings: DynamicsSettings,
    seed: int,
) -> list[tuple[Atoms | None, float]]:
    """Where every walker is at the end of its reach; `DynamicsError` if one of them breaks."""
    frames, key = [], []
    for walker in group:
        atoms = walker.atoms.copy()
        thermalise(atoms, walker.temperature_K, _random(walker, seed))
        frames.append(atoms)
        key += [walker.number, walker.segment]
        walker.failure = ""
    one = _ensemble(group[0], calculator, settings)
    ensemble = replace(
        one,
        temperature_K=tuple(walker.temperature_K for walker in group),
        pressure_GPa=tuple(walker.pressure_GPa for walker in group),
        max_temperature_K=max(_too_hot(walker, settings) for walker in group),
        time_step_fs=one.step_fs(*frames),
        seed=_number_of(seed, *key, group[0].stream),
    )
    run = Simulation(choose_engine(student, frames), frames, ensemble)
    every = max(1, round(_LOOK_FS / run.time_step_fs))
    look_fs = every * run.time_step_fs
    blocks = [max(1, round(walker.reach_fs / look_fs)) for walker in group]
    bounds = np.cumsum([0, *map(len, frames)])
    ends: list[tuple[Atoms | None, float]] = [(None, 0.0)] * len(group)
    for block in range(1, max(blocks) + 1):
        run.advance(every)
        if not np.abs(run.engine.forces.numpy()).max() < settings.max_force_eV_per_A:
            raise DynamicsError("a walker has broken")
        if block not in blocks:
            continue
        state = run.state()
        for k, atoms in enumerate(frames):
            if blocks[k] == block:
                whole = bare(atoms)
                whole.set_cell(state.cell[k])
                whole.positions[:] = state.positions[bounds[k] : bounds[k + 1]]
                if _too_close(whole, settings):
                    raise DynamicsError("a walker has broken")
                ends[k] = (whole, block * look_fs)
    return ends


def _number_of(seed: int, *key: int) -> int:
    """A random number's seed that belongs to these alone."""
    words = np.random.SeedSequence(seed, spawn_key=(2, *key)).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


def _random(walker: Walker, seed: int, *, until_decorrelated: bool = False) -> np.random.Generator:
    of_walker = (walker.number, walker.segment, walker.stream, int(until_decorrelated))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=of_walker))


def run_segment(
    walker: Walker,
    calculator: Calculator,
    settings: DynamicsSettings,
    seed: int,
    *,
    until_decorrelated: bool = False,
) -> tuple[Atoms | None, float]:
    """The structure at the end of the walker's next segment, and its duration in fs.

    It lasts ``walker.reach_fs``, or less if it is to end once ``until_decorrelated``. If the
    structure breaks, the last whole one is returned; None if there is none.
    """
    rng = _random(walker, seed, until_decorrelated=until_decorrelated)
    atoms, walker.failure = walker.atoms.copy(), ""
    thermalise(atoms, walker.temperature_K, rng)
    quiet = 0
    whole: tuple[Atoms | None, float] = (None, 0.0)
    try:
        run = AseSimulation(atoms, calculator, _ensemble(walker, calculator, settings), rng)
        time_step = run.time_step_fs
        every = max(1, round(_LOOK_FS / time_step))
        first = atoms.get_forces()
        for block in range(1, max(1, round(walker.reach_fs / (every * time_step))) + 1):
            run.advance(every)
            if _broken(atoms, settings):
                break
            elapsed = block * every * time_step
            forces = atoms.get_forces()
            whole = (bare(atoms), elapsed)
            quiet = quiet + 1 if abs(_correlation(first, forces)) < settings.decorrelation else 0
            if until_decorrelated and elapsed >= settings.shortest_fs and quiet >= _QUIET_LOOKS:
                break
    except DynamicsError:
        pass  # it has blown up
    except DistillerError as error:  # a calculator that meets NaN, or a teacher that fails
        walker.failure = error.problem
    finally:
        atoms.calc = None
    return whole


def _ensemble(walker: Walker, calculator: Calculator, settings: DynamicsSettings) -> Ensemble:
    pressure: dict[str, Any] = {}
    if settings.ensemble == "npt" and _has_pressure(walker.atoms):
        field = ForceField("", calculator)
        pressure = {
            "pressure_GPa": (walker.pressure_GPa,),
            "barostat_time_fs": _BAROSTAT / settings.friction_per_ps,
            "compressibility_per_GPa": compressibility(field, walker.atoms),
        }
    return Ensemble(
        ensemble="npt" if pressure else "nvt",
        temperature_K=(walker.temperature_K,),
        time_step_fs=settings.time_step_fs,
        friction_per_ps=settings.friction_per_ps,
        max_temperature_K=_too_hot(walker, settings),
        **pressure,
    )


def _has_pressure(atoms: Atoms) -> bool:
    """Whether its cell may change: not where atoms are held, which would move."""
    return bool(atoms.pbc.all()) and not atoms.constraints


def _too_hot(walker: Walker, settings: DynamicsSettings) -> float:
    n_degrees = float(degrees_of_freedom(walker.atoms).sum())
    return float(too_hot_K(walker.temperature_K, n_degrees, settings.explosion_factor))


def _broken(atoms: Atoms, settings: DynamicsSettings) -> bool:
    if not np.linalg.norm(atoms.get_forces(), axis=1).max() < settings.max_force_eV_per_A:
        return True
    return _too_close(atoms, settings)


def _too_close(atoms: Atoms, settings: DynamicsSettings) -> bool:
    return shortest_distance(atoms, 2 * settings.min_distance_A) < settings.min_distance_A


def _correlation(first: np.ndarray, forces: np.ndarray) -> float:
    norm = float(np.linalg.norm(first) * np.linalg.norm(forces))
    return float((first * forces).sum()) / max(norm, 1e-12)
