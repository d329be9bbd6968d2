"""What a validation will cost on this machine, before it starts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ase import Atoms

from mlff_distiller.md.record import ForceField, ms_per_step
from mlff_distiller.validation.remembering import unremembered
from mlff_distiller.validation.subject import Subject

_STATIC = 400
"""Evaluations of the teacher outside its dynamics: relaxations, strained cells, pairs, phonons."""
_MOVED_A = 0.01


@dataclass(frozen=True)
class Price:
    """Evaluations of the teacher and steps of the force field, with the seconds each takes."""

    evaluations: int
    evaluation_s: float
    steps: int
    step_s: float

    @property
    def seconds(self) -> float:
        """In all, on this machine as busy as it is."""
        return self.evaluations * self.evaluation_s + self.steps * self.step_s

    def words(self, subject: Subject) -> str:
        """For people."""
        parts = [
            f"{self.steps:,} steps of {subject.force_field.name} at {time_in_words(self.step_s)}"
        ]
        if subject.teacher is not None:
            asked = f"{self.evaluations:,} evaluations of {subject.teacher.name}"
            parts.append(f"{asked} at {time_in_words(self.evaluation_s)}")
        return f"about {time_in_words(self.seconds)}: {' and '.join(parts)}"


def price(subject: Subject, profile: str, evaluation_s: float) -> Price:
    """Measured with some steps; the teacher takes ``evaluation_s``. Counts are near, not exact."""
    settings, steps = subject.settings, subject.steps
    before, n = steps(settings.equilibration_ps), len(settings.temperature_K)
    own = n * (before + steps(settings.constant_energy_ps))
    asked = settings.rescored
    if profile == "full":
        long = steps(settings.time_ps)
        own += n * (before + long) + settings.memory_steps
        asked += 2 * before + long + _STATIC
        if subject.kind in ("molecule", "liquid"):
            asked += 6 * len(subject.atoms)
        if subject.kind in ("crystal", "liquid") and settings.pressure_GPa is not None:
            own += 2 * before + long
            asked += 2 * before + steps(settings.teacher_npt_ps or 0.5 * settings.time_ps)
    mine = 1e-3 * ms_per_step(subject.force_field, subject.atoms, seconds=0.02, samples=1)
    return Price(0 if subject.teacher is None else asked, evaluation_s, own, mine)


def evaluation_seconds(teacher: ForceField | None, structure: Atoms) -> float:
    """What an evaluation takes, after another that warms up; 0 without a teacher."""
    if teacher is None:
        return 0.0
    bare = ForceField(teacher.name, unremembered(teacher.calculator))
    for seed in range(2):
        atoms = structure.copy()
        atoms.rattle(_MOVED_A, seed=seed)
        began = time.perf_counter()
        bare.forces(atoms)
    return time.perf_counter() - began


def time_in_words(seconds: float) -> str:
    """In the largest unit of which there are enough."""
    for size, unit, least in ((3600.0, "h", 2.0), (60.0, "min", 2.0), (1.0, "s", 1.0)):
        if seconds >= least * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms"
