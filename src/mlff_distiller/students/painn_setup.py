"""A PaiNN student made for a data set: cutoff, repulsion, scales and starting weights."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from mlff_distiller.batch import Batch
from mlff_distiller.errors import TrainingError
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students.data import elements_of, reference_energies, some_of
from mlff_distiller.students.painn import PaiNN, bessel
from mlff_distiller.students.repulsion import repulsion

DEFAULT_PRESET = "64x2"


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class PaiNNSettings:
    """Sizes of the student; None lets the data or the preset decide."""

    cutoff_A: Annotated[float, Field(gt=0.5, le=12.0)] | None = None
    channels: Annotated[int, Field(ge=4, le=1024)] | None = None
    layers: Annotated[int, Field(ge=1, le=8)] | None = None
    radial_functions: Annotated[int, Field(ge=2, le=64)] = 12
    max_moment: Annotated[int, Field(ge=1, le=8)] = 3
    zbl: bool = True


def painn_for(frames: Sequence[Batch], settings: PaiNNSettings, seed: int, preset: str) -> PaiNN:
    """A float32 student ready to be trained on ``frames``, which carry energies and forces.

    ``preset`` is channels x layers, such as ``64x2``. Cutoff: 5 Å with hydrogen, else 4.5 Å.
    Reference energies are the least-squares fit of total energies to composition; energies are in
    units of the root mean square force over 1 Å.
    """
    sizes = re.fullmatch(r"(\d+)x(\d+)", preset or DEFAULT_PRESET)
    if sizes is None:
        raise TrainingError(
            f"there is no preset {preset!r} of painn",
            expected="channels x layers, such as painn-32x2, painn-64x2 or painn-128x3",
        )
    elements = elements_of(frames)
    cutoff = settings.cutoff_A or (5.0 if "H" in elements else 4.5)
    probes = some_of(frames)
    student = PaiNN(
        elements,
        cutoff,
        settings.channels or int(sizes[1]),
        settings.layers or int(sizes[2]),
        settings.radial_functions,
        _radial_scale(probes, cutoff, settings.radial_functions),
        max_moment=settings.max_moment,
        zbl=repulsion(frames, elements, cutoff) if settings.zbl else None,
    )
    student.reference_energies.copy_(reference_energies(frames, student))
    forces = probes.labels["forces"].double()
    student.scale.fill_(max(1e-3, float(forces.square().mean().sqrt())))
    initialise(student, torch.Generator().manual_seed(seed))
    return student.float()


def _radial_scale(probes: Batch, cutoff: float, n: int) -> float:
    """One over the root mean square, over atoms, of the sum over neighbours of mean f_k^2."""
    lengths = edge_vectors(probes, neighbor_list(probes, cutoff)).norm(dim=1)
    squares = bessel(lengths.clamp(min=0.3), cutoff, n).square().mean(1)
    return float(f"{(probes.n_atoms / squares.sum().clamp(min=1e-3)).sqrt():.4g}")


@torch.no_grad()
def initialise(student: PaiNN, generator: torch.Generator) -> None:
    """Weights of unit gain, uniform (Glorot and Bengio 2010); those by element normal."""
    student.embedding.normal_(generator=generator)
    student.gather.weights.normal_(generator=generator)
    for module in student.modules():
        if isinstance(module, nn.Linear):
            fan_out, fan_in = module.weight.shape
            bound = math.sqrt(6.0 / (fan_in + min(fan_in, fan_out)))
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
