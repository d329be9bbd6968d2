"""The raw series behind the numbers of ``report.json``, from which the report draws its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _empty() -> Array:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class ParitySet:
    """Teacher and student on the same frames. NaN marks what the teacher does not give."""

    energy_teacher: Array = field(default_factory=_empty)  # (n_frames,) eV/atom, mean removed
    energy_student: Array = field(default_factory=_empty)  # (n_frames,) eV/atom, mean removed
    forces_teacher: Array = field(default_factory=_empty)  # (3 * sum(n_atoms),) eV/Å
    forces_student: Array = field(default_factory=_empty)  # (3 * sum(n_atoms),) eV/Å
    stress_teacher: Array = field(default_factory=_empty)  # (any,) eV/Å³
    stress_student: Array = field(default_factory=_empty)  # (any,) eV/Å³
    n_atoms: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    symbols: Sequence[str] = ()  # (sum(n_atoms),) one chemical symbol per atom


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One constant-energy run of the student."""

    time_ps: Array  # (n,)
    total_energy_meV_per_atom: Array  # (n,) relative to the first
    temperature_K: Array = field(default_factory=_empty)  # (n,)
    drift_meV_per_atom_per_ps: float | None = None


@dataclass(frozen=True, eq=False)
class Sampling:
    """Every label the teacher gave: one entry each in every field."""

    energy_meV_per_atom: Array  # (n_labels,) relative to the lowest
    max_force: Array  # (n_labels,) eV/Å
    branch: Sequence[object]
    generation: Array  # (n_labels,) NaN where the source knows no generations
    source: Sequence[str]
    split: Sequence[str]  # train, validation or test


@dataclass(frozen=True, eq=False)
class Curve:
    """A function the student gave and, if it was computed, the teacher's."""

    x: Array  # (n,)
    student: Array  # (n,)
    teacher: Array | None = None  # (n,)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The series behind the numbers of ``report.json``; what was not measured stays empty."""

    parity: Mapping[str, ParitySet] = field(default_factory=dict)  # keys: test, student_md
    learning: Sequence[Mapping[str, Any]] = ()  # rows of the training log, one an epoch
    trajectory: Trajectory | None = None
    sampling: Sampling | None = None
    rdf: Curve | None = None  # x: distance in Å
    msd: Curve | None = None  # x: time in ps; Å²
    rounds: Sequence[Mapping[str, Any]] = ()  # rows of the log, one a round of active learning
