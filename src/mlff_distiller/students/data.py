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

ZBL_REACH = 0.95
"""Of the shortest distance seen: from there on nothing else keeps atoms apart."""
_CONTACT = 1.75
"""Of the sum of covalent radii: as close as molecules come to each other, about."""
_PROBE_FRAMES = 64


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
    probes: Batch, elements: tuple[str, ...], outermost: float
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """ZBL of each pair of elements: inner and outer radius (Å), and its a and b.

    Switched off at `ZBL_REACH` of the shortest distance that the data hold, and by ``outermost``
    (Å); a pair never seen closer than `_CONTACT` of its covalent radii takes these instead.
    """
    pairs = neighbor_list(probes, outermost)
    lengths = edge_vectors(probes, pairs).norm(dim=1).numpy()
    numbers = probes.atomic_numbers.numpy()
    zi, zj = numbers[pairs.i.numpy()], numbers[pairs.j.numpy()]
    universal = tuple(number for term in ZBL_TERMS for number in term)

    def row(first: str, second: str) -> tuple[float, ...]:
        a, b = atomic_numbers[first], atomic_numbers[second]
        bond = float(covalent_radii[a] + covalent_radii[b])
        seen = lengths[(zi == a) & (zj == b)]
        contact = _CONTACT * bond
        shortest = min(contact, float(seen.min())) if len(seen) else contact
        outer = round(min(ZBL_REACH * shortest, outermost), 3)
        return (round(0.5 * outer, 3), outer, *universal)

    return tuple(tuple(row(first, second) for second in elements) for first in elements)
