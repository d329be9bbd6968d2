"""What a new student takes from its data: elements, reference energies, where repulsion begins.

Frames are iterated, and so need not be in memory: they may be a `Frames` of a large dataset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.errors import ConfigError
from mlff_distiller.kernels.nep.reference import ZBL_TERMS
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students.base import Student

ZBL_REACH = 1.1
"""Of the shortest distance seen: what saturates below ZBL's radius then stays within the data."""
_RARE = 1e-3
"""Share of atoms that may feel the repulsion of a kind: its curvature jumps where it ends."""
_NEARER = 0.95
"""Of the distance up to which so few are."""
_CONTACT = 1.75
"""Of the sum of covalent radii: as close as molecules come to each other, about."""
_PROBE_FRAMES = 64
_CONTACT_FRAMES = 4096
_ATOMS_AT_ONCE = 4096
_BIN = 1e-3  # Å


def elements_of(frames: Sequence[Batch]) -> tuple[str, ...]:
    """Chemical symbols in ``frames``, by atomic number."""
    numbers = {number for frame in frames for number in frame.atomic_numbers.tolist()}
    return tuple(chemical_symbols[number] for number in sorted(numbers))


def some_of(frames: Sequence[Batch]) -> Batch:
    """Enough of ``frames`` to set scales and radii by: more change neither."""
    return Batch.concatenate(list(frames[:: math.ceil(len(frames) / _PROBE_FRAMES)]))


def reference_energies(frames: Sequence[Batch], student: Student) -> Tensor:
    """(n_types,) eV: least squares of energies on composition; minimum norm if undetermined.

    Memory: 8 bytes per frame and element, a few times over.
    """
    energies = np.empty(len(frames))
    composition = np.empty((len(frames), len(student.elements)))
    for k, frame in enumerate(frames):
        energies[k] = float(frame.labels["energy"])
        types = student.types(frame.atomic_numbers)
        composition[k] = torch.bincount(types, minlength=len(student.elements))
    return torch.from_numpy(np.linalg.lstsq(composition, energies, rcond=None)[0])


def repulsion(
    frames: Sequence[Batch], elements: tuple[str, ...], outermost: float
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """ZBL of each pair of elements: inner and outer radius (Å), and its a and b.

    Switched off at `ZBL_REACH` of the shortest distance that ``frames`` hold, or at `_NEARER` of
    where more than `_RARE` of the atoms are; at most at `_CONTACT` of the covalent radii, or at
    ``outermost`` (Å).
    """
    numbers = torch.tensor([atomic_numbers[symbol] for symbol in elements])
    radii = torch.from_numpy(covalent_radii)[numbers]
    contact = (_CONTACT * (radii[:, None] + radii)).clamp(max=outermost)
    outer = torch.minimum(_least(frames, numbers, float(contact.max())), contact)
    universal = tuple(number for term in ZBL_TERMS for number in term)
    return tuple(
        tuple((round(0.5 * r, 3), round(r, 3), *universal) for r in row) for row in outer.tolist()
    )


def set_repulsion(student: Student, outer_A: Mapping[str, float]) -> None:
    """Let ZBL of pairs of elements, such as ``H-O``, begin at other distances (Å).

    Raises
    ------
    ConfigError
        A pair that the student does not have, a distance beyond its cutoff (of a nep the angular
        one), or a student without repulsion.
    """
    for pair, outer in outer_A.items():
        kinds = [student.elements.index(s) for s in pair.split("-") if s in student.elements]
        if student.zbl is None or student.zbl_table is None or len(kinds) != 2:
            raise ConfigError(
                f"the student has no repulsion of {pair} to move",
                expected=f"repulsion_A of two of {', '.join(student.elements)}, such as "
                f"{student.elements[0]}-{student.elements[-1]}, and a student with zbl",
            )
        if outer > student.repulsion_reach:
            raise ConfigError(
                f"the repulsion of {pair} cannot begin beyond the student's cutoff",
                expected=f"repulsion_A.{pair} of at most {student.repulsion_reach:g} Å",
                found=outer,
            )
        zbl = [list(row) for row in student.zbl]
        for t, u in (kinds, kinds[::-1]):
            zbl[t][u] = (0.5 * outer, outer, *zbl[t][u][2:])
            student.zbl_table[t, u, :2] = student.zbl_table.new_tensor([0.5 * outer, outer])
        student.zbl = tuple(tuple(row) for row in zbl)


def _least(frames: Sequence[Batch], numbers: Tensor, reach: float) -> Tensor:
    """(T, T) Å: where the repulsion of every pair of elements may begin, by distances < ``reach``.

    The smaller of `ZBL_REACH` and `_NEARER` of the two distances there; infinite where no pair of
    the kind is. Distances are counted by bins of `_BIN`.
    """
    n_types, n_bins = len(numbers), math.ceil(reach / _BIN) + 1
    counts = torch.zeros(n_types**2 * n_bins, dtype=torch.int64)
    atoms = torch.zeros(n_types, dtype=torch.int64)
    some = frames[:: math.ceil(len(frames) / _CONTACT_FRAMES)]
    for batch in _batches(some):
        pairs = neighbor_list(batch, reach)
        types = torch.searchsorted(numbers, batch.atomic_numbers)
        atoms += torch.bincount(types, minlength=n_types)
        kinds = types[pairs.i] * n_types + types[pairs.j]
        bins = (edge_vectors(batch, pairs).norm(dim=1) / _BIN).long()
        index = kinds * n_bins + bins
        counts.scatter_add_(0, index, torch.ones_like(index))
    below = counts.view(n_types, n_types, n_bins).cumsum(2)  # distances up to each bin's end
    rare = _RARE * torch.minimum(atoms[:, None], atoms)[:, :, None]
    shortest, crowded = _BIN * (below == 0).sum(2), _BIN * (below <= rare).sum(2)
    least = torch.minimum(ZBL_REACH * shortest, _NEARER * torch.maximum(shortest, crowded))
    return torch.where(below[:, :, -1] > 0, least.double(), math.inf)


def _batches(frames: Sequence[Batch]) -> Iterator[Batch]:
    """All ``frames``, those of some thousand atoms at a time; a larger one alone."""
    run: list[Batch] = []
    n_atoms = 0
    for frame in frames:
        if run and n_atoms + frame.n_atoms > _ATOMS_AT_ONCE:
            yield Batch.concatenate(run)
            run, n_atoms = [], 0
        run.append(frame)
        n_atoms += frame.n_atoms
    yield Batch.concatenate(run)
