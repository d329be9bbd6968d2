"""``nep``: the fast tier, exactly the NEP4 form, trained by gradients."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mlff_distiller.errors import KernelError
from mlff_distiller.kernels.nep import (
    Geometry,
    Parameters,
    Repulsion,
    Shape,
    descriptors,
    energies_and_gradients,
)
from mlff_distiller.kernels.nep.training import Fixed, site_energies_and_gradients, zbl_pairs
from mlff_distiller.kernels.slots import Slots
from mlff_distiller.students.base import TRACING, Student
from mlff_distiller.students.repulsion import Pairs


class NEP(Student):
    """The neuroevolution potential NEP4 (Song et al., Nat. Commun. 15, 10208, 2024).

    The parameters are those of the file. For training the network's input is centred: with the
    data's mean descriptor ``q0`` of each element, ``w0 s q - b0 = w0 s (q - q0) - b0'``; ``b0'``
    is what is trained. Otherwise gradients by ``w0`` and ``b0`` are nearly parallel, and Adam
    crawls.

    Parameters
    ----------
    cutoffs
        Radial and angular cutoff (Å) of each element; a pair uses the mean of its two.
    zbl
        ``zbl[t][u]`` = inner and outer radius (Å) and a1, b1 .. a4, b4; None for no repulsion.
    """

    architecture: ClassVar[str] = "nep"
    kernels: ClassVar[str | None] = "nep"
    trains_by_kernels: ClassVar[bool] = True
    cutoff_radial: Tensor  # (T, T) Å
    cutoff_angular: Tensor  # (T, T) Å
    scaler: Tensor  # (D,)
    q_center: Tensor  # (T, D)
    _kept: tuple[list[Tensor], list[tuple[int, int]], Fixed] | None = None

    def __init__(
        self,
        elements: tuple[str, ...],
        shape: Shape,
        cutoffs: tuple[tuple[float, float], ...],
        zbl: Pairs | None = None,
    ) -> None:
        reach = min(angular for _, angular in cutoffs)
        super().__init__(elements, max(max(pair) for pair in cutoffs), zbl, reach)
        self.shape, self.cutoffs = shape, cutoffs
        n_types, n_descriptors = len(elements), shape.n_descriptors
        per_type = torch.tensor(cutoffs, dtype=torch.float64)  # (T, 2)
        pair = 0.5 * (per_type[:, None] + per_type[None])
        self.register_buffer("cutoff_radial", pair[..., 0].clone(), persistent=False)
        self.register_buffer("cutoff_angular", pair[..., 1].clone(), persistent=False)
        self.register_buffer("scaler", torch.ones(n_descriptors, dtype=torch.float64))
        center = torch.zeros(n_types, n_descriptors, dtype=torch.float64)
        self.register_buffer("q_center", center)

        def parameter(*sizes: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(sizes, dtype=torch.float64))

        n, k = shape.n_max_radial + 1, shape.basis_size_radial + 1
        self.c_radial = parameter(n_types, n_types, n, k)
        n, k = shape.n_max_angular + 1, shape.basis_size_angular + 1
        self.c_angular = parameter(n_types, n_types, n, k)
        self.w0 = parameter(n_types, shape.neurons, n_descriptors)
        self.b0 = parameter(n_types, shape.neurons)
        self.w1 = parameter(n_types, shape.neurons)
        self.b1 = parameter()

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """The basis learns slower: a step in it shifts every descriptor under the network."""
        basis = [self.c_radial, self.c_angular]
        return [(0.2, basis), (1.0, [self.w0, self.b0, self.w1, self.b1])]

    def config(self) -> dict[str, Any]:
        return {
            "elements": list(self.elements),
            "shape": asdict(self.shape),
            "cutoffs": [list(pair) for pair in self.cutoffs],
            "zbl": self.zbl,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NEP:
        return cls(
            tuple(config["elements"]),
            Shape(**config["shape"]),
            tuple((float(radial), float(angular)) for radial, angular in config["cutoffs"]),
            config["zbl"],
        )

    def nep4(self) -> Parameters:
        """The parameters as NEP4 defines them, differentiable."""
        own = self.repulsion
        b0 = self.b0 + (self.w0 @ (self.scaler * self.q_center).unsqueeze(-1)).squeeze(-1)
        return Parameters(
            self.c_radial,
            self.c_angular,
            self.w0,
            b0,
            self.w1,
            self.b1,
            self.scaler,
            self.cutoff_radial,
            self.cutoff_angular,
            None if own is None else Repulsion(own.table, own.charges),
        )

    def site_energies(
        self,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        max_neighbors: int | None = None,
    ) -> Tensor:
        slots = Slots.from_edges(types, i, j, vectors, 2.0 * self.cutoff, max_neighbors)
        return energies_and_gradients(self.shape, self.nep4(), types, slots)[0]

    def site_energies_and_gradients(
        self,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        max_neighbors: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        wanted = (self.training or self.by_kernels) and not vectors.requires_grad
        if wanted and not TRACING.get():
            weights = (self.c_radial, self.c_angular, self.w0, self.b0, self.w1, self.b1)
            try:
                return site_energies_and_gradients(self._fixed(), types, i, j, vectors, weights)
            except KernelError as error:
                warnings.warn(f"a nep trains without its kernels, slower: {error}", stacklevel=2)
        ends = (i.long(), j.long())
        slots = Slots.from_edges(types, *ends, vectors, 2.0 * self.cutoff, max_neighbors)
        energies, table = energies_and_gradients(self.shape, self.nep4(), types, slots)
        return energies, table[slots.rows, slots.columns]

    def _fixed(self) -> Fixed:
        """Kept until one of the tensors it is made of is another, or has been written to."""
        own = self.repulsion
        held = [self.scaler, self.q_center, self.cutoff_radial, self.cutoff_angular]
        held += [] if own is None else [own.table, own.charges]
        state = [(id(tensor), tensor._version) for tensor in held]
        if self._kept is None or self._kept[1] != state:
            cutoffs = torch.stack((self.cutoff_radial, self.cutoff_angular), -1)
            zbl = None
            if own is not None:
                zbl = zbl_pairs(Repulsion(own.table, own.charges), self.cutoff_angular)
            fixed = Fixed(self.shape, self.scaler, self.q_center, cutoffs, zbl)
            self._kept = held, state, fixed
        return self._kept[2]

    @torch.no_grad()
    def environments(self, types: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> Tensor:
        p = self.nep4()
        q = self.descriptors(types, i, j, vectors) * p.scaler
        return torch.tanh((p.w0[types] @ q.unsqueeze(-1)).squeeze(-1) - p.b0[types])

    def descriptors(self, types: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> Tensor:
        """Unscaled q (n_atoms, D), without gradients."""
        with torch.no_grad():
            parameters = self.nep4()
            slots = Slots.from_edges(types, i, j, vectors, 2.0 * self.cutoff)
            geometry = Geometry.of(self.shape, parameters, types, slots)
            return descriptors(self.shape, parameters, types, geometry)[0]
