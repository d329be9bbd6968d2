"""What a simulation is to do: ensemble, temperature, pressure, time step; when it has failed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ase import Atoms
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.errors import DynamicsError
from mlff_distiller.structure import default_time_step_fs

Positive = Annotated[float, Field(gt=0)]
EXPLOSION = 10.0
"""Times the target temperature: what is hotter has blown up."""


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class Ensemble:
    """Settings of the dynamics; ``kernels/dynamics`` has the equations.

    ``temperature_K`` and ``pressure_GPa`` are of all systems, or one of each. The temperature is
    that of new velocities as well: they are drawn where the structure has none.

    ``thermostat`` acts in nvt and npt: ``langevin`` (BAOAB) with ``friction_per_ps`` reaches every
    corner of a system, and slows down diffusion; ``bussi`` rescales all velocities alike within
    ``thermostat_time_fs``, and hardly disturbs the motion.

    ``pressure_coupling`` lets npt change the size of the cell (``isotropic``), its Cartesian
    extents (``anisotropic``) or all of it (``triclinic``), within ``barostat_time_fs`` if
    ``compressibility_per_GPa`` is right (solids 0.01, water 0.45); averages do not depend on it.

    ``time_step_fs`` None is 0.5 with hydrogen and 1 without. A run stops where the temperature
    exceeds ``max_temperature_K`` (None: ten times the target, or the beginning's if that is more)
    or an atom moves by more than ``max_step_A`` in one step. ``skin_A`` None is 1.0 for compiled
    kernels and 0.5 for PyTorch. System k draws from ``seed + k``.
    """

    ensemble: Literal["nve", "nvt", "npt"] = "nve"
    temperature_K: Annotated[
        tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(_several), Field(min_length=1)
    ] = (300.0,)
    pressure_GPa: Annotated[tuple[float, ...], BeforeValidator(_several), Field(min_length=1)] = (
        0.0,
    )
    time_step_fs: Positive | None = None
    thermostat: Literal["langevin", "bussi"] = "langevin"
    friction_per_ps: Positive = 1.0
    thermostat_time_fs: Positive = 100.0
    pressure_coupling: Literal["isotropic", "anisotropic", "triclinic"] = "isotropic"
    barostat_time_fs: Positive = 1000.0
    compressibility_per_GPa: Positive = 0.01
    max_temperature_K: Positive | None = None
    max_step_A: Positive = 0.5
    skin_A: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def step_fs(self, *frames: Atoms) -> float:
        """The time step, or what the hydrogen of ``frames``, or its absence, allows."""
        return self.time_step_fs or min(map(default_time_step_fs, frames), default=1.0)

    def explodes_at_K(self, first_K: float) -> float:
        """The temperature beyond which a run that began at ``first_K`` has blown up."""
        return self.max_temperature_K or EXPLOSION * max(300.0, first_K, *self.temperature_K)

    @property
    def has_langevin(self) -> bool:
        return self.ensemble != "nve" and self.thermostat == "langevin"

    @property
    def has_bussi(self) -> bool:
        return self.ensemble != "nve" and self.thermostat == "bussi"


def explosion(
    step: int, step_fs: float, *, expected: str, found: str, remedy: str
) -> DynamicsError:
    """The error of a run that has blown up."""
    return DynamicsError(
        f"the simulation has blown up near step {step} ({step * step_fs:g} fs): {found}",
        expected=expected,
        remedy=remedy,
    )
