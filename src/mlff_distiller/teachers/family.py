"""What a family of teachers provides, and what its adapter needs while running.

A family is a module with two names, found by file for ours and by the entry-point group
``mlff_distiller.teachers`` for others':

``FAMILY``
    a `Family`: what may be written in a teacher's SPEC. Used in our process.
``load(arguments, device, allow_download)``
    returns a `Loaded`. Called once, in the teacher's own process, with what
    ``FAMILY.resolve`` returned. Only here is the teacher's library imported.

That process may run in an interpreter with nothing but NumPy, ASE and the library, so these
modules import only those, the standard library, and each other.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.errors import StructureError, TeacherError


@dataclass(frozen=True)
class Family:
    """What can be asked of a family without importing its library.

    ``resolve`` takes the parts of a SPEC before and after its first colon and returns the
    teacher's name and the JSON-able arguments of ``load``. A name must not hold a folder: the same
    weights elsewhere are the same teacher.
    """

    name: str
    package: str
    """The Python package to import, '' if none in particular."""
    install: str
    """What to hand to pip, '' if nothing in particular."""
    requirements: str
    """The same for another environment, where only the library is needed."""
    licence: str
    usage: str
    """SPEC with own weights, '' if there is none."""
    teachers: Mapping[str, str]
    """Registered name -> one line on what it is."""
    resolve: Callable[[str, str | None], tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Evaluation:
    """One structure's results, in eV and Å, with ASE's signs."""

    energy: float
    forces: np.ndarray  # (n_atoms, 3)
    stress: np.ndarray | None = None  # (3, 3) or Voigt (6,)
    free_energy: float | None = None
    """The energy whose derivative the forces are, where that is not ``energy``."""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Anything else. ``forces_spread`` (n_atoms,) becomes a label."""
    energies: np.ndarray | None = None
    """(n_atoms,); left out unless they sum to the energy whose derivative the forces are."""


@dataclass(frozen=True)
class Loaded:
    """A teacher ready to answer, and what identifies it."""

    evaluate: Callable[[Atoms, bool], Evaluation]
    """Structure and whether stress is wanted; it is only for structures periodic in 3-D."""
    version: str
    licence: str
    device: str
    weights: Sequence[Path] = ()
    elements: Sequence[int] | None = None
    """Atomic numbers it was made for; None if the library does not say."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able; whatever else changes its answers."""
    uses: Sequence[str] | None = ()
    """Which of ``charge`` and ``spin`` it heeds; None if unknown."""
    evaluate_many: Callable[[Sequence[Atoms], Sequence[bool]], list[Evaluation]] | None = None
    """Several structures in one pass of the library, and for each whether stress is wanted; None
    where the library knows no batches. Must agree with ``evaluate``."""
    batch_atoms: int | None = None
    """Most atoms to give ``evaluate_many`` unless asked otherwise; None: 2048 on a GPU, and on the
    CPU 96 atoms of molecules, while a crystal, whose many neighbours fill the cache, goes alone."""


def local_file(path: str, spec: str) -> str:
    """``path`` made absolute; `TeacherError` if no file is there."""
    absolute = Path(path).expanduser().absolute()
    if not path or not absolute.is_file():
        raise TeacherError(
            f"teacher {spec!r}: its weights are missing",
            expected="the path of an existing file",
            found=f"nothing at {absolute}" if path else "an empty path",
            remedy="correct the path; '~' and paths relative to the current folder are understood",
        )
    return str(absolute)


def no_argument(name: str, argument: str | None) -> None:
    """`TeacherError` if something follows the colon of a name that takes nothing."""
    if argument is not None:
        raise TeacherError(
            f"teacher {name!r} takes no argument", expected=name, found=f"{name}:{argument}"
        )


def digest(paths: Sequence[Path]) -> str | None:
    """SHA-256 of one file; of several, that of their digests, one per line, in order."""
    digests = []
    for path in paths:
        content = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                content.update(block)
        digests.append(content.hexdigest())
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def full_stress(stress: np.ndarray) -> np.ndarray:
    """Symmetric (3, 3) float64 from (3, 3) or from ASE's Voigt order xx yy zz yz xz xy."""
    stress = np.asarray(stress)
    if stress.dtype.kind not in "fiu":
        raise TeacherError("stress is not of real numbers", found=f"dtype {stress.dtype}")
    stress = stress.astype(np.float64)
    if stress.shape == (6,):
        xx, yy, zz, yz, xz, xy = stress
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if stress.shape == (3, 3):
        return np.asarray(0.5 * (stress + stress.T))
    raise TeacherError("stress of the wrong shape", expected="(6,) or (3, 3)", found=stress.shape)


def in_vacuum(atoms: Atoms, cutoff: float) -> Atoms:
    """A fully periodic copy in which no images meet along directions that were not periodic.

    Those lattice vectors are replaced by normals to the periodic ones, longer than the structure
    by ``2 * cutoff`` (Å). Atoms keep their order, and are wrapped.
    """
    boxed = Atoms(atoms.numbers, atoms.positions, pbc=True)
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    normals = atoms.cell.new(cell).complete().array
    for axis in np.flatnonzero(~atoms.pbc):
        along = boxed.positions @ normals[axis]
        cell[axis] = (np.ptp(along) + 2.0 * cutoff) * normals[axis]
        boxed.positions += (cutoff - along.min()) * normals[axis]
    boxed.cell = cell
    boxed.wrap()
    return boxed


def total_charge(atoms: Atoms) -> int:
    """``info["charge"]`` if it is there, else the sum of initial charges; must be whole."""
    charge = float(atoms.info.get("charge", atoms.get_initial_charges().sum()))
    if abs(charge - round(charge)) > 1e-6:
        raise StructureError(
            "the total charge is not a whole number",
            expected="an integer in atoms.info['charge'], or initial charges that sum to one",
            found=charge,
        )
    return round(charge)


def force_spread(members: np.ndarray) -> np.ndarray:
    """Committee disagreement an atom, eV/Å: ``sqrt(mean_k |F_k - mean_k F_k|^2)``.

    ``members`` is (n_members, n_atoms, 3); the result is (n_atoms,).
    """
    deviations = members - members.mean(0)
    return np.asarray(np.sqrt((deviations**2).sum(2).mean(0)))


def licence_of(distribution: str) -> str:
    """Licence that an installed distribution's metadata states."""
    metadata: Any = importlib.metadata.metadata(distribution)
    text: str = metadata.get("License-Expression") or metadata.get("License") or "not stated"
    first = text.strip().splitlines()[0]
    names = {"MIT License": "MIT", "Modified BSD": "Modified BSD (BSD-3-Clause)"}
    return names.get(first, first)


def torch_device(device: str) -> str:
    """``auto`` resolved; `TeacherError` if CUDA is asked for and PyTorch finds none."""
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device.startswith("cuda") and not available:
        raise TeacherError(
            f"device {device!r} is not available to the teacher",
            expected="a CUDA device that PyTorch can use",
            found=f"PyTorch {torch.__version__} without one",
            remedy="use device 'cpu', or install a CUDA build of PyTorch",
        )
    return device
