"""What must not happen in a trajectory: clashes, evaporation, broken bonds, explosions.

Every incident names its frame and atom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from mlff_distiller.md.record import Array, Trajectory
from mlff_distiller.neighbors import pair_vectors
from mlff_distiller.structure import bonds_of, radii_of_pairs
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_MOST = 100
"""Incidents that are listed."""

Kind = Literal["ended", "hot", "clash", "evaporated", "bond"]

BOND_CHANGE_A = 0.5
"""A bond this far from its mean length: a stretching vibration at 500 K reaches a third of it."""
_CLASH = 0.6
"""Times the sum of covalent radii: inside a bond's repulsive wall (1 eV up at 0.8)."""
_ALONE = 2.0
"""Times the sum of covalent radii, to the nearest neighbour: no bond is so long."""
_FURTHER = 1.5
"""Times the distance to the nearest neighbour at the beginning, for what is not bonded (argon)."""
_HOT = 8.0
"""Times the target temperature."""


@dataclass(frozen=True)
class Incident:
    """``frame`` counts recorded frames of the trajectory."""

    kind: Kind
    frame: int
    time_ps: float
    atom: int | None
    text: str


def incidents(trajectory: Trajectory) -> list[Incident]:
    """The first incident of every kind and atom, in order of time.

    Cost: a neighbour search a frame.
    """
    found: dict[tuple[Kind, int | None], Incident] = {}
    atoms, n = trajectory.atoms, len(trajectory.time_ps)

    def note(kind: Kind, frame: int, atom: int | None, text: str) -> None:
        time = float(trajectory.time_ps[frame]) if n else 0.0
        named = "" if atom is None else f"atom {atom} ({atoms.symbols[atom]}) "
        incident = Incident(kind, frame, time, atom, f"frame {frame} ({time:g} ps): {named}{text}")
        found.setdefault((kind, atom), incident)

    for frame in np.flatnonzero(trajectory.temperatures > _HOT * trajectory.temperature_K)[:1]:
        speeds = np.linalg.norm(trajectory.velocities[frame], axis=1)
        hot = trajectory.temperatures[frame]
        note("hot", int(frame), int(speeds.argmax()), f"is the fastest, the system at {hot:.0f} K")
    if len(atoms) > 1 and n:
        nearest_at_first = _nearest(atoms, trajectory.positions[0])[1]
        for frame in range(n):
            other, distance = _nearest(atoms, trajectory.positions[frame])
            radii = radii_of_pairs(atoms.numbers, np.arange(len(atoms)), other)
            clash = distance < np.minimum(_CLASH * radii, 0.9 * nearest_at_first)
            alone = distance > np.maximum(_ALONE * radii, _FURTHER * nearest_at_first)
            for atom in np.flatnonzero(clash).tolist():
                text = f"is {distance[atom]:.3f} Å from atom {other[atom]}"
                note("clash", frame, atom, text)
            for atom in np.flatnonzero(alone).tolist():
                note("evaporated", frame, atom, f"has no neighbour within {distance[atom]:.2f} Å")
        _bonds(trajectory, note)
    if trajectory.why:
        note("ended", max(0, n - 1), None, "the run ended: " + trajectory.why)
    return sorted(found.values(), key=lambda incident: incident.frame)


def _nearest(atoms: Atoms, positions: Array) -> tuple[np.ndarray, Array]:
    """Each atom's nearest neighbour, and how far it is (Å).

    Searched within a reach that doubles until everybody has a neighbour or 12 Å are reached.
    """
    n = len(atoms)
    other, distance = np.zeros(n, dtype=np.int64), np.full(n, np.inf)
    for reach in (3.0, 6.0, 12.0):
        i, j, vectors = pair_vectors(atoms, reach, positions)
        d = np.linalg.norm(vectors, axis=1)
        order = np.argsort(-d, kind="stable")  # the last to be written is the nearest
        other[i[order]], distance[i[order]] = j[order], d[order]
        if np.isfinite(distance).all():
            break
    return other, np.minimum(distance, 12.0)


def _bonds(trajectory: Trajectory, note: Callable[[Kind, int, int | None, str], None]) -> None:
    start: Atoms = trajectory.atoms.copy()
    start.positions = trajectory.positions[0]
    i, j = bonds_of(start)
    if not len(i):
        return
    vectors = trajectory.positions[:, j] - trajectory.positions[:, i]  # (n, n_bonds, 3)
    if start.pbc.any():
        flat = find_mic(vectors.reshape(-1, 3), start.cell, start.pbc)[0]
        vectors = flat.reshape(vectors.shape)
    lengths = np.linalg.norm(vectors, axis=2)
    change = lengths - lengths.mean(0)
    for frame, bond in np.argwhere(np.abs(change) > BOND_CHANGE_A).tolist():
        text = (
            f"and atom {j[bond]} ({start.symbols[j[bond]]}), bonded, are {lengths[frame, bond]:.2f}"
            f" Å apart, {change[frame, bond]:+.2f} Å from their mean"
        )
        note("bond", frame, int(i[bond]), text)


def _measure(subject: Subject) -> Measured:
    runs = [run for pair in zip(subject.nvt, subject.nve, strict=True) for run in pair]
    happened = [one for run in runs if run is not None for one in incidents(run)]
    words = "; ".join(one.text for one in happened[:3])
    return Measured(
        {"incidents": Finding(float(len(happened)), words)},
        {"incidents": [_row(one) for one in happened[:_MOST]]},
    )


def _row(incident: Incident) -> dict[str, Any]:
    return {
        "kind": incident.kind,
        "frame": incident.frame,
        "time_ps": incident.time_ps,
        "atom": incident.atom,
        "text": incident.text,
    }


CHECK = Check(("incidents",), _measure)
