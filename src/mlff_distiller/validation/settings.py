"""How a force field is validated."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.kinds import Kind

Positive = Annotated[float, Field(gt=0)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Limits:
    """What a student must reach to be approved by ``distill``."""

    forces_fidelity: Annotated[float, Field(gt=0, lt=1)] = CRITERIA["test_forces_fidelity"].limit
    nve_drift_meV_per_atom_per_ps: Positive = CRITERIA["nve_drift_meV_per_atom_per_ps"].limit
    speedup: Positive = CRITERIA["speedup"].limit

    def by_check(self) -> dict[str, float]:
        """The same by the names of `CRITERIA`, which has one fidelity for each set of frames."""
        return {
            "test_forces_fidelity": self.forces_fidelity,
            "student_md_forces_fidelity": self.forces_fidelity,
            "nve_drift_meV_per_atom_per_ps": self.nve_drift_meV_per_atom_per_ps,
            "speedup": self.speedup,
        }


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """How ``distill`` tests its student. None: from the data.

    ``temperature_K`` None is the highest sampling temperature; ``time_step_fs`` None is 0.5 with
    hydrogen and 1 without. ``time_ps`` is the length of the run at constant energy.
    """

    temperature_K: Positive | None = None
    time_ps: Positive = 5.0
    equilibration_ps: Annotated[float, Field(ge=0)] = 1.0
    time_step_fs: Positive | None = None
    n_frames: Annotated[int, Field(ge=2)] = 20
    speed_sizes: Sizes = (64, 216, 512)
    limits: Limits = field(default_factory=Limits)


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class ValidationSettings:
    """None: from the structure.

    At every temperature an equilibration with Langevin's thermostat, ``equilibration_ps`` long, is
    followed by a run at constant energy, ``nve_ps`` long (half of ``time_ps`` if that is None), and
    by one with the thermostat, which equilibrates once more and lasts ``time_ps``. The teacher runs
    at the first temperature. There crystals and liquids run at ``pressure_GPa`` too, as long (the
    teacher half as long if not ``teacher_npt_ps``); with None nothing does.
    ``limits`` replace those of `CRITERIA`, by name.
    """

    temperature_K: Annotated[tuple[Positive, ...], Field(min_length=1)] = (300.0,)
    time_ps: Positive = 10.0
    nve_ps: Positive | None = None
    equilibration_ps: Annotated[float, Field(ge=0)] = 1.0
    time_step_fs: Positive | None = None
    friction_per_ps: Positive = 5.0
    pressure_GPa: float | None = 0.0
    teacher_npt_ps: Positive | None = None
    record_every: Annotated[int, Field(ge=1)] = 4
    """Steps between recorded frames: at 0.5 fs with hydrogen they see up to 8,000 cm⁻¹."""
    rattle_A: Positive = 0.05
    """Displacements of the structures at which laws are tested."""
    large_atoms: Annotated[int, Field(ge=1)] = 1000
    """Size of the copy whose energy's digits are looked at."""
    rescored: Annotated[int, Field(ge=1)] = 20
    """Frames of the dynamics that the teacher scores."""
    speed_sizes: Sizes = (64, 216, 512)
    """Numbers of atoms at which the teacher and the student are timed."""
    memory_steps: Annotated[int, Field(ge=1)] = 2000
    """Steps over which memory is watched; 500 are needed."""
    kind: Kind | None = None
    limits: dict[str, float] = field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def constant_energy_ps(self) -> float:
        """Length of the run at constant energy."""
        return self.nve_ps or 0.5 * self.time_ps

    def limit(self, name: str) -> float:
        """The limit of a check."""
        return self.limits.get(name, CRITERIA[name].limit)
