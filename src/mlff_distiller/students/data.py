"""What a new student takes from its data: its elements and their reference energies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.students.base import Student

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
