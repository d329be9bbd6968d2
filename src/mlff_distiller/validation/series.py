"""What the report draws and the certificate would be too large for: energies over time, frames."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors

from mlff_distiller.validation.findings import plain
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.trajectory import Array, Trajectory

_MOST_POINTS = 2000
"""Points of one series: as many as a wide screen has columns."""
_MOST_FRAMES = 100
_MOST_ATOMS = 2000
"""Atoms that a browser draws smoothly."""
_MOST_PLACES = 100_000
"""Atoms times frames: 0.8 MB of a page."""
_OUTSIDE = 0.1
"""Fraction of a lattice vector that an atom may leave the cell by before it is wrapped."""


def series(nvt: Sequence[Trajectory | None], nve: Sequence[Trajectory | None]) -> dict[str, Any]:
    """``runs``, one entry per temperature, and ``movie``, None for too many atoms; fit for JSON.

    None stands for a run that was not made.
    """
    runs = [run for run in (*nvt, *nve) if run is not None]
    shown = next((run for run in runs if run.why), runs[0] if runs else None)
    return {
        "runs": [_entry(warm, free) for warm, free in zip(nvt, nve, strict=True) if warm or free],
        "movie": None if shown is None else movie(shown),
    }


def series_of(subject: Subject) -> dict[str, Any]:
    """The `series` of those runs that a check has asked for."""
    nothing = [None] * len(subject.settings.temperature_K)
    made = vars(subject)
    return series(made.get("nvt", nothing), made.get("nve", nothing))


def _entry(warm: Trajectory | None, free: Trajectory | None) -> dict[str, Any]:
    either = warm or free
    return {
        "target_K": either and either.temperature_K,
        "n_degrees": warm and warm.n_degrees,
        "nvt": warm and _columns(warm),
        "nve": free and _columns(free),
    }


def _columns(trajectory: Trajectory) -> dict[str, list[float | None]]:
    stride = -(-len(trajectory.time_ps) // _MOST_POINTS) or 1
    columns = {
        "time_ps": trajectory.time_ps,
        "total_energy_meV_per_atom": trajectory.total_energy,
        "temperature_K": trajectory.temperatures,
    }
    return {name: plain(values[::stride]) for name, values in columns.items()}


def movie(trajectory: Trajectory) -> dict[str, Any] | None:
    """Evenly spaced frames, the first and the last among them, for ``viewer.js``.

    ``positions`` are base64 of little-endian int16 (n_frames, n_atoms, 3), in units of ``scale`` Å:
    the farthest atom is at 32,767, so that 100 Å are resolved to 0.003 Å.
    """
    atoms, n = trajectory.atoms, len(trajectory.time_ps)
    if not 0 < len(atoms) <= _MOST_ATOMS or not n:
        return None
    most = max(2, min(_MOST_FRAMES, _MOST_PLACES // len(atoms)))
    frames = np.unique(np.linspace(0, n - 1, most).round().astype(int))
    positions = _inside(trajectory, frames)
    scale = float(np.abs(positions).max(initial=1.0)) / 32767.0
    numbers, kinds = np.unique(atoms.numbers, return_inverse=True)
    return {
        "elements": [
            {
                "symbol": chemical_symbols[z],
                "radius": round(float(covalent_radii[z]), 3),
                "color": "#" + "".join(f"{round(255 * x):02x}" for x in jmol_colors[z]),
            }
            for z in numbers.tolist()
        ],
        "kinds": kinds.tolist(),
        "cell": np.round(atoms.cell.array, 5).tolist() if atoms.cell.rank == 3 else None,
        "ensemble": trajectory.ensemble.ensemble,
        "target_K": trajectory.temperature_K,
        "time_ps": plain(trajectory.time_ps[frames]),
        "scale": scale,
        "positions": b64encode((positions / scale).round().astype("<i2").tobytes()).decode("ascii"),
    }


def _inside(trajectory: Trajectory, frames: np.ndarray) -> Array:
    """(n_frames, n_atoms, 3) Å: wrapped, without atoms that flicker from side to side."""
    atoms, positions = trajectory.atoms, trajectory.positions[frames]
    if atoms.cell.rank < 3 or not atoms.pbc.any():
        return np.asarray(positions)
    places = positions @ np.linalg.inv(atoms.cell.array)
    left = atoms.pbc & ((places < -_OUTSIDE) | (places > 1.0 + _OUTSIDE))
    return np.asarray((places - np.where(left, np.floor(places), 0.0)) @ atoms.cell.array)
