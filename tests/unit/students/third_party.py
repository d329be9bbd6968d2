"""A whole architecture of students in one file, as another distribution would offer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn

from mlff_distiller.batch import Batch
from mlff_distiller.students.architecture import Architecture, Counts, Factors
from mlff_distiller.students.base import Student
from mlff_distiller.students.data import elements_of, reference_energies
from mlff_distiller.students.repulsion import Pairs, repulsion


class Morse(Student):
    """Pairs of atoms alone: sum over terms of D (x^2 - 2 x), x = exp(-a (r - r0)), cut off.

    Parameters (terms, n_types, n_types) of each ordered pair of elements, of which a pair uses
    the mean.
    """

    architecture = "morse"

    def __init__(
        self, elements: tuple[str, ...], cutoff: float, terms: int, zbl: Pairs | None = None
    ) -> None:
        super().__init__(elements, cutoff, zbl)
        self.terms = terms
        sizes = terms, len(elements), len(elements)
        self.depth = nn.Parameter(torch.full(sizes, 0.1, dtype=torch.float64))  # D, eV
        self.steepness = nn.Parameter(torch.full(sizes, 1.5, dtype=torch.float64))  # a, 1/Å
        self.distance = nn.Parameter(torch.full(sizes, 0.5 * cutoff, dtype=torch.float64))  # r0, Å

    def config(self) -> dict[str, Any]:
        return {
            "elements": list(self.elements),
            "cutoff": self.cutoff,
            "terms": self.terms,
            "zbl": self.zbl,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Morse:
        return cls(**{**config, "elements": tuple(config["elements"])})

    def site_energies(
        self,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        max_neighbors: int | None = None,
    ) -> Tensor:
        r, pair = vectors.norm(dim=1), (types[i], types[j])

        def own(parameter: Tensor) -> Tensor:
            return (0.5 * (parameter + parameter.mT))[:, pair[0], pair[1]]  # (terms, n_edges)

        x = torch.exp(-own(self.steepness) * (r - own(self.distance)))
        envelope = (1.0 - (r / self.cutoff).clamp(max=1.0) ** 2) ** 3
        halves = 0.5 * envelope * (own(self.depth) * (x * x - 2.0 * x)).sum(0)
        if self.repulsion is not None:
            halves = halves + self.repulsion(r, *pair)
        return halves.new_zeros(len(types)).index_add(0, i, halves)


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class MorseSettings:
    cutoff_A: Annotated[float, Field(gt=1.0, le=12.0)] | None = None
    terms: Annotated[int, Field(ge=1, le=8)] = 2
    zbl: bool = True


def morse_for(frames: Sequence[Batch], settings: MorseSettings, seed: int) -> Morse:
    elements = elements_of(frames)
    cutoff = settings.cutoff_A or 5.0
    zbl = repulsion(frames, elements, cutoff) if settings.zbl else None
    student = Morse(elements, cutoff, settings.terms, zbl)
    student.reference_energies.copy_(reference_energies(frames, student))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.mul_(0.9 + 0.2 * noise)
    return student.float()


ARCHITECTURE = Architecture(
    Morse,
    "pairs of atoms alone; a size is its number of terms",
    MorseSettings,
    morse_for,
    presets={"morse-1": {"terms": 1}, "morse-long": {"cutoff_A": 6.0}},
    sizes=("terms",),
    ranges=(Counts("terms", 1, 4), Factors("cutoff_A", 0.8, 1.2, "cutoff_A")),
    first=("morse-1", "morse-3"),
    decided=lambda student: {"cutoff_A": student.cutoff},
)
