"""Structures from molecular dynamics: the teacher's own, or the student's with the teacher judging.

A *walker* is a trajectory cut into segments. Each segment draws new velocities from the
Maxwell-Boltzmann distribution and runs Langevin dynamics (NVT), in a cell that follows the pressure
if that is wanted (NPT). The teacher's segments end when the structure has decorrelated from the one
they began with::

    |c(t)| < decorrelation for 20 fs,    c(t) = sum F(0)·F(t) / sqrt(sum |F(0)|^2 sum |F(t)|^2)

(20 fs, for a bond with hydrogen swings through zero every 5 fs) or after ``longest_fs``. The
student's steps cost next to nothing, so its segments last as long as it can be trusted. Only the
structures at the ends of segments are labelled. A segment depends on its first structure, on its
number and on where its walker began alone, so an interrupted walk continues from its last labelled
structure and repeats at most one segment. Walks from other structures, and the teacher's and the
student's from the same ones, have other random forces: with the same ones a solid ends up on one
and the same trajectory.

`walk` is the teacher's dynamics: valid, but every step costs an evaluation of the teacher.
`explore` is the student's: steps are free, the teacher is asked at the ends of segments only, and
a walker that has strayed where the student is wrong goes back to where it was still right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.dataset import structure_hash
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.errors import DistillerError, DynamicsError
from mlff_distiller.md.ase import AseSimulation
from mlff_distiller.md.compressibility import compressibility
from mlff_distiller.md.ensemble import Ensemble, too_hot_K
from mlff_distiller.md.record import ForceField
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.sampling.rattle import Labeler
from mlff_distiller.structure import bare, shortest_distance, thermalise
from mlff_distiller.students import Student

_LOOK_FS = 5.0
_QUIET_LOOKS = 4
_BAROSTAT = 1e4
"""fs times the friction: the cell answers ten times as slowly as velocities do."""

_FIRST_BRANCH = {"student": 100_000, "dynamics": 200_000}
"""Trees have the numbers below; every walker is a branch of its own, from first to last."""

Positive = Annotated[float, Field(gt=0)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class DynamicsSettings:
    """How walkers walk. Temperatures are those of ``sampling``.

    ``share`` is the part of the labels that the teacher's own dynamics gets.

    ``ensemble`` auto: ``distill`` takes npt for crystals and liquids, so that volumes are sampled
    as they will be met, and nvt for all else; ``sample`` takes nvt.
    ``time_step_fs`` None is 0.5 with hydrogen and 1 without. ``pressures_GPa`` are taken in turn,
    for NPT. A structure is taken for broken, and its segment ends before it, when two atoms are
    closer than ``min_distance_A``, a force exceeds ``max_force_eV_per_A`` or the temperature is
    ``explosion_factor`` times what it should be: sooner than a run would end, for such structures
    are not worth a label.
    """

    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ensemble: Literal["auto", "nvt", "npt"] = "auto"
    pressures_GPa: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0,)
    time_step_fs: Positive | None = None
    friction_per_ps: Positive = 10.0
    decorrelation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    shortest_fs: Positive = 10.0
    longest_fs: Positive = 200.0
    min_distance_A: Positive = 0.5
    max_force_eV_per_A: Positive = 30.0
    explosion_factor: Positive = 6.0


@dataclass
class Walker:
    """One trajectory: where it is, and how far it may go before the next label."""

    number: int
    seed_index: int
    temperature_K: float
    atoms: Atoms
    pressure_GPa: float = 0.0
    segment: int = 0
    reach_fs: float = 0.0
    """Longest duration of the next segment."""
    errors: list[float] = field(default_factory=list)
    """Relative force error of the student at the end of each segment; see `explore`."""
    failure: str = ""
    """What the calculator said when the last segment ended by its failure."""
    stream: int = 0
    """Tells its random numbers from those of walkers that began elsewhere."""


def walkers(
    seeds: Sequence[Atoms],
    temperature_K: Sequence[float],
    settings: DynamicsSettings,
    number: int | None = None,
) -> list[Walker]:
    """One for each seed, temperature and pressure, or ``number`` that take these in turn.

    The first few differ in all of these: of c conditions (temperature and pressure) and s seeds,
    the k-th walker gets condition ``k mod c`` and seed ``(k + k div lcm(c, s)) mod s``. The first
    ``c s`` walkers meet every pair once; then it begins again.
    """
    pressures = settings.pressures_GPa if settings.ensemble == "npt" else (0.0,)
    conditions = list(product(pressures, temperature_K))
    period = math.lcm(len(conditions), len(seeds))
    pairs = len(conditions) * len(seeds)
    group = []
    for k in range(pairs if number is None else number):
        pressure, temperature = conditions[k % len(conditions)]
        index = (k + k % pairs // period) % len(seeds)
        atoms = seeds[index].copy()
        walker = Walker(k, index, temperature, atoms, pressure, reach_fs=settings.shortest_fs)
        walker.stream = int(structure_hash(atoms)[:16], 16)
        group.append(walker)
    return group


def walk(
    group: Sequence[Walker],
    calculator: Calculator,
    label: Labeler,
    n_labels: int,
    settings: DynamicsSettings,
    seed: int = 0,
    known: Mapping[tuple[int, int], Atoms] | None = None,
    on_label: Callable[[int], None] = lambda n: None,
) -> int:
    """Dynamics by ``calculator`` (the teacher) until ``n_labels`` structures are labelled.

    Provenance: ``source`` (dynamics), ``seed``, ``branch``, ``walker``, ``segment``,
    ``temperature_K``, ``pressure_GPa``, ``segment_fs``. ``known`` gives the structures that an
    earlier call labelled, by walker and segment.
    """
    known = known or {}
    n, fruitless = 0, 0
    while n < n_labels:
        walker = min(group, key=lambda walker: walker.segment)
        walker.reach_fs = settings.longest_fs
        found = known.get((walker.number, walker.segment))
        if found is None:
            moved, lasted = run_segment(walker, calculator, settings, seed, until_decorrelated=True)
        else:
            moved, lasted = found, None
        origin = _origin(walker, "dynamics", lasted)
        walker.segment += 1
        [labels] = label([moved], [origin]) if moved is not None else [None]
        if labels is None or moved is None:
            # A teacher that fails may have to be started anew each time.
            fruitless += 5 if walker.failure else 1
            if fruitless >= 20 * len(group):
                raise DistillerError(
                    f"the teacher's dynamics stopped at {n} labels: every walker breaks down",
                    expected=f"{n_labels} labels",
                    found=walker.failure or None,
                    remedy="choose structures the teacher can evaluate"
                    if walker.failure
                    else "shorten dynamics.time_step_fs or lower the temperature",
                )
            continue
        walker.atoms, fruitless = moved, 0
        n += 1
        on_label(n)
    return n


def explore(
    group: Sequence[Walker],
    calculator: Calculator,
    label: Labeler,
    n_labels: int,
    settings: DynamicsSettings,
    tolerance: float,
    seed: int = 0,
    source: Mapping[str, Any] | None = None,
    on_label: Callable[[int], None] = lambda n: None,
) -> list[float]:
    """Dynamics by ``calculator`` (the student); the teacher labels where each segment ends.

    Returns, for each of about ``n_labels`` new labels, the student's relative force error::

        sum |F_student - F_teacher| / sum |F_teacher|

    (one minus the fidelity). A walker whose error is below ``tolerance`` goes on from there, and
    its next segment may be twice as long, up to ``longest_fs``; another goes back to where its
    segment began, and its next one may be half as long. All walkers move in turn and are labelled
    in one call of ``label``. ``source`` is added to the provenance.
    """
    errors: list[float] = []
    fruitless = 0
    while len(errors) < n_labels:
        moving = sorted(group, key=lambda walker: walker.segment)[: n_labels - len(errors)]
        frames, origins, movers, predictions = [], [], [], []
        ends = run_segments(moving, calculator, settings, seed)
        for walker, (moved, lasted) in zip(moving, ends, strict=True):
            origin = {**_origin(walker, "student", lasted), **(source or {})}
            walker.segment += 1
            if moved is None:
                walker.reach_fs = max(settings.shortest_fs, 0.5 * walker.reach_fs)
                continue
            moved.calc = calculator
            predictions.append(moved.get_forces())
            moved.calc = None
            frames.append(moved)
            origins.append(origin)
            movers.append(walker)
        answers = label(frames, origins) if frames else []
        before = len(errors)
        for walker, moved, predicted, answer in zip(
            movers, frames, predictions, answers, strict=True
        ):
            if answer is None:
                continue
            error = relative_error(predicted, answer["forces"])
            errors.append(error)
            walker.errors.append(error)
            if error < tolerance:
                walker.atoms = moved
                walker.reach_fs = min(settings.longest_fs, 2.0 * walker.reach_fs)
            else:
                walker.reach_fs = max(settings.shortest_fs, 0.5 * walker.reach_fs)
        on_label(len(errors))
        fruitless = fruitless + 1 if len(errors) == before else 0
        if fruitless >= 20:
            break  # the student's dynamics cannot take a step; the caller trains it further
    return errors


def relative_error(forces: np.ndarray, reference: np.ndarray) -> float:
    """``sum |F - F_ref| / sum |F_ref|`` over all components."""
    scale = float(np.abs(reference).sum())
    return float(np.abs(forces - reference).sum()) / max(scale, 1e-12)


def run_segments(
    group: Sequence[Walker], calculator: Calculator, settings: DynamicsSettings, seed: int
) -> list[tuple[Atoms | None, float]]:
    """`run_segment` of each walker; where ``calculator`` is a student, of all at once.

    All run as one batch on the student's device, with other random numbers than alone. Where a
    walker breaks, each runs on its own.
    """
    student = ForceField("student", calculator).student
    alike = len({bool(walker.atoms.pbc.all()) for walker in group}) == 1
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
    structure breaks, the last whole one is returned; None if there is no such.
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
    if settings.ensemble == "npt" and walker.atoms.pbc.all():
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


def _too_hot(walker: Walker, settings: DynamicsSettings) -> float:
    n_degrees = 3.0 * len(walker.atoms)
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


def _origin(walker: Walker, source: str, lasted_fs: float | None) -> dict[str, Any]:
    origin = {
        "source": source,
        "seed": walker.seed_index,
        "branch": _FIRST_BRANCH[source] + walker.number,
        "walker": walker.number,
        "segment": walker.segment,
        "temperature_K": walker.temperature_K,
        "pressure_GPa": walker.pressure_GPa,
    }
    return origin if lasted_fs is None else {**origin, "segment_fs": lasted_fs}
