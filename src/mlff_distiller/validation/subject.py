"""What is validated: a force field in one structure, and the runs that several checks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from ase import Atoms

from mlff_distiller.md.ensemble import Ensemble, seeds_of
from mlff_distiller.md.record import ForceField, OnStep, Trajectory, simulate
from mlff_distiller.structure import constraints_of, default_time_step_fs
from mlff_distiller.validation.accuracy import Answers, Compared, answers
from mlff_distiller.validation.kinds import Kind, kind_of
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.verdict import Finding

OnProgress = Callable[[str, int, int, str], None]
"""Called with stage, done, total and a few words of news."""


@dataclass(eq=False)
class Subject:
    """Runs are made when a check first asks for them, and kept.

    At each temperature an equilibration with Langevin's thermostat comes first. From its end one
    run goes on at constant energy, and another with the thermostat, which equilibrates once more
    and is the one that averages are taken over.
    """

    force_field: ForceField
    atoms: Atoms
    """Without constraints, which hold in the runs only; see ``start``."""
    settings: ValidationSettings
    """With the time step and the kind that ``atoms`` suggest, where none was given."""
    teacher: ForceField | None = None
    training: Sequence[Atoms] = ()
    test: Sequence[Atoms] = ()
    """Labelled structures that did not train."""
    score: Callable[[Sequence[Atoms]], tuple[list[Atoms], Answers]] | None = None
    """The structures that the teacher has an answer for, and its answers; None: ask ``teacher``."""
    on_progress: OnProgress = lambda stage, done, total, news: None
    simulate: Callable[[ForceField, Atoms, Ensemble, int, int, OnStep], Trajectory] = simulate
    """What runs dynamics; see `Partial.run`."""
    findings: dict[str, Finding] = field(default_factory=dict)
    """Findings of the checks made so far."""
    npt: Trajectory | None = None
    """The run at constant pressure, once it is made."""
    compared: dict[str, Compared] = field(default_factory=dict)
    """Frames that both have answered: ``test`` and ``student_md``."""

    def __post_init__(self) -> None:
        self.start = self.atoms.copy()
        """Where runs begin, with the constraints that are honoured."""
        self.start.set_constraint(constraints_of(self.atoms))
        self.atoms = self.start.copy()
        self.atoms.set_constraint()
        settings = self.settings
        self.settings = replace(
            settings,
            time_step_fs=settings.time_step_fs or default_time_step_fs(self.atoms),
            kind=settings.kind or kind_of(self.atoms),
        )

    @property
    def kind(self) -> Kind:
        return self.settings.kind or kind_of(self.atoms)

    @property
    def reference(self) -> ForceField:
        """The teacher, of checks that apply only where there is one."""
        if self.teacher is None:
            raise ValueError("there is no teacher")
        return self.teacher

    def progress(self, stage: str) -> OnStep:
        return lambda done, total: self.on_progress(stage, done, total, "")

    @cached_property
    def equilibrations(self) -> list[Trajectory]:
        """One at each temperature."""
        return [
            self.simulate(
                self.force_field,
                self.start,
                self.thermostat(kelvin, k),
                max(self.steps(self.settings.equilibration_ps), self.settings.record_every),
                self.settings.record_every,
                self.progress(f"{kelvin:g} K, equilibration"),
            )
            for k, kelvin in enumerate(self.settings.temperature_K)
        ]

    @cached_property
    def nve(self) -> list[Trajectory | None]:
        """Runs at constant energy; None where the equilibration broke."""
        n, every = self.steps(self.settings.constant_energy_ps), self.settings.record_every
        return [
            self.simulate(
                self.force_field,
                before.frame(-1),
                replace(before.ensemble, ensemble="nve"),
                max(n, every),
                every,
                self.progress(f"{before.temperature_K:g} K, constant energy"),
            )
            if before.completed
            else None
            for before in self.equilibrations
        ]

    @cached_property
    def nvt(self) -> list[Trajectory]:
        """Runs with a thermostat, equilibrated; the broken equilibration where there is one."""
        return [
            self.thermostatted(self.force_field, before.frame(-1), before.temperature_K, 500 + k)
            if before.completed
            else before
            for k, before in enumerate(self.equilibrations)
        ]

    @cached_property
    def teacher_run(self) -> Trajectory:
        """The teacher's run with a thermostat at the first temperature, equilibrated."""
        kelvin = self.settings.temperature_K[0]
        return self.thermostatted(self.reference, self.start, kelvin, 1000, n_before=2)

    @cached_property
    def own_frames(self) -> list[Atoms]:
        """Frames of the force field's dynamics at the first temperature, at constant energy.

        Where it broke, they lead up to the break.
        """
        run = self.nve[0] if self.nve[0] is not None else self.equilibrations[0]
        return some_frames(run, self.settings.rescored, skip_first=True)

    def scored(self, frames: Sequence[Atoms]) -> tuple[list[Atoms], Answers]:
        """Those of ``frames`` that the teacher has an answer for, and its answers."""
        if self.score is not None:
            return self.score(frames)
        return list(frames), answers(self.reference, frames)

    @cached_property
    def seen(self) -> list[Atoms]:
        """Structures whose distances between atoms are known to occur: trained on, or sampled.

        Where the run broke, distances are those of the break, and the structure stands for it.
        """
        run = self.nvt[0]
        return [*self.training, *(some_frames(run, 20) if run.completed else [self.atoms])]

    def thermostatted(
        self, force_field: ForceField, atoms: Atoms, kelvin: float, stream: int, n_before: int = 1
    ) -> Trajectory:
        """A run of ``time_ps`` after ``n_before`` equilibrations, or all of it where it broke."""
        before = n_before * self.steps(self.settings.equilibration_ps)
        n, every = max(self.steps(self.settings.time_ps), 1), self.settings.record_every
        whole = self.simulate(
            force_field,
            atoms,
            self.thermostat(kelvin, stream),
            before + n,
            every,
            self.progress(f"{kelvin:g} K, {force_field.name}"),
        )
        return whole.part(before // every, len(whole.time_ps)) if whole.completed else whole

    def thermostat(self, kelvin: float, stream: int) -> Ensemble:
        """Langevin's; runs of different ``stream`` draw different random numbers."""
        return Ensemble(
            ensemble="nvt",
            temperature_K=(kelvin,),
            time_step_fs=self.settings.time_step_fs,
            friction_per_ps=self.settings.friction_per_ps,
            seed=int(seeds_of(self.settings.seed, stream + 1)[stream]),
        )

    def steps(self, time_ps: float) -> int:
        """Steps in ``time_ps``, a whole number of records."""
        step, every = self.settings.time_step_fs or 1.0, self.settings.record_every
        return round(1e3 * time_ps / step) // every * every

    def limit(self, name: str) -> float:
        """The limit of a check."""
        return self.settings.limit(name)


def some_frames(trajectory: Trajectory, n: int, *, skip_first: bool = False) -> list[Atoms]:
    """At most ``n``, evenly spaced, with momenta."""
    last = len(trajectory.time_ps) - 1
    first = min(1, last) if skip_first else 0
    if last < 0:
        return []
    places = np.unique(np.linspace(first, last, n).round().astype(int))
    return [trajectory.frame(k) for k in places.tolist()]
