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


def force_errors(teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    """MAE, RMSE, R², fidelity and mean angle (degrees) of forces (n_atoms, 3) in eV/Å.

    ``fidelity = 1 - sum |F_student - F_teacher| / sum |F_teacher|`` over all components. The
    angle leaves out atoms without a force worth a direction (below 1 meV/Å on either side). NaN
    is what has no denominator. Nothing waits for the device.
    """
    error = student - teacher
    sizes = teacher.norm(dim=1), student.norm(dim=1)
    directed = (sizes[0] > 1e-3) & (sizes[1] > 1e-3)
    cosine = (teacher * student).sum(1) / (sizes[0] * sizes[1])
    angle = cosine.clamp(-1.0, 1.0).arccos().rad2deg()
    return {
        "forces_mae_meV_per_A": 1e3 * error.abs().mean(),
        "forces_rmse_meV_per_A": 1e3 * error.square().mean().sqrt(),
        "forces_r2": _complement(error.square().sum(), (teacher - teacher.mean()).square().sum()),
        "forces_fidelity": _complement(error.abs().sum(), teacher.abs().sum()),
        "forces_angle_deg": angle.where(directed, 0.0).sum() / directed.sum(),
    }


def _complement(error: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0.0, 1.0 - error / scale, torch.nan)


@torch.no_grad()
def validate(student: Student, batches: Sequence[Sample]) -> dict[str, float]:
    """Errors over all ``batches``; names carry their units.

    Stress only where the teacher gave it, forces' R² and angle where they mean something. The
    fidelity is always there: 0, that of a student without forces, where the teacher has none.
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
    energy = torch.cat(energies)
    errors = {
        **force_errors(teacher, forces),
        "energy_mae_meV_per_atom": 1e3 * energy.abs().mean(),
        "energy_rmse_meV_per_atom": 1e3 * energy.square().mean().sqrt(),
    }
    errors["forces_fidelity"] = errors["forces_fidelity"].where(teacher.any(), 0.0)
    stress = torch.cat([energy.new_zeros(0), *stresses]) / units.GPa
    if len(stress):
        errors["stress_mae_GPa"] = stress.abs().mean()
        errors["stress_rmse_GPa"] = stress.square().mean().sqrt()
    values = dict(zip(errors, torch.stack(list(errors.values())).tolist(), strict=True))
    return {f"validation_{name}": value for name, value in values.items() if not math.isnan(value)}
