"""What is known of a structure by itself: size, distances, bonds, time step, momenta."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import all_properties
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixConstraint,
    FixedLine,
    FixedPlane,
    FixScaled,
)
from ase.data import covalent_radii
from ase.md.velocitydistribution import Stationary, ZeroRotation
from numpy.typing import NDArray

from mlff_distiller.neighbors import pair_vectors

BONDED = 1.25
"""Times the sum of covalent radii: what is nearer is bonded."""
_NONMETALS = (1, 6, 7, 8, 9, 15, 16, 17, 34, 35, 53)
"""Elements whose bonds have a length of their own; in metals neighbours come and go."""


STATE = ("charge", "spin")
"""Entries of ``info`` that define a structure's electronic state: total charge, multiplicity."""
_ALSO_CALLED = {"charge": ("total_charge",), "spin": ("multiplicity", "spin_multiplicity")}
ATOMIC_STATE = ("initial_charges", "initial_magmoms")
"""Columns in ASE's names, a number for each atom, that calculators start from, in e and µB."""
HONOURED = (FixAtoms, FixCartesian, FixScaled, FixedPlane, FixedLine, FixBondLengths)
"""ASE's constraints that sampling and the dynamics of checks keep."""
_VELOCITIES = {"vel", "velo", "velocity", "velocities"}
_RESULTS = {
    *("energy", "energies", "force", "forces", "stress", "stresses", "virial", "virials"),
    *("momenta", "gradient", "gradients", "grad", *_VELOCITIES),
}


def is_of_one_frame(name: str) -> bool:
    """Whether an entry of ``info`` or ``arrays`` says nothing of other frames, by its name.

    It is what models compute, or a velocity: ``REF_energy``, ``dft_forces``, ``vel``.
    """
    return name in all_properties or not _RESULTS.isdisjoint(re.split("[^a-z]+", name.lower()))


def bare(atoms: Atoms) -> Atoms:
    """What labels are of: elements, positions, cell, pbc, charge and spin, of all and of each atom.

    Total charge and multiplicity, whatever they are called, become ``info``'s charge and spin.
    Charges and moments of atoms that are all zero say nothing, and are left out. Constraints, which
    labels know nothing of, go along for what moves the atoms; see `constraints_of`.
    """
    kept = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    for name in STATE:
        for called in (name, *_ALSO_CALLED[name]):
            if called in atoms.info:
                kept.info[name] = atoms.info[called]
                break
    for name, values in atomic_state(atoms).items():
        kept.set_array(name, values)
    kept.set_constraint(constraints_of(atoms))
    return kept


def constraints_of(atoms: Atoms) -> list[FixConstraint]:
    """Copies of those of ``atoms`` that are ``HONOURED``."""
    return [copy.deepcopy(one) for one in atoms.constraints if isinstance(one, HONOURED)]


def degrees_of_freedom(atoms: Atoms) -> NDArray[np.float64]:
    """What constraints leave of each atom's three, (n_atoms,); their sum is the system's.

    Exact where no two constraints hold one atom: they project momenta, and a projection's trace is
    what it leaves. Cost: three projections for each atom that is held.
    """
    degrees = np.full(len(atoms), 3.0)
    held = [index for one in atoms.constraints for index in one.get_indices()]
    for index in {int(index) for index in held}:
        left = 0.0
        for axis in range(3):
            momenta = np.zeros((len(atoms), 3))
            momenta[index, axis] = 1.0
            for one in atoms.constraints:
                one.adjust_momenta(atoms, momenta)
            left += momenta[index, axis]
        degrees[index] = left
    return degrees


def atomic_state(atoms: Atoms) -> dict[str, np.ndarray]:
    """Those of ``ATOMIC_STATE`` that say something, (n_atoms,) each."""
    found = {name: np.asarray(atoms.arrays[name]) for name in ATOMIC_STATE if name in atoms.arrays}
    return {
        name: values
        for name, values in found.items()
        if values.shape == (len(atoms),) and values.dtype.kind in "fiub" and values.any()
    }


def warn_of_what_labels_lack(frames: Sequence[Atoms], source: object) -> None:
    """Warn, once, of what ``frames`` say and no teacher is told."""
    found: dict[str, str] = {}
    for index, atoms in enumerate(frames):
        where = f"structure {index}"
        if atoms.get_initial_magnetic_moments().ndim > 1:
            found.setdefault("directions of magnetic moments, only one number per atom", where)
        if "total_spin" in atoms.info and "spin" not in bare(atoms).info:
            found.setdefault("info['total_spin']: give the multiplicity as 'spin'", where)
    for what, where in found.items():
        warnings.warn(f"teachers are not told {what} ({where} of {source})", stacklevel=3)


def warn_of_constraints(frames: Sequence[Atoms], source: object) -> None:
    """Warn, once, of constraints of ``frames`` that are not honoured, and of what they rule out."""
    found: dict[str, str] = {}
    for index, atoms in enumerate(frames):
        where = f"structure {index} of {source}"
        for one in atoms.constraints:
            if not isinstance(one, HONOURED):
                known = ", ".join(kind.__name__ for kind in HONOURED)
                words = f"the constraint {type(one).__name__} is ignored; known are {known}"
                found.setdefault(words, where)
        if constraints_of(atoms) and atoms.pbc.any():
            words = "atoms are held, so the cell stays as it is: without strain, scan or pressure"
            found.setdefault(words, where)
    for what, where in found.items():
        warnings.warn(f"{what} ({where})", stacklevel=3)


