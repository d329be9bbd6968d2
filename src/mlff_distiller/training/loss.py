"""The distillation loss: Huber errors of what the teacher said, over the data's spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.frames import Frames
from mlff_distiller.kernels import warp_adjoints
from mlff_distiller.kernels.compiling import OnTensors
from mlff_distiller.students.base import Prediction, Student
from mlff_distiller.training.minibatch import Minibatch

Weight = Annotated[float, Field(ge=0)]
_OUTLIER = 3.0
"""Interquartile ranges from the median, 4 standard deviations of a normal distribution."""
_ATOMS_OF_SPREAD = 2**20
KINDS = ("forces", "energies", "energy", "stress", "curvature")


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class LossSettings:
    """Weights of the errors; ``late_`` ones hold in the last ``late_fraction`` of the updates.

    ``energies`` are those of single atoms, ``curvature`` is the Hessian's along the directions of
    probes; where the labels hold none, nothing is added. Curvature is dropped once the validation
    force error has not improved for ``curvature_patience`` of the updates. ``huber_delta``, in
    spreads: below it an error counts squared. A small one makes the loss nearly absolute: fidelity
    is a sum of absolute errors, and rare strained frames do not dominate. ``disagreement``: an atom
    on whose force a committee's members differ by s weighs 1/(1 + (disagreement s/median s)^2).
    """

    forces: Weight = 1.0
    energy: Weight = 0.05
    stress: Weight = 0.05
    energies: Weight = 0.05
    curvature: Weight = 1.0
    late_energy: Weight | None = None
    late_stress: Weight | None = None
    late_fraction: Annotated[float, Field(ge=0, le=1)] = 0.25
    curvature_patience: Annotated[float, Field(gt=0, le=1)] = 0.15
    huber_delta: Annotated[float, Field(gt=0)] = 0.02
    disagreement: Weight = 0.0

    def weights(self, fraction: float, *, curvature: bool) -> list[float]:
        """Weights of ``KINDS`` when ``fraction`` of the updates are done."""
        late = fraction >= 1.0 - self.late_fraction
        return [
            self.forces,
            self.energies,
            self.late_energy if late and self.late_energy is not None else self.energy,
            self.late_stress if late and self.late_stress is not None else self.stress,
            self.curvature if curvature else 0.0,
        ]


@dataclass(frozen=True)
class Spread:
    """Standard deviations over the training data, so that the loss has no unit.

    Of more than a million atoms, evenly spread frames with about that many are looked at.
    """

    energy: float  # eV/atom, after reference energies
    energies: float  # eV, of an atom's, after reference energies
    forces: float  # eV/Å
    stress: float  # eV/Å³
    curvature: float  # eV/Å²

    @classmethod
    def of(
        cls,
        frames: Sequence[Batch],
        student: Student,
        probes: Sequence[tuple[int, int]] = (),
    ) -> Spread:
        energies, sites, forces, stresses = [], [], [], []
        references = student.reference_energies.cpu()
        numbers = student.types_of_numbers.cpu()
        for frame in Frames.of(frames).thinned(_ATOMS_OF_SPREAD):
            baseline = references[numbers[frame.atomic_numbers.cpu()]]
            labels = {name: value.cpu() for name, value in frame.labels.items()}
            energies.append((labels["energy"].double() - baseline.sum()) / frame.n_atoms)
            forces.append(labels["forces"].reshape(-1))
            if "energies" in labels:
                sites.append(labels["energies"].double() - baseline)
            if "stress" in labels:
                stresses.append(labels["stress"].reshape(-1))
        curvatures = []
        for first, second in probes:
            a, b = frames[first], frames[second]
            difference = (a.labels["forces"] - b.labels["forces"]).cpu().double()
            curvatures.append((difference / (a.positions - b.positions).norm()).reshape(-1))
        return cls(
            _deviation(energies, smallest=1e-3),
            _deviation(sites, smallest=1e-3),
            _deviation(forces, smallest=1e-3),
            _deviation(stresses, smallest=1e-5),
            _deviation(curvatures, smallest=1e-3),
        )


def _deviation(values: Sequence[Tensor], smallest: float) -> float:
    """Robust deviation of the known values, 1 without any: a few outliers do not set it."""
    known = torch.cat([torch.full((1,), torch.nan), *values]).double()
    known = known[~known.isnan()]
    if not len(known):
        return 1.0
    low, middle, high = np.quantile(known.numpy(), [0.25, 0.5, 0.75]).tolist()
    if high > low:
        known = known.clamp(middle - _OUTLIER * (high - low), middle + _OUTLIER * (high - low))
    return max(float(known.std(correction=0)), smallest)


def huber(error: Tensor, delta: float) -> Tensor:
    """``|e| - delta/2`` above ``delta`` and ``e^2 / (2 delta)`` below, of each."""
    zero = torch.zeros_like(error)
    return torch.nn.functional.huber_loss(error, zero, reduction="none", delta=delta) / delta


def loss(
    prediction: Prediction,
    target: Minibatch,
    spread: Spread,
    norms: Tensor,  # (5,)
    weights: Tensor,  # (5,) of KINDS
    delta: float,
) -> Tensor:
    """Scalar: the weighted mean Huber error of each kind, times its weight, summed.

    ``norms`` are the sums of all weights that the means divide by: those of a whole minibatch, of
    which ``target`` may be a part.
    """
    dtype = prediction.forces.dtype
    forces = prediction.forces - target.forces
    curvature = (forces - forces[target.partner]) * target.inverse_distance.unsqueeze(1)
    probed = target.atom_weights * (target.inverse_distance > 0)
    sites = prediction.energies - target.energies
    energy = (prediction.energy - target.energy) / target.sizes
    stress = prediction.strain_gradient / target.volume[:, None, None] - target.stress
    stress_errors = huber((stress / spread.stress).to(dtype), delta).mean((1, 2))
    sums = [
        (huber(forces / spread.forces, delta).sum(1) * target.atom_weights).sum(),
        (huber((sites / spread.energies).to(dtype), delta) * target.site_weights).sum(),
        (huber((energy / spread.energy).to(dtype), delta) * target.system_weights).sum(),
        (stress_errors * target.stress_weights).sum(),
        (huber(curvature / spread.curvature, delta).sum(1) * probed).sum(),
    ]
    return (torch.stack(sums) * (weights / norms)).sum()


def pair_vectors(target: Minibatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``r_ij`` (n_edges, 3) in Å, float64 and ``dtype``; as `edge_vectors`, in one launch."""
    device, n_edges = target.positions.device, len(target.i)
    kernels = warp_adjoints.build(float64=dtype == torch.float64, device=device.type)
    vectors = target.positions.new_empty(n_edges, 3)
    rounded = vectors.new_empty(n_edges, 3, dtype=dtype)
    pairs = (target.i, target.j, target.shifts, target.system_idx)
    made = (target.positions, target.cell, vectors, rounded)
    OnTensors(kernels.module, device)(kernels.vectors, n_edges, *pairs, *made)
    return vectors, rounded


