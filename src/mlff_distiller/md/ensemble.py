"""What a simulation is to do: ensemble, temperature, pressure, time step; when it has failed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from scipy.stats import chi2

from mlff_distiller.errors import DynamicsError
from mlff_distiller.structure import default_time_step_fs

Positive = Annotated[float, Field(gt=0)]
EXPLOSION = 10.0
"""Times the target temperature: what is hotter has blown up."""
_CHANCE = 1e-18
"""That a look meets what no run should: few atoms reach ten times the target now and then."""


def _several(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def _drawn() -> int:
    return secrets.randbits(63)


def seeds_of(seed: int, n: int) -> NDArray[np.uint64]:
    """Seeds of ``n`` systems or runs: ``seed`` itself, then numbers that a hash makes of it.

    The k-th does not depend on ``n``. Those of neighbouring seeds have nothing in common, as
    ``seed + k`` would have.
    """
    others = np.random.SeedSequence(seed, spawn_key=(0,)).generate_state(n, np.uint64)
    return np.array([seed, *(others[: n - 1] >> np.uint64(1))], dtype=np.uint64)[:n]


@validated(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
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
    kernels and 0.5 for PyTorch.

    ``seed`` None draws one. Runs of one seed have the same random forces, and a solid with a
    Langevin thermostat forgets how it began: such runs end up on one and the same trajectory. So a
    seed is for repeating a run. System k has the k-th of ``seeds_of(seed, n)``.
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
    max_temperature_K: Annotated[float, Field(gt=0, allow_inf_nan=True)] | None = None
    max_step_A: Positive = 0.5
    skin_A: Positive | None = None
    seed: Annotated[
        int,
        BeforeValidator(lambda seed: _drawn() if seed is None else seed),
        Field(ge=0, lt=2**63),
    ] = field(default_factory=_drawn)

    def step_fs(self, *frames: Atoms) -> float:
        """The time step, or what the hydrogen of ``frames``, or its absence, allows."""
        return self.time_step_fs or min(map(default_time_step_fs, frames), default=1.0)

    def explodes_at_K(
        self, first_K: float, n_degrees: float | NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The temperature beyond which a run that began at ``first_K`` has blown up.

        Of systems with ``n_degrees`` of freedom each; none should be without.
        """
        if self.max_temperature_K is not None:
            return np.broadcast_to(self.max_temperature_K, np.shape(n_degrees))
        return too_hot_K(max(300.0, first_K, *self.temperature_K), n_degrees)

    @property
    def has_langevin(self) -> bool:
        return self.ensemble != "nve" and self.thermostat == "langevin"

    @property
    def has_bussi(self) -> bool:
        return self.ensemble != "nve" and self.thermostat == "bussi"


def too_hot_K(
    temperature_K: float, n_degrees: float | NDArray[np.float64], factor: float = EXPLOSION
) -> NDArray[np.float64]:
    """``factor`` times ``temperature_K``, or what a look at equilibrium hardly ever meets.

    The kinetic energy of f degrees of freedom is kT/2 times a chi-squared deviate of f.
    """
    by_chance = chi2.isf(_CHANCE, n_degrees) / np.maximum(n_degrees, 1.0)
    return np.asarray(temperature_K * np.fmax(factor, by_chance))


class Explosion(DynamicsError):
    """A run has blown up."""


def explosion(step: int, step_fs: float, *, expected: str, found: str, remedy: str) -> Explosion:
    """The error of a run that has blown up."""
    return Explosion(
        f"the simulation has blown up near step {step} ({step * step_fs:g} fs): {found}",
        expected=expected,
        remedy=remedy,
    )
