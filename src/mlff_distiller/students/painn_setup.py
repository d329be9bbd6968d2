"""A PaiNN student made for a data set: cutoff, repulsion, scales and starting weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import nn

from mlff_distiller.batch import Batch
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.students.architecture import Architecture, Counts, Factors
from mlff_distiller.students.data import elements_of, reference_energies, some_of
from mlff_distiller.students.painn import PaiNN, bessel
from mlff_distiller.students.repulsion import repulsion

_CHANNELS, _LAYERS = 64, 2


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class PaiNNSettings:
    """Sizes of the student; None lets the data, or the name of the student, decide."""

    cutoff_A: Annotated[float, Field(gt=0.5, le=12.0)] | None = None
    channels: Annotated[int, Field(ge=4, le=1024)] | None = None
    layers: Annotated[int, Field(ge=1, le=8)] | None = None
    radial_functions: Annotated[int, Field(ge=2, le=64)] = 12
    max_moment: Annotated[int, Field(ge=1, le=8)] = 3
    zbl: bool = True


def painn_for(frames: Sequence[Batch], settings: PaiNNSettings, seed: int) -> PaiNN:
    """A float32 student ready to be trained on ``frames``, which carry energies and forces.

    64 channels and 2 layers unless ``settings`` say otherwise. Cutoff: 5 Å with hydrogen, else
    4.5 Å. Reference energies are the least-squares fit of total energies to composition; energies
    are in units of the root mean square force over 1 Å.
    """
    elements = elements_of(frames)
    cutoff = settings.cutoff_A or (5.0 if "H" in elements else 4.5)
    probes = some_of(frames)
    student = PaiNN(
        elements,
        cutoff,
        settings.channels or _CHANNELS,
        settings.layers or _LAYERS,
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


ARCHITECTURE = Architecture(
    PaiNN,
    "equivariant messages: accurate; any size, channels x layers",
    PaiNNSettings,
    painn_for,
    presets={
        f"painn-{channels}x{layers}": {"channels": channels, "layers": layers}
        for channels, layers in ((32, 2), (64, 2), (128, 3))
    },
    sizes=("channels", "layers"),
    ranges=(
        Counts("channels", 16, 128, 16),
        Counts("layers", 1, 3),
        Counts("radial_functions", 6, 16, 2),
        Factors("cutoff_A", 0.7, 1.2, "cutoff_A"),
    ),
    first=("painn-32x2", "painn-64x2"),
    decided=lambda own: {"channels": own.channels, "layers": own.layers, "cutoff_A": own.cutoff},
)