def loss_and_adjoints(
    site: Tensor,  # (n_atoms,) eV
    gradients: Tensor,  # (n_edges, 3) d(sum U)/dr_ij, eV/Å
    vectors: Tensor,  # (n_edges, 3) r_ij, float64, Å
    references: Tensor,  # (n_atoms,) float64, eV
    target: Minibatch,
    spread: Spread,
    norms: Tensor,
    weights: Tensor,
    delta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`loss` (), and its derivatives by ``site`` (n_atoms,) and ``gradients`` (n_edges, 3).

    By kernels, in few launches; nothing here is differentiable.
    """
    site, gradients = site.detach(), gradients.detach().contiguous()
    n_atoms, n_systems = len(site), len(target.cell)
    kernels = warp_adjoints.build(float64=site.dtype == torch.float64, device=site.device.type)
    run = OnTensors(kernels.module, site.device)
    bounds = torch.arange(n_atoms + 1, dtype=torch.int32, device=site.device)
    edges = torch.searchsorted(target.i, bounds, out_int32=True)
    energies = references + site.double()
    spreads = kernels.spreads(
        spread.forces, spread.energies, spread.energy, spread.stress, spread.curvature
    )
    scales = weights / norms
    forces, by_force = torch.empty_like(target.forces), torch.empty_like(target.forces)
    of_atoms = energies.new_empty(n_atoms, 10)
    pairs = (edges, target.reverse, vectors, gradients)
    run(kernels.forces, kernels.lanes * n_atoms, *pairs, energies, forces, of_atoms)

    by_site, losses = torch.empty_like(site), site.new_empty(n_atoms + n_systems)
    run(
        kernels.of_atoms,
        n_atoms,
        *(forces, target.forces, energies, target.energies),
        *(target.atom_weights, target.site_weights, target.partner, target.inverse_distance),
        *(scales, spreads, delta, by_force, by_site, losses),
    )
    totals = energies.new_zeros(n_systems, 10).index_add_(0, target.system_idx, of_atoms)
    by_energy, by_strain = site.new_empty(n_systems), torch.empty_like(target.stress)
    run(
        kernels.of_systems,
        n_systems,
        *(totals, target.energy, target.stress, target.sizes, target.volume),
        *(target.system_weights, target.stress_weights, scales, spreads, delta),
        *(by_energy, by_strain, losses[n_atoms:]),
    )
    by_gradients = torch.empty_like(gradients)
    ends = (target.i, target.j, target.system_idx, vectors)
    run(kernels.of_pairs, len(gradients), *ends, by_force, by_strain, by_gradients)
    return losses.sum(), by_site + by_energy[target.system_idx], by_gradients
