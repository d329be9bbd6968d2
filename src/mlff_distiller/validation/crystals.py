"""Static properties: equation of state, phonons, and the vibrations of molecules."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.optimize import BFGS, LBFGS

from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.validation.observables import THZ_PER_WAVENUMBER

_RELAXED, _ENOUGH = 1e-4, 5e-3
"""eV/Å: what is aimed at, and what is accepted; digits of float32 may end the descent before."""
_MOST_STEPS = 300
_DENSE = 64
"""Atoms up to which a step may diagonalise all second derivatives."""
_DISPLACEMENT_A = 0.01


@dataclass(frozen=True)
class EquationOfState:
    """Birch and Murnaghan's, of third order; per atom."""

    volume: float
    """At zero pressure, Å³/atom."""
    bulk_modulus_GPa: float
    volumes: Array  # (n,) Å³/atom
    energies: Array  # (n,) eV/atom


def relaxed(force_field: ForceField, atoms: Atoms) -> Atoms:
    """Positions at a minimum, in the cell as it is; `DistillerError` if there is none near."""
    copy: Atoms = atoms.copy()
    copy.calc = force_field.calculator
    # Forces that are no gradient can run away, and the estimated curvature with them.
    descent: Any = BFGS if len(atoms) <= _DENSE else LBFGS
    with descent(copy, logfile=None) as optimizer, np.errstate(all="ignore"):
        with suppress(np.linalg.LinAlgError):
            optimizer.run(fmax=_RELAXED, steps=_MOST_STEPS)
        left = float(np.linalg.norm(copy.get_forces(), axis=1).max())
    if not left < _ENOUGH:
        raise DistillerError(
            f"{force_field.name} finds no minimum of {atoms.get_chemical_formula()}",
            expected=f"forces below {_ENOUGH} eV/Å within {_MOST_STEPS} steps",
            found=f"{left:.3g} eV/Å",
        )
    copy.calc = None
    return copy


def equation_of_state(
    force_field: ForceField, atoms: Atoms, *, strain: float = 0.02, n_points: int = 9
) -> EquationOfState | None:
    """Energies of evenly scaled cells, fitted linearly in powers of ``V^(-2/3)``.

    Lengths change by up to ``strain`` around the volume of zero pressure, which a first, wider fit
    finds. Scaled positions are kept. None where the energies have no minimum.
    """
    n, start = len(atoms), atoms.get_volume() / len(atoms)
    centre, found = start, None
    for width in (2.5 * strain, strain):
        volumes = centre * np.linspace(1.0 - width, 1.0 + width, n_points) ** 3
        energies = np.array(
            [force_field.energy(_scaled(atoms, (v / start) ** (1 / 3))) / n for v in volumes]
        )
        found = _birch_murnaghan(volumes, energies)
        if found is None:
            return None
        centre = found.volume
    return found


def _birch_murnaghan(volumes: Array, energies: Array) -> EquationOfState | None:
    x = volumes ** (-2.0 / 3.0)
    middle, spread = x.mean(), np.ptp(x)
    fit = np.polynomial.Polynomial(np.polyfit((x - middle) / spread, energies, 3)[::-1])
    roots = fit.deriv().roots()
    real = roots[np.abs(roots.imag) < 1e-9].real
    minima = [t for t in real if fit.deriv(2)(t) > 0 and abs(t) < 2.0]
    if not minima:
        return None
    t = min(minima, key=abs)
    x0 = middle + spread * t
    volume = x0**-1.5
    # d²E/dV² at the minimum = E''(x) (dx/dV)², for E'(x) = 0.
    curvature = fit.deriv(2)(t) / spread**2 * (2.0 / 3.0 * x0 / volume) ** 2
    modulus = volume * curvature / units.GPa
    return EquationOfState(float(volume), float(modulus), volumes, energies)


def hessian(force_field: ForceField, atoms: Atoms) -> Array:
    """Second derivatives (3 n_atoms, 3 n_atoms) in eV/Å² by central differences of forces."""
    rows = []
    for atom in range(len(atoms)):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * _DISPLACEMENT_A
                forces.append(force_field.forces(moved).ravel())
            rows.append((forces[1] - forces[0]) / (2.0 * _DISPLACEMENT_A))
    matrix = np.array(rows)
    return np.asarray(0.5 * (matrix + matrix.T))


