"""Small vibrations about the minimum: of molecules, and the phonons of crystals."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from ase import Atoms, units

from mlff_distiller import plotting
from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import Array, ForceField
from mlff_distiller.plotting import BLUE, GREY, Panel
from mlff_distiller.validation.check import Check, Measured, Tree
from mlff_distiller.validation.checks.equation_of_state import relaxed
from mlff_distiller.validation.findings import plain
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

_DIFFERENCE, _IMAGINARY = "frequency_difference_percent", "imaginary_frequency_per_cm"
_DISPLACEMENT_A = 0.01
THZ_PER_WAVENUMBER = units._c * 1e-10
"""1 cm⁻¹ in THz: c = 2.998e8 m/s."""


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
        raise DistillerError("phonons need phonopy", remedy="pip install phonopy") from error
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


def _measure(subject: Subject) -> Measured:
    measure = crystal_frequencies if subject.kind == "crystal" else harmonic_frequencies
    mine = measure(subject.force_field, subject.atoms)
    theirs = measure(subject.reference, subject.atoms)
    if mine.shape != theirs.shape:
        nothing = Finding(None, "relaxed structures have different symmetries")
        return Measured({_DIFFERENCE: nothing, _IMAGINARY: nothing})
    percent = 100.0 * float(np.abs(mine - theirs).mean()) / float(np.abs(theirs).mean())
    largest = float(np.abs(mine - theirs).max())
    below = max(0.0, float(min(0.0, theirs.min()) - mine.min()))
    return Measured(
        {
            _DIFFERENCE: Finding(percent, f"at most {largest:.1f} cm⁻¹"),
            _IMAGINARY: Finding(below, f"lowest {mine.min():.1f} and {theirs.min():.1f} cm⁻¹"),
        },
        {"teacher": {"frequencies_per_cm": [plain(mine), plain(theirs)]}},
    )


def _panels(measured: Tree, series: Tree) -> list[Panel]:
    return _drawn((measured.get("teacher") or {}).get("frequencies_per_cm"))


def _drawn(both: Sequence[Any] | None) -> list[Panel]:
    """Each frequency and the teacher's, and how many there are at each."""
    titles = ("Frequencies, one by one", "Density of frequencies")
    mine, theirs = (plotting.array(one) for one in both or [[], []])
    if not mine.size or mine.shape != theirs.shape:
        return [Panel(title, None) for title in titles]
    mine, theirs = plotting.finite(mine, theirs)
    low, high = min(mine.min(), theirs.min()), max(mine.max(), theirs.max())
    ends = np.array([low - 0.03 * (high - low) - 1.0, high + 0.03 * (high - low) + 1.0])
    hidden = {"showlegend": False, "hoverinfo": "skip"}
    keep = plotting.thinned(mine.size, mine - theirs)
    cloud = plotting.markers(theirs[keep], mine[keep], ("frequencies", BLUE, "circle"))
    parity = plotting.figure(
        [plotting.line(ends, ends, "", GREY, "dash", **hidden), cloud],
        {"title": "teacher's (cm⁻¹)", "range": list(ends)},
        {"title": "student's (cm⁻¹)", "range": list(ends)},
        showlegend=False,
    )
    edges = np.linspace(ends[0], ends[1], min(60, max(10, mine.size // 4)) + 1)
    middles = 0.5 * (edges[1:] + edges[:-1])
    traces = [
        plotting.line(
            middles, np.histogram(own, edges)[0], who, *plotting.look(number), line_shape="hvh"
        )
        for number, (who, own) in enumerate((("student", mine), ("teacher", theirs)))
    ]
    counts = plotting.figure(traces, {"title": "frequency (cm⁻¹)"}, {"title": "number"})
    note = "Imaginary frequencies are drawn as negative."
    return [Panel(titles[0], parity, note), Panel(titles[1], counts)]


def _applies(subject: Subject) -> bool:
    whole = subject.kind in ("crystal", "molecule") and len(subject.atoms) > 1
    return subject.teacher is not None and whole


CHECK = Check((_DIFFERENCE, _IMAGINARY), _measure, _applies, section="statics", panels=_panels)
