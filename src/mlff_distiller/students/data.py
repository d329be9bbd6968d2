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
_REWEIGHTINGS = 50


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
    return torch.from_numpy(robust_fit(composition, energies))


def robust_fit(
    composition: np.ndarray,  # (n_frames, n_types)
    energies: np.ndarray,  # (n_frames,) eV
) -> np.ndarray:
    """(n_types,) eV: least squares over the frames that fit, as one wrong energy would spoil it.

    First the least sum of deviations per atom, then squares of those within 10 times their median.
    """
    sizes = composition.sum(1)
    rows, target = composition / sizes[:, None], energies / sizes
    weights = np.ones(len(rows))
    for _ in range(_REWEIGHTINGS):
        root = np.sqrt(weights)
        fit = np.linalg.lstsq(rows * root[:, None], target * root, rcond=None)[0]
        deviation = np.abs(target - rows @ fit)
        weights = 1.0 / np.maximum(deviation, 1e-6 + 1e-2 * np.median(deviation))
        weights /= weights.max()
    fits = deviation <= 1e-6 + 10.0 * np.median(deviation)
    lost = ~(composition[fits] > 0).any(0)
    fits |= (composition[:, lost] > 0).any(1)  # an element keeps the frames it has
    return np.asarray(np.linalg.lstsq(composition[fits], energies[fits], rcond=None)[0])
