"""The distillation loss: Huber errors of forces, energy and stress, over the data's spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.students.base import Prediction, Student


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class LossSettings:
    """Weights of the three errors. ``huber_delta``, in spreads: below it an error counts squared.

    A small delta makes the loss nearly absolute: fidelity is a sum of absolute errors, and rare
    strained frames do not dominate.
    """

    forces: Annotated[float, Field(ge=0)] = 1.0
    energy: Annotated[float, Field(ge=0)] = 0.05
    stress: Annotated[float, Field(ge=0)] = 0.05
    huber_delta: Annotated[float, Field(gt=0)] = 0.1


@dataclass(frozen=True)
class Spread:
    """Standard deviations over the training data, so that the loss has no unit."""

    energy: float  # eV/atom, after reference energies
    forces: float  # eV/Å
    stress: float  # eV/Å³

    @classmethod
    def of(cls, frames: Sequence[Batch], student: Student) -> Spread:
        energies, forces, stresses = [], [], []
        for frame in frames:
            baseline = student.reference_energies[student.types(frame.atomic_numbers)].sum()
            energies.append((frame.labels["energy"] - baseline) / frame.n_atoms)
            forces.append(frame.labels["forces"].double().reshape(-1))
            stresses.append(frame.labels["stress"].reshape(-1))
        stress = torch.cat(stresses)
        stress = stress[~stress.isnan()]
        return cls(
            _deviation(torch.cat(energies), smallest=1e-3),
            _deviation(torch.cat(forces), smallest=1e-3),
            _deviation(stress, smallest=1e-5) if len(stress) else 1.0,
        )


def _deviation(values: Tensor, smallest: float) -> float:
    return max(float(values.std(correction=0)), smallest)


def huber(error: Tensor, delta: float) -> Tensor:
    """Mean of ``|e| - delta/2`` above ``delta`` and ``e^2 / (2 delta)`` below."""
    return torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=delta) / delta


def loss(prediction: Prediction, batch: Batch, spread: Spread, settings: LossSettings) -> Tensor:
    """Scalar loss of a batch. A system without a stress label takes no part in the stress error."""
    dtype, delta = prediction.forces.dtype, settings.huber_delta
    force_error = (prediction.forces - batch.labels["forces"].to(dtype)) / spread.forces
    total = settings.forces * huber(force_error, delta)
    if settings.energy:
        error = (prediction.energy - batch.labels["energy"]) / batch.atoms_per_system
        total = total + settings.energy * huber((error / spread.energy).to(dtype), delta)
    if settings.stress:
        error = (prediction.stress - batch.labels["stress"]) / spread.stress
        known = ~error.isnan()
        if bool(known.any()):
            total = total + settings.stress * huber(error[known].to(dtype), delta)
    return total