def harmonic_frequencies(force_field: ForceField, atoms: Atoms) -> Array:
    """Harmonic frequencies in cm⁻¹, ascending, imaginary ones negative, at the own minimum.

    Translations are projected out and, of molecules, rotations: 3n - 6 numbers, 3n - 5 of a line.
    Of a crystal's supercell, 3n - 3: phonons of all wave vectors that are commensurate with it.
    """
    molecule = relaxed(force_field, atoms)
    masses = np.repeat(molecule.get_masses(), 3)
    dynamical = hessian(force_field, molecule) / np.sqrt(np.outer(masses, masses))
    arm = molecule.positions - molecule.get_center_of_mass()
    rigid = [np.tile(axis, len(molecule)) for axis in np.eye(3)]
    if not atoms.pbc.any():
        rigid += [np.cross(axis, arm).ravel() for axis in np.eye(3)]
    u, sizes, _ = np.linalg.svd((np.array(rigid) * np.sqrt(masses)).T, full_matrices=True)
    inner = u[:, int((sizes > 1e-3 * sizes[0]).sum()) :]
    return _wavenumbers(np.linalg.eigvalsh(inner.T @ dynamical @ inner))


def crystal_frequencies(force_field: ForceField, atoms: Atoms) -> Array:
    """`phonon_frequencies` where phonopy is installed, otherwise `harmonic_frequencies`."""
    has_phonopy = find_spec("phonopy") is not None
    return (phonon_frequencies if has_phonopy else harmonic_frequencies)(force_field, atoms)


def phonon_frequencies(
    force_field: ForceField, atoms: Atoms, *, mesh: tuple[int, int, int] = (4, 4, 4)
) -> Array:
    """Phonon frequencies of a crystal in cm⁻¹ on a ``mesh`` of wave vectors, ascending.

    The structure, relaxed in its cell, is the supercell that atoms are displaced in; phonopy (extra
    ``phonons``) finds its symmetry and primitive cell. Imaginary ones are negative.
    """
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
        from phonopy.structure.cells import guess_primitive_matrix
    except ImportError as error:
        raise DistillerError(
            "phonons need phonopy", remedy="pip install 'mlff-distiller[phonons]'"
        ) from error
    crystal = relaxed(force_field, atoms)
    cell = PhonopyAtoms(
        symbols=crystal.get_chemical_symbols(),
        cell=crystal.cell.array,
        scaled_positions=crystal.get_scaled_positions(),
    )
    primitive = guess_primitive_matrix(cell)
    phonons: Any = Phonopy(cell, supercell_matrix=np.eye(3, dtype=int), primitive_matrix=primitive)
    phonons.generate_displacements(distance=_DISPLACEMENT_A)
    sets = []
    for own in phonons.supercells_with_displacements:
        displaced = Atoms(own.symbols, own.positions, cell=own.cell, pbc=True)
        sets.append(force_field.forces(displaced))
    phonons.forces = sets
    phonons.produce_force_constants()
    phonons.symmetrize_force_constants()
    phonons.run_mesh(mesh, is_gamma_center=True, is_mesh_symmetry=False)
    result = phonons.mesh
    frequencies = np.asarray(result.frequencies)
    return np.sort(frequencies.ravel()) / THZ_PER_WAVENUMBER


def _wavenumbers(squares: Array) -> Array:
    """From eigenvalues in eV/Å²/amu, ``omega²`` in ASE's units; negative where imaginary."""
    omega = np.sign(squares) * np.sqrt(np.abs(squares))
    to_THz = units.s * 1e-12 / (2.0 * np.pi)
    return np.sort(omega * to_THz) / THZ_PER_WAVENUMBER


def _scaled(atoms: Atoms, factor: float) -> Atoms:
    copy: Atoms = atoms.copy()
    copy.set_cell(atoms.cell.array * factor, scale_atoms=True)
    return copy
