"""What a new student takes from its data: elements, reference energies, where repulsion begins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.kernels.nep.reference import ZBL_TERMS
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students.base import Student

ZBL_REACH = 1.1
"""Of the shortest distance seen: what saturates below ZBL's radius then stays within the data."""
_CONTACT = 1.75
"""Of the sum of covalent radii: as close as molecules come to each other, about."""
_PROBE_FRAMES = 64
_CONTACT_FRAMES = 4096
_CHUNK = 64


def elements_of(frames: Sequence[Batch]) -> tuple[str, ...]:
    """Chemical symbols in ``frames``, by atomic number."""
    numbers = torch.unique(torch.cat([frame.atomic_numbers for frame in frames]))
    return tuple(chemical_symbols[number] for number in numbers.tolist())


def some_of(frames: Sequence[Batch]) -> Batch:
    """Enough of ``frames`` to set scales and radii by: more change neither."""
    return Batch.concatenate(frames[:: math.ceil(len(frames) / _PROBE_FRAMES)])


def reference_energies(frames: Sequence[Batch], student: Student) -> Tensor:
    """(n_types,) eV: least squares of energies on composition; minimum norm if undetermined."""
    composition = torch.stack(
        [
            torch.bincount(student.types(frame.atomic_numbers), minlength=len(student.elements))
            for frame in frames
        ]
    ).double()
    energies = torch.cat([frame.labels["energy"] for frame in frames]).double()
    return torch.from_numpy(np.linalg.lstsq(composition.numpy(), energies.numpy(), rcond=None)[0])


def repulsion(
    frames: Sequence[Batch], elements: tuple[str, ...], outermost: float
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """ZBL of each pair of elements: inner and outer radius (Å), and its a and b.

    Switched off at `ZBL_REACH` of the shortest distance that ``frames`` hold, or at `_CONTACT` of
    the covalent radii or ``outermost`` (Å) if that is less.
    """
    numbers = torch.tensor([atomic_numbers[symbol] for symbol in elements])
    radii = torch.from_numpy(covalent_radii)[numbers]
    contact = (_CONTACT * (radii[:, None] + radii)).clamp(max=outermost)
    outer = torch.minimum(ZBL_REACH * _shortest(frames, numbers, float(contact.max())), contact)
    universal = tuple(number for term in ZBL_TERMS for number in term)
    return tuple(
        tuple((round(0.5 * r, 3), round(r, 3), *universal) for r in row) for row in outer.tolist()
    )


def _shortest(frames: Sequence[Batch], numbers: Tensor, reach: float) -> Tensor:
    """(T, T) Å: the shortest distance of every pair of elements; infinite if beyond ``reach``."""
    shortest = torch.full((len(numbers),) * 2, math.inf, dtype=torch.float64)
    some = frames[:: math.ceil(len(frames) / _CONTACT_FRAMES)]
    for start in range(0, len(some), _CHUNK):
        batch = Batch.concatenate(some[start : start + _CHUNK])
        pairs = neighbor_list(batch, reach)
        types = torch.searchsorted(numbers, batch.atomic_numbers)
        index = types[pairs.i] * len(numbers) + types[pairs.j]
        lengths = edge_vectors(batch, pairs).norm(dim=1).double()
        shortest.view(-1).scatter_reduce_(0, index, lengths, "amin")
    return shortest
