"""Short distances, where there are no data: the energy must rise, or atoms fall into a hole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii

from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.neighbors import pair_vectors

Pair = tuple[str, str]

WALL_EV = 20.0
"""What lies behind so high a wall is not looked at: at 2,000 K nobody gets to exp(-116) of it."""
_NEAREST = 0.35
"""Times the sum of covalent radii (0.22 Å for H-H, 0.78 Å for Si-Si): where curves end."""
_BOND = 0.8
_LOOSEST = 0.8
"""Of all lengths: where compression begins at the latest, however near some pair once came."""
_DENSEST = 0.5
"""Of all lengths: at 8 times the density, as in the core of a giant planet, curves end."""
_N_POINTS = 60
_REACH_A = 6.0


@dataclass(frozen=True)
class Curve:
    """Energies from the shortest distance that the data hold down to shorter ones."""

    name: str
    distance: Array  # (n,) Å, or factors on lengths; falling
    energy: Array  # (n,) eV, or eV/atom, relative to the first

    @property
    def drop(self) -> tuple[float, float]:
        """By how much the energy falls below what it was further out, and at which distance.

        Counted from the lowest energy within `_BOND` of the first distance on: two atoms alone may
        well be nearer than in the data (Cu₂ 2.22 Å, copper 2.55 Å). Up to the wall of `WALL_EV`.
        (0, the shortest distance) where the energy rises all the way.
        """
        if np.isnan(self.energy).any():  # a hole without a bottom
            return np.inf, float(self.distance[np.isnan(self.energy)][0])
        near = self.energy[self.distance >= _BOND * self.distance[0]]
        energy, distance = self.energy[near.argmin() :], self.distance[near.argmin() :]
        below = np.maximum.accumulate(energy) - energy
        worst = int(below.argmax()) if below.max(initial=0.0) > 0 else len(energy) - 1
        return float(below[worst]), float(distance[worst])


def shortest_distances(frames: Sequence[Atoms]) -> dict[Pair, float]:
    """Shortest distance (Å) of every pair of elements that comes within 6 Å in ``frames``."""
    found: dict[Pair, float] = {}
    for atoms in frames:
        i, j, vectors = pair_vectors(atoms, _REACH_A)
        d = np.linalg.norm(vectors, axis=1)
        a, b = np.sort([atoms.numbers[i], atoms.numbers[j]], axis=0)
        for code in np.unique(200 * a + b):
            pair = (chemical_symbols[code // 200], chemical_symbols[code % 200])
            own = float(d[200 * a + b == code].min())
            found[pair] = min(own, found.get(pair, np.inf))
    return found


def dimer_curves(force_field: ForceField, shortest: dict[Pair, float]) -> list[Curve]:
    """One curve a pair of elements: two atoms in vacuum."""

    def dimer(pair: Pair) -> Callable[[float], Atoms]:
        return lambda distance: Atoms(list(pair), [[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])

    return [
        _curve(force_field, "-".join(pair), dimer(pair), distance, _limit(*pair))
        for pair, distance in shortest.items()
        if distance > _limit(*pair)
    ]


def cold_curve(force_field: ForceField, atoms: Atoms, shortest: dict[Pair, float]) -> Curve | None:
    """The whole structure compressed evenly, from where its first pair is at its shortest.

    Distances are factors on the structure's lengths, energies per atom. None without
    a pair within 6 Å.
    """
    own = shortest_distances([atoms])
    if not own:
        return None
    start = max(_LOOSEST, *(min(1.0, shortest.get(pair, d) / d) for pair, d in own.items()))
    end = max(_limit(*pair) / d for pair, d in own.items())

    def compressed(factor: float) -> Atoms:
        copy: Atoms = atoms.copy()
        copy.set_cell(atoms.cell.array * factor)
        copy.positions = atoms.positions * factor
        return copy

    end = min(max(end, _DENSEST), 0.9 * start)
    return _curve(force_field, "compression", compressed, start, end, len(atoms))


def _limit(a: str, b: str) -> float:
    radii = [covalent_radii[chemical_symbols.index(symbol)] for symbol in (a, b)]
    return float(_NEAREST * sum(radii))


def _curve(
    force_field: ForceField,
    name: str,
    make: Callable[[float], Atoms],
    start: float,
    end: float,
    n_atoms: int = 1,
) -> Curve:
    distance, energy = np.geomspace(start, end, _N_POINTS), []
    for d in distance.tolist():
        try:
            energy.append(force_field.energy(make(d)) / n_atoms)
        except DistillerError:  # a student that gives NaN says so
            energy.append(np.nan)
        if not energy[-1] - energy[0] <= WALL_EV:
            break
    return Curve(name, distance[: len(energy)], np.array(energy) - energy[0])
