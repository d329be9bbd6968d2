"""How a force field is validated."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.validation.kinds import Kind

Positive = Annotated[float, Field(gt=0)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class ValidationSettings:
    """None: from the structure.

    At every temperature a run with Langevin's thermostat, of ``equilibration_ps`` and ``time_ps``,
    is followed by one of ``time_ps`` at constant energy. The teacher runs at the first temperature.
    There crystals and liquids run at ``pressure_GPa`` too, as long (the teacher half as long if not
    ``teacher_npt_ps``); with None nothing does.
    ``limits`` replace those of `CRITERIA`, by name.
    """

    temperature_K: Annotated[tuple[Positive, ...], Field(min_length=1)] = (300.0,)
    time_ps: Positive = 10.0
    equilibration_ps: Annotated[float, Field(ge=0)] = 2.0
    time_step_fs: Positive | None = None
    friction_per_ps: Positive = 5.0
    pressure_GPa: float | None = 0.0
    teacher_npt_ps: Positive | None = None
    record_every: Annotated[int, Field(ge=1)] = 4
    """Steps between recorded frames: at 0.5 fs with hydrogen they see up to 8,000 cm⁻¹."""
    rattle_A: Positive = 0.05
    """Displacements of the structures at which laws are tested."""
    large_atoms: Annotated[int, Field(ge=1)] = 1000
    """Of the copy whose energy's digits are looked at."""
    rescored: Annotated[int, Field(ge=1)] = 20
    """Frames of the dynamics that the teacher scores."""
    memory_steps: Annotated[int, Field(ge=1)] = 2000
    """Over which memory is watched; 500 are needed."""
    kind: Kind | None = None
    limits: dict[str, float] = field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0
