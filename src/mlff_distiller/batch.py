"""``Batch``: several structures as tensors, and the only conversion from and to ``ase.Atoms``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from mlff_distiller.errors import StructureError
from mlff_distiller.properties import LABELS

_LARGEST_POSITION = 1e6
"""Å. Beyond it float64 differences lose more than 1e-10 Å and neighbour grids overflow."""


DENSEST = 50.0
"""More atoms in 1 Å³ than any structure has: real matter has some 0.2."""


def refuse_density(atoms_per_A3: float, densest: float = DENSEST) -> None:
    """`StructureError` if there are more atoms than that: their pairs would fill the memory."""
    if atoms_per_A3 > densest:
        raise StructureError(
            "atoms lie on top of each other",
            expected=f"at most {densest:g} atoms in 1 Å³",
            found=f"{atoms_per_A3:.4g}",
            remedy="correct the positions or the cell, which are in Å",
        )


def check_structure(atoms: Atoms, name: str = "structure") -> None:
    """Raise ``StructureError`` if no model can evaluate ``atoms``; cost O(n_atoms)."""
    n_atoms = len(atoms)
    if n_atoms == 0:
        raise StructureError(f"{name} is empty", expected="at least one atom", found="0 atoms")
    positions, numbers, cell, pbc = atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc
    if positions.shape != (n_atoms, 3):
        raise StructureError(
            f"{name}: positions have the wrong shape", expected=(n_atoms, 3), found=positions.shape
        )
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(1))[0])
        raise StructureError(
            f"{name}: the position of atom {atom} is not finite",
            found=positions[atom].tolist(),
            remedy="remove the structure, or restart from the last good frame",
        )
    if np.abs(positions).max() > _LARGEST_POSITION:
        atom = int(np.abs(positions).max(1).argmax())
        raise StructureError(
            f"{name}: atom {atom} is too far from the origin",
            expected=f"|coordinate| <= {_LARGEST_POSITION:g} Å",
            found=positions[atom].tolist(),
            remedy="wrap or centre the structure (atoms.wrap(), atoms.center())",
        )
    if numbers.shape != (n_atoms,) or numbers.dtype.kind not in "iu":
        raise StructureError(
            f"{name}: atomic numbers are not one whole number for each atom",
            expected=f"integers of shape {(n_atoms,)}",
            found=f"{numbers.dtype} of shape {numbers.shape}",
        )
    if numbers.min() < 1 or numbers.max() > 118:
        atom = int(np.flatnonzero((numbers < 1) | (numbers > 118))[0])
        raise StructureError(
            f"{name}: the number of atom {atom} is not that of an element",
            expected="atomic numbers from 1 to 118",
            found=int(numbers[atom]),
        )
    if not np.isfinite(cell).all():
        raise StructureError(f"{name}: the cell is not finite", found=cell.tolist())
    lengths = np.linalg.norm(cell, axis=1)
    for axis in range(3):
        if pbc[axis] and lengths[axis] == 0.0:
            raise StructureError(
                f"{name}: periodic along lattice vector {axis}, which is zero",
                found=cell.tolist(),
                remedy="set atoms.cell, or atoms.pbc = False for an isolated system",
            )
    if pbc.any():
        spanned = np.prod(np.linalg.svd(cell[pbc], compute_uv=False))
        if spanned < 1e-6 * np.prod(lengths[pbc]):
            raise StructureError(
                f"{name}: the cell is singular, or skewed beyond a million to one",
                found=cell.tolist(),
                remedy="correct the lattice vectors, or reduce them (ase.build.niggli_reduce)",
            )


@dataclass(frozen=True)
class Batch:
    """Structures of any sizes, concatenated. Tensors are never modified in place.

    ``labels`` maps names of ``properties.LABELS`` to tensors with a leading axis of atoms or
    systems; a label that a structure lacks is NaN.
    """

    positions: Tensor  # (n_atoms, 3) float64, Å
    atomic_numbers: Tensor  # (n_atoms,) int64
    system_idx: Tensor  # (n_atoms,) int64, ascending
    cell: Tensor  # (n_systems, 3, 3) float64, Å, rows are vectors
    pbc: Tensor  # (n_systems, 3) bool
    labels: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def n_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def n_systems(self) -> int:
        return len(self.cell)

    @property
    def atoms_per_system(self) -> Tensor:
        """(n_systems,) int64."""
        return torch.bincount(self.system_idx, minlength=self.n_systems)

    @property
    def volume(self) -> Tensor:
        """(n_systems,) Å³; 0 where the cell has no volume."""
        a, b, c = self.cell.unbind(1)
        volume: Tensor = (torch.linalg.cross(a, b) * c).sum(1)
        return volume.abs()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; dtypes stay."""
        tensors: list[Any] = [getattr(self, name).to(device) for name in _TENSORS]
        labels = {name: value.to(device) for name, value in self.labels.items()}
        return replace(Batch(*tensors), labels=labels)

    @classmethod
    def concatenate(cls, batches: Sequence[Batch]) -> Batch:
        """All systems of ``batches``, in order; only labels that every one has are kept."""
        starts = np.cumsum([0, *(batch.n_systems for batch in batches)])
        system_idx = [
            batch.system_idx + int(start) for batch, start in zip(batches, starts[:-1], strict=True)
        ]
        tensors: list[Any] = [
            torch.cat([getattr(own, name) for own in batches]) for name in _TENSORS
        ]
        shared = set(batches[0].labels).intersection(*(batch.labels for batch in batches))
        labels = {
            name: torch.cat([batch.labels[name] for batch in batches])
            for name in LABELS
            if name in shared
        }
        return replace(cls(*tensors), system_idx=torch.cat(system_idx), labels=labels)

    def systems(self) -> list[Batch]:
        """One batch a system, sharing memory with this one."""
        parts, start = [], 0
        for system, size in enumerate(self.atoms_per_system.tolist()):
            rows = slice(start, start + size)
            own = slice(system, system + 1)
            labels = {
                name: value[rows if LABELS[name].per == "atom" else own]
                for name, value in self.labels.items()
            }
            parts.append(
                Batch(
                    self.positions[rows],
                    self.atomic_numbers[rows],
                    self.system_idx[rows] - system,
                    self.cell[own],
                    self.pbc[own],
                    labels,
                )
            )
            start += size
        return parts

    @classmethod
    def from_atoms(cls, frames: Sequence[Atoms]) -> Batch:
        """Check and copy ``frames``. Labels are taken from attached calculators only.

        Those ASE knows from ``results``, ours from ``extra``, as in our calculators. ``info`` and
        ``arrays`` are ignored: an energy left there may be anybody's.
        """
        for index, atoms in enumerate(frames):
            check_structure(atoms, f"structure {index}")
        sizes = [len(atoms) for atoms in frames]
        batch = cls(
            torch.from_numpy(np.concatenate([atoms.positions for atoms in frames])),
            torch.from_numpy(np.concatenate([atoms.numbers for atoms in frames]).astype(np.int64)),
            torch.repeat_interleave(torch.arange(len(frames)), torch.tensor(sizes)),
            torch.from_numpy(np.stack([atoms.cell.array for atoms in frames])),
            torch.from_numpy(np.stack([atoms.pbc for atoms in frames])),
        )
        if any(atoms.calc is not None for atoms in frames):
            values = {name: [_label(atoms, name) for atoms in frames] for name in LABELS}
            labels = {
                name: torch.from_numpy(
                    np.concatenate(rows) if LABELS[name].per == "atom" else np.stack(rows)
                )
                for name, rows in values.items()
            }
            batch = replace(batch, labels=labels)
        return batch

    def to_atoms(self) -> list[Atoms]:
        """One ``Atoms`` a system; finite labels travel in a ``SinglePointCalculator``.

        Those ASE knows in its ``results``, ours in its ``extra``.
        """
        frames = []
        arrays = {name: getattr(self, name).cpu().numpy() for name in _TENSORS}
        labels = {name: value.detach().cpu().numpy() for name, value in self.labels.items()}
        ends = np.cumsum(self.atoms_per_system.cpu().numpy())
        for system, end in enumerate(ends):
            rows = slice(end - int(self.atoms_per_system[system]), end)
            atoms = Atoms(
                arrays["atomic_numbers"][rows],
                arrays["positions"][rows],
                cell=arrays["cell"][system],
                pbc=arrays["pbc"][system],
            )
            results = {}
            for name, value in labels.items():
                own = value[rows] if LABELS[name].per == "atom" else value[system]
                if np.isfinite(own).all():
                    results[name] = own
            if results:
                extra = {name: results.pop(name).copy() for name in _OURS if name in results}
                if "energy" in results:
                    results["energy"] = float(results["energy"])
                if "stress" in results:
                    results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
                atoms.calc = SinglePointCalculator(atoms, **results)
                atoms.calc.extra = extra
            frames.append(atoms)
        return frames


_TENSORS = ("positions", "atomic_numbers", "system_idx", "cell", "pbc")
_OURS = tuple(name for name in LABELS if name not in all_properties)
"""Labels that ASE has no property for."""


def _label(atoms: Atoms, name: str) -> np.ndarray:
    """The value of an attached calculator, which must belong to ``atoms`` as it is; else NaN."""
    row = LABELS[name]
    shape = (len(atoms), *row.shape) if row.per == "atom" else row.shape
    value = None
    if atoms.calc is not None and not atoms.calc.check_state(atoms):
        source = getattr(atoms.calc, "extra", None) if name in _OURS else atoms.calc.results
        value = source.get(name) if isinstance(source, Mapping) else None
    if value is None:
        return np.full(shape, np.nan)
    value = np.asarray(value, dtype=np.float64)
    if name == "stress" and value.shape == (6,):
        xx, yy, zz, yz, xz, xy = value
        value = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if value.shape != shape:
        raise StructureError(
            f"label {name!r} has the wrong shape", expected=shape, found=value.shape
        )
    return value
