"""Walkers: trajectories that are cut into segments, and how they walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Literal

from ase import Atoms
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.dataset import structure_hash

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
