"""Forces and stress as derivatives of the energy, and the energy's smoothness.

All by energies alone, so any ASE calculator can be asked. Energies of float32 carry noise; its size
is measured here, and differences are judged beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from numpy.polynomial import Polynomial

from mlff_distiller.md.record import Array, ForceField

_STEPS_A = (0.01, 0.005, 0.0025, 0.00125)
"""Per atom. Noise wants long ones, a squeezed bond short ones; extrapolation chooses."""
_STRAIN = 2e-3
_COMPRESSION = -0.03
_LINES_A = (0.05, 0.0125)
_N_STEPS = 64
_DEGREE = 8
_FINER = 8
_LOOKS = 40
_SMALL_eV = 1e-5
"""A tenth of the limit of jumps: nothing to look at more closely."""


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
    counts, at eight energies a direction, see `extrapolated`.
    ``F · d`` is divided by ``sqrt(n_atoms)``: its size is then that of a component of a force.
    """
    found, expected, squares = [], [], []
    for atoms in frames:
        forces = force_field.forces(atoms)
        squares.append(float(np.mean(forces**2)))
        for _ in range(n_directions):
            direction = rng.normal(size=(len(atoms), 3))
            differences = [
                force_field.energy(_moved(atoms, h * direction))
                - force_field.energy(_moved(atoms, -h * direction))
                for h in _STEPS_A
            ]
            norm = np.sqrt(len(atoms))
            found.append(float((forces * direction).sum()) / norm)
            expected.append(-extrapolated(differences, _STEPS_A) / norm)
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
    left are taken off, so that noise and curvature, which are everywhere, are no jump. Where most
    is left, an eighth of the step is looked at: there a jump is what it was, and curvature, of a
    bond squeezed to half its length say, is 30,000 times less.
    """
    unit = direction / np.linalg.norm(direction, axis=1).max()
    distance = np.linspace(0.0, length_A, n_points)

    def along(places: Array) -> tuple[Array, Array]:
        energy, slope = np.empty(len(places)), np.empty(len(places))
        for k, s in enumerate(places):
            moved = _moved(atoms, s * unit)
            energy[k] = force_field.energy(moved)
            slope[k] = -float((force_field.forces(moved) * unit).sum())
        return energy, slope

    energy, slope = along(distance)
    left = _unexplained(energy, slope, distance[1])
    everywhere = 5.0 * float(np.median(left))
    excess = left - everywhere
    for _ in range(_LOOKS):
        worst = int(excess.argmax())
        if not excess[worst] > _SMALL_eV:
            break
        h = distance[1] / _FINER
        fine = distance[worst + 1] + h * np.arange(-1, _FINER + 2)
        closer = float(_unexplained(*along(fine), h).max()) - everywhere
        if closer >= 0.5 * excess[worst]:
            break
        excess[worst] = closer
    worst = int(excess.argmax())
    return Scan(
        distance,
        energy - energy[0],
        slope,
        1e3 * max(0.0, float(excess[worst])),
        float(distance[worst + 1]),
    )


def _unexplained(energy: Array, slope: Array, h: float) -> Array:
    """(n - 3,) eV: of each inner step of the energy, what the slopes around do not explain."""
    steps = h / 24.0 * (-slope[:-3] + 13.0 * slope[1:-2] + 13.0 * slope[2:-1] - slope[3:])
    return np.abs(np.diff(energy)[1:-1] - steps)


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
    degree 8 follows a smooth energy there to 1e-9 of its change, and what scatters about it are
    lost digits. Squeezed bonds may want a higher degree: on a line of a quarter of the length what
    it missed is a millionth, and lost digits are as many.
    """
    start = force_field.energy(atoms)
    changes = []
    for _ in range(3):
        offset = rng.uniform(-offset_A, offset_A, 3)
        changes.append(abs(force_field.energy(_moved(atoms, offset)) - start) / len(atoms))
    large = _large(atoms, n_atoms)
    direction = rng.normal(size=(len(large), 3))
    noise = []
    for length in _LINES_A:
        place = np.linspace(0.0, length, _N_STEPS)
        energies = np.array([force_field.energy(_moved(large, s * direction)) for s in place])
        energies -= energies[0]
        scatter = energies - Polynomial.fit(place, energies, _DEGREE)(place)
        noise.append(float(np.sqrt(scatter @ scatter / (_N_STEPS - _DEGREE - 1))))
    return Translation(1e3 * max(changes), 1e3 * min(noise), len(large))


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


def extrapolated(differences: Sequence[float], steps: Sequence[float]) -> float:
    """``E'(0)`` from ``E(h) - E(-h)`` at steps each half the one before.

    Of Richardson's extrapolations that which differs least from its two predecessors (Ridders,
    Adv. Eng. Softw. 4, 75, 1982): noise spoils those of short steps, curvature those of long ones.
    """
    before = [differences[0] / (2.0 * steps[0])]
    best, error = before[0], np.inf
    for difference, h in zip(differences[1:], steps[1:], strict=True):
        row = [difference / (2.0 * h)]
        for order, coarse in enumerate(before, 1):
            row.append(row[-1] + (row[-1] - coarse) / (4.0**order - 1.0))
            uncertain = max(abs(row[-1] - row[-2]), abs(row[-1] - coarse))
            if uncertain < error:
                best, error = row[-1], uncertain
        before = row
    return best


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
