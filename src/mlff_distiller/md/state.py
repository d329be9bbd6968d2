"""What a simulation is and shows at one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observables:
    """Values (n_systems,), energies in eV. Pressure and volume are NaN without a volume."""

    potential_energy: Array
    kinetic_energy: Array
    temperature_K: Array
    pressure_GPa: Array
    volume: Array  # Å³
    stress: Array  # (n_systems, 3, 3) eV/Å³, of the potential alone


@dataclass(frozen=True)
class State:
    """All that the next step depends on."""

    step: int
    positions: Array  # (n_atoms, 3) Å, not wrapped
    velocities: Array  # (n_atoms, 3) Å / ASE's unit of time
    cell: Array  # (n_systems, 3, 3) Å
    listed: tuple[Array, Array] | None = None
    """Positions and cell when neighbours were last found, where forces depend on them."""
    seeds: NDArray[np.uint64] | None = None
    """One for each system, or None to go on with those in use."""
