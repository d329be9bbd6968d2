"""Errors of a student on labelled frames, as training watches them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from ase import units
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.loader import cut
from mlff_distiller.students.base import Student
from mlff_distiller.training.minibatch import Sample, collate, with_neighbors

_ATOMS_AT_ONCE = {"cpu": 2_048, "cuda": 8_192}


def batches_of(frames: Sequence[Batch], student: Student) -> list[Sample]:
    """``frames`` and their pairs in batches of bounded size, on the student's device."""
    sizes = np.array([frame.n_atoms for frame in frames])
    runs = cut(sizes, _ATOMS_AT_ONCE[student.device.type])
    samples = with_neighbors(frames, student)
    return [collate(samples[first:end]) for first, end in runs]


@torch.no_grad()
def validate(student: Student, batches: Sequence[Sample]) -> dict[str, float]:
    """Errors over all ``batches``; names carry their units.

    ``fidelity = 1 - sum |F_student - F_teacher| / sum |F_teacher|``; R² and the mean angle (of
    forces above 1 meV/Å) as in the report. Stress only where the teacher gave it.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    energies: list[Tensor] = []
    stresses: list[Tensor] = []
    for batch, neighbors in batches:
        prediction = student(batch, neighbors)
        pairs.append((prediction.forces.double(), batch.labels["forces"].double()))
        energies.append((prediction.energy - batch.labels["energy"]) / batch.atoms_per_system)
        if "stress" in batch.labels:
            error = (prediction.stress - batch.labels["stress"]).flatten(1)
            stresses.append(error[error.isfinite().all(1)].flatten())
    forces, teacher = (torch.cat(column) for column in zip(*pairs, strict=True))
    error, energy = forces - teacher, torch.cat(energies)
    scale = teacher.abs().sum().clamp(min=1e-12)
    spread = (teacher - teacher.mean()).square().sum().clamp(min=1e-24)
    sizes = forces.norm(dim=1), teacher.norm(dim=1)
    directed = (sizes[0] > 1e-3) & (sizes[1] > 1e-3)
    cosine = (forces * teacher).sum(1)[directed] / (sizes[0] * sizes[1])[directed]
    errors = {
        "forces_mae_meV_per_A": 1e3 * error.abs().mean(),
        "forces_rmse_meV_per_A": 1e3 * error.square().mean().sqrt(),
        "forces_fidelity": 1.0 - error.abs().sum() / scale,
        "forces_r2": 1.0 - error.square().sum() / spread,
        "forces_angle_deg": cosine.clamp(-1.0, 1.0).arccos().rad2deg().mean(),
        "energy_mae_meV_per_atom": 1e3 * energy.abs().mean(),
        "energy_rmse_meV_per_atom": 1e3 * energy.square().mean().sqrt(),
    }
    stress = torch.cat([energy.new_zeros(0), *stresses]) / units.GPa
    if len(stress):
        errors["stress_mae_GPa"] = stress.abs().mean()
        errors["stress_rmse_GPa"] = stress.square().mean().sqrt()
    values = dict(zip(errors, torch.stack(list(errors.values())).tolist(), strict=True))
    return {f"validation_{name}": value for name, value in values.items() if not math.isnan(value)}
