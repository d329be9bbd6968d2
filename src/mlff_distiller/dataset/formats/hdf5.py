"""HDF5 of others, read without trust: SPICE's one group per molecule, and MACE's one per structure.

SPICE (Eastman et al., Sci. Data 10, 11 (2023)): ``atomic_numbers`` (n_atoms,), ``conformations``
(n, n_atoms, 3) bohr, ``dft_total_energy`` (n,) hartree, ``dft_total_gradient`` (n, n_atoms, 3)
hartree/bohr; the forces are minus the gradient.

MACE: ``config_batch_k/config_j`` with ``positions``, ``atomic_numbers``, ``cell``, ``pbc``,
``properties/{energy,forces,stress,virials}`` in eV, eV/Å, eV/Å³ (tension positive), and
``property_weights``: what has no weight there is a zero that stands for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms, units
from ase.stress import voigt_6_to_full_3x3_stress

from mlff_distiller.dataset.formats.frame import (
    Conventions,
    Frame,
    stress_from_virial,
    symmetric,
)
from mlff_distiller.errors import DatasetError

_ABSENT = b"None"  # how MACE writes what it does not have
_MOST_UNPACKED = 1000  # bytes of a compressed byte; zeros alone pack better
_ALWAYS_FINE = 1 << 24
_FORCE = units.Hartree / units.Bohr


def kind_of(path: Path) -> str:
    """``spice`` or ``mace-hdf5``; `DatasetError` if it is neither."""
    with _opened(path) as file:
        first = next(iter(file.keys()), "")
        if first.startswith("config_batch_"):
            return "mace-hdf5"
        if first and "conformations" in _group(file, first, path):
            return "spice"
    raise DatasetError(
        f"{path} is HDF5 of an unknown layout",
        expected="SPICE's or MACE's",
        found=f"{first!r} first" if first else "nothing in it",
        remedy="to read a dataset of this program, name its folder",
    )


def read_spice(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Frames of a SPICE-like file; conformations of a molecule are kin."""
    conventions.only("spice")
    with _opened(path) as file:
        index, names = 0, sorted(file.keys())
        for number, name in enumerate(names):
            try:
                numbers, positions, energies, forces = _spice_group(file, name, path)
            except DatasetError as error:
                if len(names) == 1:
                    raise
                yield Frame(index, Atoms(), kin=name, problem=error.problem)
                index += 1
                continue
            n = len(positions)
            for k in range(n):
                labels = {"energy": np.array(energies[k]), "forces": forces[k]}
                done = (number + (k + 1) / n) / len(names)
                yield Frame(index, Atoms(numbers, positions[k]), labels, name, progress=done)
                index += 1


def _spice_group(
    file: h5py.File, name: str, path: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Elements (n_atoms,), positions (n, n_atoms, 3) Å, energies (n,) eV, forces eV/Å."""
    group = _group(file, name, path)
    numbers = _elements(group)
    positions = _array(group, "conformations", 3, "bohr") * units.Bohr
    energies = _array(group, "dft_total_energy", 1, "hartree") * units.Hartree
    forces = -_array(group, "dft_total_gradient", 3, "hartree/bohr") * _FORCE
    n = len(positions)
    shapes = {(n, len(numbers), 3): (positions, forces), (n,): (energies,)}
    for shape, arrays in shapes.items():
        for array in arrays:
            if array.shape != shape:
                raise DatasetError(
                    f"{path}, group {name!r}: arrays do not fit together",
                    expected=shape,
                    found=array.shape,
                )
    return numbers, positions, energies, forces


def read_mace(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Frames of a file that MACE's preprocessing wrote."""
    conventions.only("mace-hdf5")
    with _opened(path) as file:
        index = 0
        batches = sorted(file.keys(), key=_number)
        for number, batch in enumerate(batches):
            configs = _group(file, batch, path)
            for name in sorted(configs.keys(), key=_number):
                done = (number + 1) / len(batches)
                yield _mace_frame(_group(configs, name, path), index, done)
                index += 1


def _mace_frame(group: h5py.Group, index: int, progress: float) -> Frame:
    cell, pbc = _optional(group, "cell"), _optional(group, "pbc")
    atoms = Atoms(
        _elements(group),
        _array(group, "positions", 2),
        cell=np.zeros((3, 3)) if cell is None else cell.reshape(3, 3),
        pbc=False if pbc is None else pbc.astype(bool),
    )
    properties = _group(group, "properties", group.file.filename)
    has_weights = "property_weights" in group
    weights = _group(group, "property_weights", group.file.filename) if has_weights else {}
    found: dict[str, np.ndarray] = {}
    for name in ("energy", "forces", "stress", "virials"):
        weight = _optional(weights, name) if name in weights else np.array(1.0)
        value = _optional(properties, name) if name in properties else None
        if value is not None and weight is not None and float(weight) > 0.0:
            found[name] = value
    labels: dict[str, np.ndarray] = {}
    try:
        for name in ("energy", "forces"):
            if name not in found:
                raise DatasetError(f"no {name}")
            labels[name] = found[name].reshape(() if name == "energy" else (len(atoms), 3))
        if "stress" in found and atoms.pbc.all():
            labels["stress"] = symmetric(_square(found["stress"]), "stress")
        elif "virials" in found and atoms.pbc.all():
            labels["stress"] = stress_from_virial(_square(found["virials"]), atoms, "virials")
    except (DatasetError, ValueError) as error:
        problem = getattr(error, "problem", str(error))
        return Frame(index, atoms, problem=problem, progress=progress)
    return Frame(index, atoms, labels, progress=progress)


def _square(value: np.ndarray) -> np.ndarray:
    if value.size == 6:
        full: np.ndarray = voigt_6_to_full_3x3_stress(value.ravel())
        return full
    return value.reshape(3, 3)


def _number(name: str) -> int:
    digits = name.rpartition("_")[2]
    if not digits.isdigit():
        raise DatasetError(f"a group named {name!r}", expected="config_batch_0, config_0 and so on")
    return int(digits)


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be read as HDF5",
            found=error,
            remedy="the file is truncated or damaged: restore it from a copy",
        ) from error


