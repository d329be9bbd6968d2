"""Forces and stress as derivatives of the energy, and the energy's smoothness.

All by energies alone, so any ASE calculator can be asked. Energies of float32 carry noise; its size
is measured here, and differences are judged beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from numpy.polynomial import Polynomial

from mlff_distiller.evaluate.validation.trajectory import Array, ForceField

_STEP_A = 0.01
"""Per atom. Four points leave O(h⁴): 1e-8 of a bond's force; noise is divided by it."""
_STRAIN = 2e-3
_COMPRESSION = -0.03
_N_STEPS = 64
_DEGREE = 8


@dataclass(frozen=True)
class Agreement:
    """Derivatives of the energy beside what the force field calls forces or stress."""

    found: Array  # (n,) what the force field says
    expected: Array  # (n,) from differences of its energy
    scale: float
    """Root mean square of a component of what was asked: errors weigh against it."""

    @property
    def relative_error(self) -> float:
        """RMS of the difference over ``scale``."""
        return float(np.sqrt(np.mean((self.found - self.expected) ** 2)) / self.scale)


def force_agreement(
    force_field: ForceField, frames: list[Atoms], n_directions: int, rng: np.random.Generator
) -> Agreement:
    """``-dE/ds`` along random directions against ``F · d``, some in each of ``frames``.

    A direction moves all atoms, each by about 1 in units of the step, so that every atom's force
    counts, at four energies a direction: ``E'(0) = (8 (E(h) - E(-h)) - (E(2h) - E(-2h))) / 12 h``.
    ``F · d`` is divided by ``sqrt(n_atoms)``: its size is then that of a component of a force.
    """
    found, expected, squares = [], [], []
    for atoms in frames:
        forces = force_field.forces(atoms)
        squares.append(float(np.mean(forces**2)))
        for _ in range(n_directions):
            direction = rng.normal(size=(len(atoms), 3))
            energies = [
                force_field.energy(_moved(atoms, k * _STEP_A * direction)) for k in (-2, -1, 1, 2)
            ]
            norm = np.sqrt(len(atoms))
            found.append(float((forces * direction).sum()) / norm)
            expected.append(-_derivative(energies, _STEP_A) / norm)
    # At rest forces vanish, and errors weigh against 0.1 eV/Å: those of a solid at 100 K.
    scale = max(float(np.sqrt(np.mean(squares))), 0.1)
    return Agreement(np.array(found), np.array(expected), scale)


def stress_agreement(force_field: ForceField, frames: list[Atoms]) -> Agreement | None:
    """``(1/V) dE/dstrain`` for the six strains against the stress, in each of ``frames``.

    Frames are compressed to 97 % of their lengths, so that there is a stress to compare.
    None where no frame has a volume, or the force field has no stress.
    """
    found, expected, squares = [], [], []
    for atoms in frames:
        if not atoms.pbc.all():
            continue
        atoms = _strained(atoms, _COMPRESSION * np.eye(3))
        try:
            stress = force_field.stress(atoms)
        except PropertyNotImplementedError:
            return None
        squares.append(float(np.mean(stress**2)))
        for a in range(3):
            for b in range(a, 3):
                strain = np.zeros((3, 3))
                strain[a, b] += 0.5
                strain[b, a] += 0.5
                energies = [
                    force_field.energy(_strained(atoms, k * _STRAIN * strain))
                    for k in (-2, -1, 1, 2)
                ]
                found.append(float(stress[a, b]))
                expected.append(_derivative(energies, _STRAIN) / atoms.get_volume())
    if not found:
        return None
    scale = max(float(np.sqrt(np.mean(squares))), 0.1 * units.GPa)
    return Agreement(np.array(found), np.array(expected), scale)


@dataclass(frozen=True)
class Scan:
    """Energy along a straight line."""

    distance: Array  # (n,) Å of the atom that moves most
    energy: Array  # (n,) eV, relative to the first
    slope: Array  # (n,) -F · d, eV/Å of that distance
    jump_meV: float
    """Largest excess, anywhere, of a step in energy over what the forces at its ends explain."""
    at_A: float
    """Where."""


