"""Forces and stress as derivatives of the energy.

By energies alone, so that any ASE calculator can be asked. Energies of float32 carry noise; its
size is measured here, and differences are judged against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError

from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_STEPS_A = (0.01, 0.005, 0.0025, 0.00125)
"""Per atom. Noise wants long ones, a squeezed bond short ones; extrapolation chooses."""
_STRAIN = 2e-3
_COMPRESSION = -0.03
_N_DIRECTIONS = 6


@dataclass(frozen=True)
class Agreement:
    """Derivatives of the energy against what the force field calls forces or stress."""

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
                force_field.energy(moved(atoms, h * direction))
                - force_field.energy(moved(atoms, -h * direction))
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


def moved(atoms: Atoms, by: Array) -> Atoms:
    """A copy with every atom displaced."""
    copy: Atoms = atoms.copy()
    copy.positions += by
    return copy


def _strained(atoms: Atoms, strain: Array) -> Atoms:
    bent: Atoms = atoms.copy()
    bent.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return bent


def displaced(subject: Subject) -> list[Atoms]:
    """Copies with every atom displaced by ``rattle_A``, and by twice that."""
    rng = np.random.default_rng(subject.settings.seed)
    frames = []
    for scale in (1.0, 2.0):
        frame = subject.atoms.copy()
        shape = (len(frame), 3)
        frame.positions += rng.normal(size=shape) * scale * subject.settings.rattle_A
        frames.append(frame)
    return frames


def _forces(subject: Subject) -> Measured:
    rng = np.random.default_rng([subject.settings.seed, 1])
    agreement = force_agreement(subject.force_field, displaced(subject), _N_DIRECTIONS, rng)
    return _law("force_derivative_error", Finding(agreement.relative_error))


def _stress(subject: Subject) -> Measured:
    agreement = stress_agreement(subject.force_field, displaced(subject))
    if agreement is None:
        return _law("stress_derivative_error", Finding(None, "it gives no stress"))
    return _law("stress_derivative_error", Finding(agreement.relative_error))


def _law(name: str, finding: Finding) -> Measured:
    return Measured({name: finding}, {"laws": {name: finding.value}})


FORCES = Check(("force_derivative_error",), _forces)
STRESS = Check(("stress_derivative_error",), _stress, lambda subject: bool(subject.atoms.pbc.all()))