def _entry(group: h5py.Group, name: str, path: object) -> object:
    """A member, unless it is a link to elsewhere."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DatasetError(f"{path}: {name!r} is a link to elsewhere, which is not followed")
    return group[name]


def _group(group: h5py.Group, name: str, path: object) -> h5py.Group:
    found = _entry(group, name, path) if name in group else None
    if not isinstance(found, h5py.Group):
        raise DatasetError(f"{path}: {group.name}/{name} is not a group")
    return found


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    path = group.file.filename
    found = _entry(group, name, path) if name in group else None
    if not isinstance(found, h5py.Dataset):
        raise DatasetError(f"{path}: {group.name}/{name} is missing")
    if found.external or found.is_virtual:
        raise DatasetError(f"{path}: {group.name}/{name} lies in another file, which is not opened")
    size, stored = found.size * found.dtype.itemsize, found.id.get_storage_size()
    if size > max(_ALWAYS_FINE, _MOST_UNPACKED * stored):
        raise DatasetError(
            f"{path}: {group.name}/{name} declares an absurd size",
            expected=f"at most {_MOST_UNPACKED} times the {stored} bytes stored",
            found=f"{size} bytes",
        )
    return found


def _array(group: h5py.Group, name: str, ndim: int, unit: str = "") -> np.ndarray:
    """Numbers, float64 unless whole; ``unit`` is compared with the attribute, if there is one."""
    found = _dataset(group, name)
    if found.dtype.kind not in "fiub" or found.ndim != ndim:
        raise DatasetError(
            f"{group.file.filename}: {group.name}/{name} is not what the format says",
            expected=f"numbers in {ndim} dimensions",
            found=f"{found.dtype} of shape {found.shape}",
        )
    told = found.attrs.get("units", unit)
    told = told.decode() if isinstance(told, bytes) else told
    if unit and str(told).lower().replace(" ", "") != unit:
        raise DatasetError(
            f"{group.file.filename}: {group.name}/{name} is in another unit",
            expected=unit,
            found=told,
        )
    values: np.ndarray = found[()]
    return values.astype(np.float64) if values.dtype.kind == "f" else values.astype(np.int64)


def _elements(group: h5py.Group) -> np.ndarray:
    """Atomic numbers (n_atoms,); some files have them as floats."""
    numbers = _array(group, "atomic_numbers", 1)
    odd = numbers[numbers % 1 != 0]
    if len(odd):
        raise DatasetError(
            f"{group.file.filename}: {group.name}/atomic_numbers are not those of elements",
            expected="whole numbers",
            found=odd[0],
        )
    return numbers


def _optional(group: h5py.Group, name: str) -> np.ndarray | None:
    """Numbers of any shape; None where MACE wrote that there are none."""
    found = _dataset(group, name)
    if found.dtype.kind in "SO":
        if found.shape == () and found[()] == _ABSENT:
            return None
        raise DatasetError(f"{group.file.filename}: {group.name}/{name} holds no numbers")
    values: np.ndarray = np.asarray(found[()], np.float64)
    return values