def warn_of_what_is_ignored(frames: Sequence[Atoms]) -> None:
    """Warn of what ``frames`` say and dynamics with a student does not know."""
    found: dict[str, str] = {}
    for index, atoms in enumerate(frames):
        arrays = atoms.arrays
        for words in electrons_ignored(atoms):
            found.setdefault(words, f"structure {index}")
        if "momenta" not in arrays:
            for name in [name for name in arrays if name.lower() in _VELOCITIES]:
                words = f"the column {name!r}, of units that it does not name: set velocities with "
                found.setdefault(words + "atoms.set_velocities", f"structure {index}")
        if "masses" not in arrays:
            for name in [name for name in arrays if name.lower() in ("mass", "masses")]:
                words = f"the column {name!r}: set masses with atoms.set_masses"
                found.setdefault(words, f"structure {index}")
    for what, where in found.items():
        warnings.warn(f"the simulation ignores {what} ({where})", stacklevel=3)


def electrons_ignored(atoms: Atoms) -> list[str]:
    """What ``atoms`` say of their electrons, of which no student knows."""
    found, info = [], atoms.info
    charged = any(_says_more(info.get(name, 0), 0.0) for name in ("charge", "total_charge"))
    if charged or atoms.get_initial_charges().any():
        found.append("charges: it knows neutral systems only")
    spins = ("spin", "multiplicity", "spin_multiplicity")
    if any(_says_more(info.get(name, 0), 0.0, 1.0) for name in spins) or (
        atoms.get_initial_magnetic_moments().any()
    ):
        found.append("spins and magnetic moments")
    return found


def _says_more(value: object, *nothing: float) -> bool:
    """Whether ``value`` is other than ``nothing``."""
    try:
        values = np.asarray(0.0 if value is None else value, dtype=np.float64)
    except (TypeError, ValueError):
        return bool(value)
    return not np.isin(values, nothing).all()


def enlarge(atoms: Atoms, n_atoms: int) -> Atoms:
    """About ``n_atoms`` atoms: a supercell, or a grid of copies of a molecule 15 Å apart.

    A cell smaller than the cutoff shows a student only copies of itself. Each copy has the charge,
    the unpaired electrons and the honoured constraints of the one.
    """
    large: Atoms = atoms.copy()
    if len(atoms) >= n_atoms:
        return large
    pbc = atoms.pbc
    if not pbc.any():
        size = np.ptp(atoms.positions, axis=0) + 15.0
        large.cell = size
    axes = np.flatnonzero(pbc) if pbc.any() else np.arange(3)
    repeat = np.ones(3, dtype=int)
    while len(atoms) * repeat.prod() < n_atoms:
        lengths = large.cell.lengths() * repeat
        repeat[axes[lengths[axes].argmin()]] += 1
    large.set_constraint()  # ASE knows how to repeat some only
    large = large.repeat(repeat)
    large.pbc = pbc
    copies = int(repeat.prod())
    large.set_constraint([_repeated(one, large, copies) for one in constraints_of(atoms)])
    charge, spin = (atoms.info.get(name) for name in STATE)
    if isinstance(charge, int | float | np.number):
        large.info["charge"] = copies * charge
    if isinstance(spin, int | float | np.number) and spin:  # a multiplicity; 0 says nothing
        large.info["spin"] = copies * (spin - 1) + 1
    if not pbc.any():
        large.cell = None
    return large


def _repeated(one: FixConstraint, large: Atoms, copies: int) -> FixConstraint:
    """The constraint of each of ``copies`` in ``large``, whose atoms follow each other."""
    n = len(large) // copies
    if not isinstance(one, FixBondLengths):
        along: FixConstraint = one.repeat((copies, 1, 1), n)  # type: ignore[arg-type]
        return along
    offsets = n * np.arange(copies)
    pairs = []
    for a, b in one.pairs:
        for first in a + offsets:  # a bond across the boundary leads into another copy
            nearest = large.get_distances(first, b + offsets, mic=True).argmin()
            pairs.append((first, b + offsets[nearest]))
    return FixBondLengths(pairs)


def shortest_distance(atoms: Atoms, search: float = 3.0) -> float:
    """Å; infinite if no two atoms (or images) are within ``search``."""
    vectors = pair_vectors(atoms, search)[2]
    return float(np.linalg.norm(vectors, axis=1).min(initial=np.inf))


def radii_of_pairs(
    numbers: NDArray[np.int64], i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sums of the covalent radii (n_pairs,) of atoms ``i`` and ``j`` in Å."""
    return np.asarray(covalent_radii[numbers[i]] + covalent_radii[numbers[j]])


def bonds_of(atoms: Atoms) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Atoms ``i < j`` (n_bonds,) of all covalent bonds between nonmetals."""
    i, j, vectors = pair_vectors(atoms, 3.0)
    d = np.linalg.norm(vectors, axis=1)
    nonmetal = np.isin(atoms.numbers, _NONMETALS)
    near = d < BONDED * radii_of_pairs(atoms.numbers, i, j)
    bonded = near & (i < j) & nonmetal[i] & nonmetal[j]
    return i[bonded], j[bonded]


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """A proper rotation matrix (3, 3), uniformly distributed."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def default_time_step_fs(atoms: Atoms) -> float:
    """0.5 fs with hydrogen, else 1 fs."""
    return 0.5 if (atoms.numbers == 1).any() else 1.0


def thermalise(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution."""
    spread = np.sqrt(units.kB * temperature_K * atoms.get_masses())
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])


def at_rest(atoms: Atoms) -> None:
    """Take out the motion of the centre of mass and, in vacuum, rotation."""
    Stationary(atoms)
    if not atoms.pbc.any() and len(atoms) > 2:
        ZeroRotation(atoms)
