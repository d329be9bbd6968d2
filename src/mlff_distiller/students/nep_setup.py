"""A NEP student made for a data set: sizes, cutoffs, repulsion, scaler and starting weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.errors import TrainingError
from mlff_distiller.kernels.nep import Shape
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students.architecture import Architecture, Counts, Factors
from mlff_distiller.students.data import elements_of, reference_energies, some_of
from mlff_distiller.students.nep import NEP
from mlff_distiller.students.nep_file import export_nep, read_nep
from mlff_distiller.students.repulsion import repulsion

_LARGEST_DESCRIPTOR = 103  # GPUMD's limit
Length = Annotated[float, Field(gt=0.5, le=12.0)]
Count = Annotated[int, Field(ge=0, le=16)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class NEPSettings:
    """Sizes of the student; None lets the data decide."""

    cutoff_radial_A: Length | None = None
    cutoff_angular_A: Length | None = None
    n_max_radial: Count | None = None
    n_max_angular: Count | None = None
    basis_size_radial: Count = 10
    basis_size_angular: Count = 10
    l_max: Annotated[int, Field(ge=1, le=4)] = 4
    four_body: bool = True
    five_body: bool = True
    neurons: Annotated[int, Field(ge=1, le=200)] = 50
    zbl: bool = True


def nep_for(frames: Sequence[Batch], settings: NEPSettings, seed: int) -> NEP:
    """A float32 student ready to be trained on ``frames``, which carry energies and forces.

    Reference energies are the least-squares fit of total energies to composition. The scaler is
    1/(max q - min q) over the atoms, as NEP4 defines it.
    """
    elements = elements_of(frames)
    radial, angular = _cutoffs(frames, settings, light="H" in elements)
    shape = _shape(settings, len(elements))
    probes = some_of(frames)
    zbl = repulsion(frames, elements, angular) if settings.zbl else None
    student = NEP(elements, shape, ((radial, angular),) * len(elements), zbl)
    student.reference_energies.copy_(reference_energies(frames, student))
    _initialise(student, probes, torch.Generator().manual_seed(seed))
    return student.float()


def _cutoffs(frames: Sequence[Batch], settings: NEPSettings, *, light: bool) -> tuple[float, float]:
    """Molecules and anything with hydrogen: 5 / 4 Å. Else 6 / 5 Å, less in dense matter.

    Dense: where 6 Å would hold more than some 90 neighbours, the cutoff shrinks to hold that many.
    """
    radial = 5.0 if light else 6.0
    if not light and settings.cutoff_radial_A is None:
        densities = [
            frame.n_atoms / float(frame.volume[0]) for frame in frames if bool(frame.pbc[0].all())
        ]
        if densities:
            radial = min(
                radial, (90.0 / (4.0 / 3.0 * math.pi * float(np.median(densities)))) ** (1 / 3)
            )
    radial = settings.cutoff_radial_A or round(radial, 1)
    return radial, settings.cutoff_angular_A or round(min(radial, max(4.0, radial - 1.0)), 1)


def _shape(settings: NEPSettings, n_types: int) -> Shape:
    """Eight radial and eight angular functions n; fewer if the descriptor would be too long."""
    invariants = settings.l_max + int(settings.four_body) + int(settings.five_body)
    n_radial = settings.n_max_radial if settings.n_max_radial is not None else 8
    n_angular = settings.n_max_angular if settings.n_max_angular is not None else 8
    shape = Shape(
        n_radial,
        n_angular,
        settings.basis_size_radial,
        settings.basis_size_angular,
        settings.l_max,
        settings.four_body and settings.l_max >= 2,
        settings.five_body,
        settings.neurons,
    )
    if shape.n_descriptors > _LARGEST_DESCRIPTOR:
        raise TrainingError(
            "the NEP descriptor is too long for GPUMD",
            expected=f"at most {_LARGEST_DESCRIPTOR} components",
            found=f"{shape.n_descriptors} = {n_radial + 1} + {n_angular + 1} x {invariants}",
            remedy="lower n_max_angular, n_max_radial or l_max",
        )
    return shape


@torch.no_grad()
def _initialise(student: NEP, probes: Batch, generator: torch.Generator) -> None:
    """Random expansion coefficients, then a network whose inputs and output fit the data."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    for c in (student.c_radial, student.c_angular):
        c.copy_(normal(c) / math.sqrt(c.shape[-1]))
    pairs = neighbor_list(probes, student.cutoff)
    types = student.types(probes.atomic_numbers)
    q = student.descriptors(types, pairs.i, pairs.j, edge_vectors(probes, pairs))
    student.scaler.copy_(1.0 / (q.max(0).values - q.min(0).values).clamp(min=1e-6))
    for t in range(len(student.elements)):
        own = q[types == t]
        student.q_center[t] = (own if len(own) else q).mean(0)  # a rare element may be in no probe
    spread = ((q - student.q_center[types]) * student.scaler).std(0, correction=0).mean()
    student.w0.copy_(normal(student.w0) * 0.5 / spread.clamp(min=1e-3) / math.sqrt(q.shape[1]))
    student.b0.copy_(normal(student.b0) * 0.5)
    sizes = probes.atoms_per_system
    baseline = torch.zeros(probes.n_systems, dtype=torch.float64)
    baseline.index_add_(0, probes.system_idx, student.reference_energies[types])
    left = (probes.labels["energy"] - baseline) / sizes
    residual = left.clamp(*left.quantile(left.new_tensor([0.1, 0.9]))).std(correction=0)
    residual = residual.clamp(min=1e-3)
    student.w1.copy_(normal(student.w1) * residual / math.sqrt(student.shape.neurons))


def _decided(student: NEP) -> dict[str, float]:
    radial, angular = student.cutoffs[0]
    return {
        "n_max_radial": student.shape.n_max_radial,
        "n_max_angular": student.shape.n_max_angular,
        "cutoff_radial_A": radial,
        "cutoff_angular_A": angular,
    }


ARCHITECTURE = Architecture(
    NEP,
    "the form NEP4: fast, and runs in GPUMD and LAMMPS",
    NEPSettings,
    nep_for,
    presets={
        "nep-small": {"n_max_radial": 4, "n_max_angular": 4, "neurons": 20},
        "nep": {},
        # q1111 is a function of q11, and so its columns are better spent on more of the others.
        "nep-large": {
            "n_max_radial": 12,
            "n_max_angular": 12,
            "five_body": False,
            "neurons": 80,
        },
    },
    ranges=(
        Counts("n_max_radial", 4, 12, 2),
        Counts("n_max_angular", 2, 8, 2),
        Counts("neurons", 10, 90, 20),
        Factors("cutoff_radial_A", 0.7, 1.2, "cutoff_radial_A"),
        Factors("cutoff_angular_A", 0.6, 1.0, "cutoff_radial_A"),
    ),
    decided=_decided,
    export=export_nep,
    read=read_nep,
)
