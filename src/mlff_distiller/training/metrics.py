"""Errors of a student on labelled frames, as training watches them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from ase import units
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.frames import Frames, cut
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students.base import Student
from mlff_distiller.training.cache import Cache, Room
from mlff_distiller.training.minibatch import Sample

_ATOMS_AT_ONCE = {"cpu": 2_048, "cuda": 8_192}


class Samples:
    """``frames`` and their pairs in batches of bounded size, on the student's device.

    As often iterated as wanted; batches are kept while there is ``room``, all of them without one,
    and are made again otherwise, one ahead of its use.
    """

    def __init__(self, frames: Sequence[Batch], student: Student, room: Room | None = None) -> None:
        self._frames, self._student = Frames.of(frames), student
        self._runs = cut(self._frames.n_atoms, _ATOMS_AT_ONCE[student.device.type])
        self._made = Cache(self._make, room)

    def __iter__(self) -> Iterator[Sample]:
        numbers = range(len(self._runs))
        try:
            for number in numbers:
                (sample,) = self._made.get([number])
                self._made.prepare(numbers[number + 1 : number + 2])
                yield sample
        finally:
            self._made.close()

    def _make(self, numbers: Sequence[int]) -> list[Sample]:
        samples = []
        for first, end in (self._runs[number] for number in numbers):
            batch = Batch.concatenate(self._frames.take(range(first, end))).to(self._student.device)
            samples.append((batch, neighbor_list(batch, self._student.cutoff)))
        return samples


def force_errors(teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    """MAE, RMSE, R², fidelity and mean angle (degrees) of forces (n_atoms, 3) in eV/Å.

    ``fidelity = 1 - sum |F_student - F_teacher| / sum |F_teacher|`` over all components. The
    angle leaves out atoms without a force worth a direction (below 1 meV/Å on either side). NaN
    is what has no denominator. Nothing waits for the device.
    """
    return _force_errors(_force_sums(teacher, student).unsqueeze(0))


def _force_sums(teacher: Tensor, student: Tensor) -> Tensor:
    """(8,) what `_force_errors` needs to know of some atoms."""
    error = student - teacher
    sizes = teacher.norm(dim=1), student.norm(dim=1)
    directed = (sizes[0] > 1e-3) & (sizes[1] > 1e-3)
    cosine = (teacher * student).sum(1) / (sizes[0] * sizes[1])
    angle = cosine.clamp(-1.0, 1.0).arccos().rad2deg()
    mean = teacher.mean()
    return torch.stack(
        [
            mean.new_full((), teacher.numel()),
            error.abs().sum(),
            error.square().sum(),
            teacher.abs().sum(),
            mean,
            (teacher - mean).square().sum(),
            angle.where(directed, 0.0).sum(),
            directed.sum().to(mean.dtype),
        ]
    )


def _force_errors(sums: Tensor) -> dict[str, Tensor]:
    """From the sums (n_parts, 8) of all parts."""
    n, absolute, square, size, mean, about_mean, angle, directed = sums.unbind(1)
    total = n.sum()
    # Squares about the mean of all, from those about the parts' own (Chan et al. 1979).
    of_all = (n * mean).sum() / total
    scatter = about_mean.sum() + (n * (mean - of_all).square()).sum()
    return {
        "forces_mae_meV_per_A": 1e3 * (absolute.sum() / total),
        "forces_rmse_meV_per_A": 1e3 * (square.sum() / total).sqrt(),
        "forces_r2": _complement(square.sum(), scatter),
        "forces_fidelity": _complement(absolute.sum(), size.sum()),
        "forces_angle_deg": angle.sum() / directed.sum(),
    }


def _complement(error: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0.0, 1.0 - error / scale, torch.nan)


@torch.no_grad()
def validate(student: Student, batches: Iterable[Sample]) -> dict[str, float]:
    """Errors over all ``batches``; names carry their units.

    Stress only where the teacher gave it, forces' R² and angle where they mean something. The
    fidelity is always there: 0, that of a student without forces, where the teacher has none.
    Memory in addition to a batch: some 100 bytes per frame.
    """
    parts: list[Tensor] = []
    energies: list[Tensor] = []
    stresses: list[Tensor] = []
    for batch, neighbors in batches:
        prediction = student(batch, neighbors)
        parts.append(_force_sums(batch.labels["forces"].double(), prediction.forces.double()))
        energies.append((prediction.energy - batch.labels["energy"]) / batch.atoms_per_system)
        if "stress" in batch.labels:
            error = (prediction.stress - batch.labels["stress"]).flatten(1)
            stresses.append(error[error.isfinite().all(1)].flatten())
    sums, energy = torch.stack(parts), torch.cat(energies)
    errors = {
        **_force_errors(sums),
        "energy_mae_meV_per_atom": 1e3 * energy.abs().mean(),
        "energy_rmse_meV_per_atom": 1e3 * energy.square().mean().sqrt(),
    }
    has_forces = sums[:, 3].sum() != 0.0
    errors["forces_fidelity"] = errors["forces_fidelity"].where(has_forces, 0.0)
    stress = torch.cat([energy.new_zeros(0), *stresses]) / units.GPa
    if len(stress):
        errors["stress_mae_GPa"] = stress.abs().mean()
        errors["stress_rmse_GPa"] = stress.square().mean().sqrt()
    values = dict(zip(errors, torch.stack(list(errors.values())).tolist(), strict=True))
    return {f"validation_{name}": value for name, value in values.items() if not math.isnan(value)}
