"""What a new student takes from its data: its elements and their reference energies.

Frames are iterated, and so need not be in memory: they may be a `Frames` of a large dataset.
"""

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
