"""What every student is: per-atom energies of local environments, and their exact derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn

from mlff_distiller.batch import Batch
from mlff_distiller.errors import UnknownElementError
from mlff_distiller.neighbors import Neighbors, edge_vectors
from mlff_distiller.students.repulsion import ZBL, Pairs

if TYPE_CHECKING:
    from mlff_distiller.students.error_model import ErrorModel

TRACING: ContextVar[bool] = ContextVar("tracing", default=False)
"""Whether operations are only recorded, which those of kernels cannot be."""


@dataclass(frozen=True)
class Prediction:
    """Names, shapes and units of ``properties.LABELS``, and the energy of each atom.

    Sums are float64.
    """

    energy: Tensor  # (n_systems,) eV, float64
    energies: Tensor  # (n_atoms,) eV, float64
    forces: Tensor  # (n_atoms, 3) eV/Å, the student's dtype
    strain_gradient: Tensor  # (n_systems, 3, 3) eV, float64: dE/dstrain
    volume: Tensor  # (n_systems,) Å³

    @property
    def stress(self) -> Tensor:
        """(n_systems, 3, 3) eV/Å³, float64; NaN for a system without volume."""
        volume = torch.where(self.volume > 0, self.volume, torch.nan)
        return self.strain_gradient / volume[:, None, None]


class Student(nn.Module, ABC):
    """Energy is a sum over atoms of ``E0(element) + U(environment within cutoff)``.

    A subclass gives ``site_energies``; forces and stress follow here by automatic
    differentiation by the edge vectors. One that knows its gradient in closed form overrides
    ``site_energies_and_gradients``.
    """

    architecture: ClassVar[str]
    kernels: ClassVar[str | None] = None
    """Module of ``engines`` whose compiled kernels run it; None where only PyTorch does."""
    trains_by_kernels: ClassVar[bool] = False
    """Whether there are some for its training, too, which take i and j of int32 as well."""
    weight_decay: ClassVar[float] = 0.0
    """That suits it, times the learning rate, in an update."""
    reference_energies: Tensor  # (n_types,) eV, float64 whatever the dtype of the module
    types_of_numbers: Tensor  # (119,) int64, -1 for unknown elements
    repulsion: ZBL | None
    by_kernels: bool = False
    """Whether kernels made for training serve it when it is not in training mode, too."""
    error_model: ErrorModel | None = None
    """What estimates the errors of its forces; None where they have not been measured."""

    def __init__(
        self,
        elements: tuple[str, ...],
        cutoff: float,
        zbl: Pairs | None = None,
        zbl_reach: float | None = None,
    ) -> None:
        super().__init__()
        self.elements, self.cutoff = elements, cutoff
        self.repulsion = None if zbl is None else ZBL(elements, zbl, zbl_reach or cutoff)
        lookup = torch.full((len(chemical_symbols) + 1,), -1, dtype=torch.int64)
        lookup[[atomic_numbers[symbol] for symbol in elements]] = torch.arange(len(elements))
        self.register_buffer("types_of_numbers", lookup, persistent=False)
        self.register_buffer("reference_energies", torch.zeros(len(elements), dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.reference_energies
        super()._apply(fn, recurse)
        # .float() must not round total energies.
        self.reference_energies = exact.to(self.reference_energies.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return self.reference_energies.device

    @property
    def zbl(self) -> Pairs | None:
        """``zbl[t][u]``: inner and outer radius (Å) and a1, b1 .. a4, b4; None: no repulsion."""
        return None if self.repulsion is None else self.repulsion.pairs

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """Parameters for an optimiser, each group with a factor of the learning rate."""
        return [(1.0, list(self.parameters()))]

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments of the constructor, as JSON."""

    @abstractmethod
    def site_energies(
        self,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        max_neighbors: int | None = None,
    ) -> Tensor:
        """U (n_atoms,) in eV of atoms with ``types`` (n_atoms,) and edges i, j, r_ij.

        ``max_neighbors`` bounds the neighbours of an atom, for tensors of shapes that do not
        depend on values; if None they are counted.
        """

    def site_energies_and_gradients(
        self,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        max_neighbors: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """U (n_atoms,) in eV, and d(sum U)/dr_ij (n_edges, 3) in eV/Å."""
        with torch.enable_grad():
            leaf = vectors if vectors.requires_grad else vectors.detach().requires_grad_()
            energies = self.site_energies(types, i, j, leaf, max_neighbors)
            (gradients,) = torch.autograd.grad(energies.sum(), leaf, create_graph=self.training)
        return energies, gradients

    def environments(self, types: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> Tensor | None:
        """Smooth invariants (n_atoms, H) that tell atoms' environments apart, without gradients.

        The last hidden layer is best; of arguments as for ``site_energies``. A student that gives
        some has an `ErrorModel` once it is trained.
        """
        return None

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The student, its weights aside, that ``config`` describes."""

    def types(self, atomic_numbers_: Tensor) -> Tensor:
        """Indices into ``elements`` (n_atoms,); an element the student lacks is an error."""
        types = self.types_of_numbers[atomic_numbers_]
        if bool((types < 0).any()):
            unknown = sorted(set(atomic_numbers_[types < 0].tolist()))
            raise UnknownElementError(
                "the student does not know "
                + ", ".join(chemical_symbols[z] if z < 119 else str(z) for z in unknown),
                expected=f"only {', '.join(self.elements)}",
                remedy="distil a student from structures that contain it",
            )
        return types

    def forward(self, batch: Batch, neighbors: Neighbors) -> Prediction:
        """Predict a batch whose ``neighbors`` reach at least ``cutoff``."""
        return self.predict(self.types(batch.atomic_numbers), batch, neighbors)

    def predict(
        self,
        types: Tensor,
        batch: Batch,
        neighbors: Neighbors,
        max_neighbors: int | None = None,
    ) -> Prediction:
        """The same for known ``types`` (n_atoms,).

        With a bound ``max_neighbors`` on the neighbours of an atom it never waits for a GPU.
        """
        i, j = neighbors.i, neighbors.j
        vectors = edge_vectors(batch, neighbors)
        site, gradients = self.site_energies_and_gradients(
            types, i, j, vectors.to(self.dtype), max_neighbors
        )

        forces = site.new_zeros((batch.n_atoms, 3)).index_add(0, i, gradients)
        forces = forces.index_add(0, j, -gradients)
        energies = self.reference_energies[types] + site.double()
        energy = energies.new_zeros(batch.n_systems).index_add(0, batch.system_idx, energies)
        outer = vectors.detach().unsqueeze(2) * gradients.double().unsqueeze(1)
        strain_gradient = outer.new_zeros((batch.n_systems, 3, 3)).index_add(
            0, batch.system_idx[i], outer
        )
        strain_gradient = 0.5 * (strain_gradient + strain_gradient.mT)
        return Prediction(energy, energies, forces, strain_gradient, batch.volume)
