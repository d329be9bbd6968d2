"""What a simulation begins with: structures that suit its settings, and their velocities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from mlff_distiller.batch import check_structure
from mlff_distiller.errors import DynamicsError
from mlff_distiller.md.ensemble import Ensemble
from mlff_distiller.structure import is_of_one_frame, thermalise


def check_frames(frames: Sequence[Atoms], ensemble: Ensemble) -> None:
    """Raise ``DynamicsError`` if the settings do not suit the structures."""
    for index, atoms in enumerate(frames):
        name = f"structure {index}"
        check_structure(atoms, name)
        for constraint in atoms.constraints:
            if not isinstance(constraint, FixAtoms):
                raise DynamicsError(
                    f"{name} has a constraint that is not supported",
                    expected="FixAtoms, or none",
                    found=type(constraint).__name__,
                    remedy="remove it with atoms.set_constraint(), or use ASE's dynamics",
                )
        if not (atoms.get_masses() > 0).all():
            raise DynamicsError(f"{name} has an atom without mass")
        if ensemble.ensemble == "npt":
            _check_pressure(atoms, name)
        if held(atoms).all():
            raise DynamicsError(f"all atoms of {name} are fixed")
    for name in ("temperature_K", "pressure_GPa"):
        values = getattr(ensemble, name)
        if len(values) not in (1, len(frames)):
            expected = f"1 or {len(frames)}"
            raise DynamicsError(f"{name} has {len(values)} values", expected=expected)


def _check_pressure(atoms: Atoms, name: str) -> None:
    if not atoms.pbc.all():
        raise DynamicsError(
            f"{name} has no pressure: it is not periodic along all three vectors",
            expected="pbc = [True, True, True] for npt",
            found=atoms.pbc.tolist(),
            remedy="take nvt",
        )
    if atoms.constraints:
        raise DynamicsError(
            f"{name} has fixed atoms, which a changing cell would move",
            remedy="take nvt, or remove the constraint",
        )


def template(atoms: Atoms) -> Atoms:
    """A copy without its calculator, and without what is true of this frame alone."""
    copy: Atoms = atoms.copy()
    for entries in (copy.info, copy.arrays):
        for name in [name for name in entries if is_of_one_frame(str(name))]:
            del entries[name]
    return copy


def held(atoms: Atoms) -> NDArray[np.bool_]:
    """(n_atoms,) whether a constraint fixes the atom."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        fixed[constraint.get_indices()] = True
    return fixed


def first_velocities(atoms: Atoms, temperature_K: float, seed: int) -> NDArray[np.float64]:
    """(n_atoms, 3) in ASE's unit: those of ``atoms``, or drawn where all are zero."""
    masses, fixed = atoms.get_masses()[:, None], held(atoms)
    velocities = np.array(atoms.get_velocities())
    if not velocities.any():
        moving = atoms.copy()
        thermalise(moving, temperature_K, np.random.default_rng(seed))
        velocities = moving.get_velocities()
        if not fixed.any() and len(atoms) > 1:
            velocities -= (masses * velocities).sum(0) / masses.sum()
    return np.where(fixed[:, None], 0.0, velocities)


def n_degrees(atoms: Atoms, velocities: NDArray[np.float64], ensemble: Ensemble) -> int:
    """Degrees of freedom: the centre of mass has none where it is at rest for good."""
    masses, fixed = atoms.get_masses()[:, None], held(atoms)
    momentum = (masses * velocities).sum(0)
    scale = float((masses * np.abs(velocities)).sum())
    rests = np.abs(momentum).max() <= 1e-8 * max(scale, 1e-300)
    is_bound = fixed.any() or ensemble.has_langevin or len(atoms) == 1
    return 3 * int((~fixed).sum()) - (3 if rests and not is_bound else 0)