def straight_scan(
    force_field: ForceField, atoms: Atoms, direction: Array, length_A: float, n_points: int
) -> Scan:
    """Energies and forces on a line of ``n_points``, evenly spaced over ``length_A``.

    A smooth energy changes from point to point by the integral of its slope. With the slopes at
    four points around, the cubic through them is integrated between the middle two, and O(h⁵) is
    left; or a jump of the energy, where a pair crosses a hard cutoff. Five medians of all that is
    left are taken off, so that noise and curvature, which are everywhere, are no jump.
    """
    unit = direction / np.linalg.norm(direction, axis=1).max()
    distance = np.linspace(0.0, length_A, n_points)
    energy, slope = np.empty(n_points), np.empty(n_points)
    for k, s in enumerate(distance):
        moved = _moved(atoms, s * unit)
        energy[k] = force_field.energy(moved)
        slope[k] = -float((force_field.forces(moved) * unit).sum())
    h = distance[1]
    steps = h / 24.0 * (-slope[:-3] + 13.0 * slope[1:-2] + 13.0 * slope[2:-1] - slope[3:])
    residual = np.abs(np.diff(energy)[1:-1] - steps)
    excess = residual - 5.0 * np.median(residual)
    worst = int(excess.argmax())
    return Scan(
        distance,
        energy - energy[0],
        slope,
        1e3 * max(0.0, float(excess[worst])),
        float(distance[worst + 1]),
    )


@dataclass(frozen=True)
class Translation:
    """How much a force field depends on where things are and how many there are."""

    energy_meV_per_atom: float
    """Largest change of the energy per atom under translations."""
    noise_meV: float
    """Scatter of a large copy's total energy about a smooth curve."""
    n_atoms: int
    """Of the large copy."""


def translation(
    force_field: ForceField,
    atoms: Atoms,
    rng: np.random.Generator,
    *,
    n_atoms: int = 1000,
    offset_A: float = 1000.0,
) -> Translation:
    """Translate by up to ``offset_A``, and look how finely a large system's energy is resolved.

    Sums in float32 have steps of 6e-8 of the total energy: at a thousand atoms of 10 eV each
    1 meV, at a million of them 1 eV, and what dynamics at constant energy conserves is lost in
    them. All atoms of a large copy move evenly along a line of 0.05 Å in 64 steps; a polynomial of
    degree 8 follows any smooth energy there to 1e-9 of its change, and what scatters about it are
    lost digits.
    """
    start = force_field.energy(atoms)
    changes = []
    for _ in range(3):
        offset = rng.uniform(-offset_A, offset_A, 3)
        changes.append(abs(force_field.energy(_moved(atoms, offset)) - start) / len(atoms))
    large = _large(atoms, n_atoms)
    direction = rng.normal(size=(len(large), 3))
    place = np.linspace(0.0, 0.05, _N_STEPS)
    energies = np.array([force_field.energy(_moved(large, s * direction)) for s in place])
    energies -= energies[0]
    scatter = energies - Polynomial.fit(place, energies, _DEGREE)(place)
    noise = float(np.sqrt(scatter @ scatter / (_N_STEPS - _DEGREE - 1)))
    return Translation(1e3 * max(changes), 1e3 * noise, len(large))


def _large(atoms: Atoms, n_atoms: int) -> Atoms:
    """Repeated along periodic vectors; copies of a molecule stand 10 Å apart."""
    large: Atoms = atoms.copy()
    if not atoms.pbc.any():
        large.set_cell(np.diag(np.ptp(atoms.positions, axis=0) + 10.0))
    along = atoms.pbc if atoms.pbc.any() else np.ones(3, dtype=bool)
    repeat = np.ones(3, dtype=int)
    while len(atoms) * repeat.prod() < n_atoms:
        repeat[int(np.where(along, large.cell.lengths() * repeat, np.inf).argmin())] += 1
    large = large.repeat(repeat)
    if not atoms.pbc.any():
        large.set_cell(None)
    return large


def _derivative(energies: list[float], h: float) -> float:
    """At 0, from energies at -2h, -h, h, 2h; the error is O(h⁴)."""
    a, b, c, d = energies
    return (8.0 * (c - b) - (d - a)) / (12.0 * h)


def _moved(atoms: Atoms, by: Array) -> Atoms:
    moved: Atoms = atoms.copy()
    moved.positions += by
    return moved


def _strained(atoms: Atoms, strain: Array) -> Atoms:
    bent: Atoms = atoms.copy()
    bent.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return bent
