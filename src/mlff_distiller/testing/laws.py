"""Laws that every force field must obey, as an ASE calculator.

Each function takes an ASE calculator and a structure and raises ``AssertionError`` with what was
expected and found. ``assert_laws`` runs them all:

>>> from mlff_distiller.testing import assert_laws
>>> assert_laws(StudentCalculator("run/student", dtype="float64"), atoms)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress

from mlff_distiller.structure import random_rotation
from mlff_distiller.students.base import Student


def _evaluate(calculator: Calculator, atoms: Atoms) -> tuple[float, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = calculator
    return float(atoms.get_potential_energy()), np.asarray(atoms.get_forces())


def _stress(calculator: Calculator, atoms: Atoms) -> np.ndarray | None:
    """(3, 3) eV/Å³, or None where the calculator rightly gives none."""
    atoms = atoms.copy()
    atoms.calc = calculator
    try:
        stress = np.asarray(atoms.get_stress())
    except PropertyNotImplementedError:
        return None
    assert stress.shape == (6,), f"stress: expected Voigt shape (6,), found {stress.shape}"
    return np.asarray(voigt_6_to_full_3x3_stress(stress))


def close(
    name: str, found: np.ndarray | float, expected: np.ndarray | float, within: float
) -> None:
    """`AssertionError` unless the largest difference is at most ``within``."""
    error = float(np.abs(np.asarray(found) - np.asarray(expected)).max())
    assert error <= within, f"{name}: differs by {error:.3g}, allowed {within:.3g}"


def assert_forces_are_gradients(
    calculator: Calculator, atoms: Atoms, *, step_A: float = 1e-4, within: float = 1e-5
) -> None:
    """``F = -dE/dr`` by central differences of every component, within eV/Å."""
    forces = _evaluate(calculator, atoms)[1]
    for atom in range(len(atoms)):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step_A
                energies.append(_evaluate(calculator, moved)[0])
            slope = (energies[0] - energies[1]) / (2 * step_A)
            close(f"force on atom {atom} along {'xyz'[axis]}", forces[atom, axis], -slope, within)


def assert_stress_is_strain_derivative(
    calculator: Calculator, atoms: Atoms, *, step: float = 1e-5, within: float = 1e-6
) -> None:
    """``stress = (1/V) dE/dstrain`` by central differences of all six strains, within eV/Å³."""
    stress = _stress(calculator, atoms)
    if stress is None:
        assert atoms.cell.rank < 3 or not atoms.pbc.all(), (
            "stress: a periodic crystal must have one"
        )
        return
    for a in range(3):
        for b in range(a, 3):
            energies = []
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[a, b] += 0.5 * sign * step
                strain[b, a] += 0.5 * sign * step
                bent = atoms.copy()
                bent.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
                energies.append(_evaluate(calculator, bent)[0])
            slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
            close(f"stress {'xyz'[a]}{'xyz'[b]}", stress[a, b], slope, within)


def assert_turns_with_the_system(
    calculator: Calculator, atoms: Atoms, *, within: float = 1e-7, seed: int = 0
) -> None:
    """Energy stays, forces and stress turn, when atoms and cell are rotated together."""
    rotation = random_rotation(np.random.default_rng(seed))
    energy, forces = _evaluate(calculator, atoms)
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation.T)
    turned.positions = atoms.positions @ rotation.T
    turned_energy, turned_forces = _evaluate(calculator, turned)
    close("energy after rotation", turned_energy, energy, within * len(atoms))
    close("forces after rotation", turned_forces, forces @ rotation.T, within)
    stress, turned_stress = _stress(calculator, atoms), _stress(calculator, turned)
    if stress is not None and turned_stress is not None:
        close("stress after rotation", turned_stress, rotation @ stress @ rotation.T, within)


def assert_order_does_not_matter(
    calculator: Calculator, atoms: Atoms, *, within: float = 1e-7, seed: int = 0
) -> None:
    """Renumbering atoms renumbers forces and leaves the energy."""
    order = np.random.default_rng(seed).permutation(len(atoms))
    energy, forces = _evaluate(calculator, atoms)
    other_energy, other_forces = _evaluate(calculator, atoms[order])
    close("energy after renumbering", other_energy, energy, within * len(atoms))
    close("forces after renumbering", other_forces, forces[order], within)


def assert_images_are_equal(
    calculator: Calculator, atoms: Atoms, *, within: float = 1e-7, seed: int = 0
) -> None:
    """Shifting everything, or single atoms by lattice vectors, changes nothing."""
    rng = np.random.default_rng(seed)
    energy, forces = _evaluate(calculator, atoms)
    moved = atoms.copy()
    hops = rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc
    moved.positions += hops @ atoms.cell.array + rng.normal(size=3)
    moved_energy, moved_forces = _evaluate(calculator, moved)
    close("energy of another image", moved_energy, energy, within * len(atoms))
    close("forces of another image", moved_forces, forces, within)


def assert_extensive(calculator: Calculator, atoms: Atoms, *, within: float = 1e-7) -> None:
    """A supercell has twice the energy and the same forces; for a molecule, two far copies."""
    energy, forces = _evaluate(calculator, atoms)
    if atoms.pbc.any():
        repeat = np.where(np.arange(3) == int(np.flatnonzero(atoms.pbc)[0]), 2, 1)
        double = atoms.repeat(repeat)
    else:
        other = atoms.copy()
        other.positions += [np.ptp(atoms.positions[:, 0]) + 60.0, 0.0, 0.0]
        double = atoms + other
    double_energy, double_forces = _evaluate(calculator, double)
    close("energy of two copies", double_energy, 2 * energy, within * len(double))
    close("forces of two copies", double_forces, np.tile(forces, (2, 1)), within)


def assert_ase_conventions(calculator: Calculator, atoms: Atoms) -> None:
    """Shapes, ``free_energy``, copies, and results that are never those of older positions."""
    atoms = atoms.copy()
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    assert isinstance(energy, float), f"energy: expected float, found {type(energy).__name__}"
    assert forces.shape == (len(atoms), 3), f"forces: found shape {forces.shape}"
    assert calculator.get_property("free_energy", atoms) == energy, "free_energy: must equal energy"
    forces[:] = 1e9
    close("forces after the caller changed his copy", atoms.get_forces().max(), 0.0, 1e8)
    before = atoms.get_forces()
    felt = np.abs(before).max(axis=1).argmax()  # an atom that others act on, if there is one
    atoms.positions[felt] += 0.05
    alone = np.abs(before).max() < 1e-9  # or held by its own images alone
    assert np.abs(atoms.get_forces() - before).max() > 0 or alone, "forces: stale"
    atoms.positions[felt] -= 0.05
    close("forces back at the old place", atoms.get_forces(), before, 1e-6)


LAWS: tuple[Callable[..., None], ...] = (
    assert_forces_are_gradients,
    assert_stress_is_strain_derivative,
    assert_turns_with_the_system,
    assert_order_does_not_matter,
    assert_images_are_equal,
    assert_extensive,
    assert_ase_conventions,
)


def assert_laws(calculator: Calculator, atoms: Atoms) -> None:
    """All laws, at tolerances for float64 energies; float32 ones fail the finite differences."""
    for law in LAWS:
        law(calculator, atoms)


def assert_smooth_at_cutoff(
    student: Student, calculator: Calculator, symbols: tuple[str, str], *, width_A: float = 1e-4
) -> None:
    """A dimer crossing the cutoff: energy and force are continuous and end at zero interaction."""
    energies, forces = [], []
    for offset in (-width_A, 0.0, width_A):
        dimer = Atoms(list(symbols), [[0, 0, 0], [student.cutoff + offset, 0, 0]])
        energy, force = _evaluate(calculator, dimer)
        energies.append(energy)
        forces.append(force)
    apart = sum(_evaluate(calculator, Atoms([symbol]))[0] for symbol in symbols)
    close("energy just inside the cutoff", energies[0], apart, 1e-6)
    close("energy just beyond the cutoff", energies[2], apart, 1e-12 * max(1.0, abs(apart)))
    close("force just inside the cutoff", forces[0], 0.0, 1e-3)
    close("force beyond the cutoff", forces[2], 0.0, 0.0)
