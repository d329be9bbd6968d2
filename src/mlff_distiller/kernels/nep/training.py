"""Energies and gradients of a NEP for training, and their derivative by the parameters, by kernels.

A loss L of U_i and g_ij = dU_i/dr_ij has the derivative by the parameters p

    dL/dp = d/dp sum_i (e_i U_i + V_i),   V_i = sum_j h_ij . g_ij,

with e_i = dL/dU_i and h_ij = dL/dg_ij held fixed. V_i is how fast U_i changes while the pairs move
along h_ij, so one forward tangent and one reverse pass over each atom's few numbers are enough
(Pearlmutter, Neural Computation 6, 147, 1994); nothing is kept of what pairs do. In the names,
``_along`` is a derivative along h. The equations are in this folder's README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlff_distiller.kernels.compiling import OnTensors
from mlff_distiller.kernels.nep.reference import ZBL_COULOMB, ZBL_LENGTH, Repulsion, Shape
from mlff_distiller.kernels.nep.warp_functions import ZBL_SIZE
from mlff_distiller.kernels.nep.warp_training import build
from mlff_distiller.kernels.slots import one_hot
from mlff_distiller.kernels.types import WARP


@dataclass(frozen=True)
class Fixed:
    """What training does not change. T types, D descriptors."""

    shape: Shape
    scaler: Tensor  # (D,)
    q_center: Tensor  # (T, D), taken from q before the network
    cutoffs: Tensor  # (T, T, 2) Å, radial and angular
    zbl: Tensor | None  # (T * T, ZBL_SIZE)


def zbl_pairs(repulsion: Repulsion, cutoff_angular: Tensor) -> Tensor:
    """(T * T, ZBL_SIZE) as kernels take them; GPUMD's outer radius is within the angular cutoff."""
    table, z = repulsion.table, repulsion.charges
    n_types = len(z)
    pairs = table.new_zeros((n_types, n_types, ZBL_SIZE))
    pairs[..., 0] = table[..., 0]
    pairs[..., 1] = torch.minimum(table[..., 1], cutoff_angular)
    pairs[..., 2] = 0.5 * ZBL_COULOMB * z[:, None] * z[None]
    pairs[..., 3::2] = table[..., 2::2]
    scale = (z[:, None] ** 0.23 + z[None] ** 0.23) * ZBL_LENGTH
    pairs[..., 4::2] = table[..., 3::2] * scale.unsqueeze(-1)
    return pairs.flatten(0, 1)


class _Pairs:
    """The pairs of a minibatch, and the sums over them."""

    lanes = WARP

    def __init__(self, fixed: Fixed, types: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> None:
        device, dtype, n_atoms = vectors.device, vectors.dtype, len(types)
        self.shape, self.n_types = fixed.shape, len(fixed.q_center)
        self.kernels = build(
            fixed.shape,
            float64=dtype == torch.float64,
            device=device.type,
            lanes=self.lanes,
        )
        self.pairs: Any = self.kernels.pairs  # of the kind that ``lanes`` says
        self.run = OnTensors(self.kernels.module, device)
        bounds = torch.arange(n_atoms + 1, device=device, dtype=i.dtype)
        self._edges = torch.searchsorted(i, bounds, out_int32=True)
        self._types, self._i, self._j = types.int(), i.int(), j.int()
        self._vectors, self._cutoffs = vectors.contiguous(), fixed.cutoffs.to(dtype)
        self._has_zbl = fixed.zbl is not None
        self._zbl = vectors.new_zeros(1, ZBL_SIZE) if fixed.zbl is None else fixed.zbl.to(dtype)
        self._neighbors = (self._types, self.n_types, self._edges, self._j)
        self._ends = (self._types, self.n_types, self._i, self._j, self._vectors, self._cutoffs)

    def sums(self) -> tuple[Tensor, Tensor]:
        """sum_j f_k (N, T*K) and sum_j f_k b_lm (N, T*K, H), of each type of neighbour."""
        return self._by_lanes("sums")

    def sums_along(self, moves: Tensor) -> tuple[Tensor, Tensor]:
        """How `sums` change while pairs move by ``moves`` (E, 3)."""
        return self._by_lanes("sums_along", moves.contiguous())

    def gradients(self, by_radial: Tensor, by_angular: Tensor) -> Tensor:
        """dU_i/dr_ij (E, 3) from dU_i by `sums`; the screened repulsion's too."""
        g = torch.empty_like(self._vectors)
        by = (by_radial.contiguous(), by_angular.contiguous(), self._zbl, int(self._has_zbl), g)
        self.run(self.pairs.gradients, len(g), *self._ends, *self._tables(), *by)
        return g

    def repulsion(self) -> Tensor | float:
        """Half the screened repulsion of each atom's pairs (N,), eV."""
        if not self._has_zbl:
            return 0.0
        energies = self._vectors.new_empty(len(self._types))
        k, threads = self.kernels, self.kernels.lanes * len(energies)
        self.run(k.repulsion, threads, *self._neighbors, self._vectors, self._zbl, energies)
        return energies

    def invariants(self, s: Tensor, q: Tensor) -> None:
        """Write those of s (N, n, H) into their columns of q (N, D)."""
        self.run(self.kernels.invariants, s.shape[0] * s.shape[1], s, q)

    def invariants_along(self, s: Tensor, s_along: Tensor, q_along: Tensor) -> None:
        """Write into their columns how those change with s."""
        self.run(self.kernels.invariants_along, s.shape[0] * s.shape[1], s, s_along, q_along)

    def slopes(self, s: Tensor, dq: Tensor) -> Tensor:
        """d/ds (N, n, H) of dq . q(s)."""
        ds = torch.empty_like(s)
        self.run(self.kernels.slopes, s.shape[0] * s.shape[1], s, dq, ds)
        return ds

    def slopes_along(self, s: Tensor, s_along: Tensor, dq: Tensor, dq_along: Tensor) -> Tensor:
        """d/ds (N, n, H) of dq . q(s) + dq_along . d/de q(s + e s_along)."""
        ds = torch.empty_like(s)
        arrays = (s, s_along, dq, dq_along, ds)
        self.run(self.kernels.slopes_along, s.shape[0] * s.shape[1], *arrays)
        return ds

    def hidden(
        self, z: Tensor, b0: Tensor, w1: Tensor, b1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tanh(z - b0) (N, M), dU/dz (N, T*M) and U (N,)."""
        n = len(z)
        made = z.new_empty(n, w1.shape[1]), torch.empty_like(z), z.new_empty(n)
        given = (*self._neighbors[:2], z, b0.detach(), w1.detach(), b1.detach())
        self.run(self.kernels.hidden, self.kernels.lanes * n, *given, *made)
        return made

    def hidden_along(
        self, z_along: Tensor, active: Tensor, dz: Tensor, e: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By z (N, T*M), and by b0 and w1 of each atom (N, 2M)."""
        made = torch.empty_like(dz), active.new_empty(len(dz), 2 * active.shape[1])
        given = (*self._neighbors[:2], z_along, active, dz, e.contiguous())
        self.run(self.kernels.hidden_along, self.kernels.lanes * len(dz), *given, *made)
        return made

    def _tables(self) -> tuple[Tensor, ...]:
        return ()

    def _by_lanes(self, name: str, *moves: Tensor) -> tuple[Tensor, Tensor]:
        totals = self._totals()
        pairs = (*self._neighbors, self._vectors, self._cutoffs, *moves)
        threads = self.kernels.lanes * len(self._types)
        self.run(getattr(self.pairs, name), threads, *pairs, *totals)
        return totals

    def _totals(self) -> tuple[Tensor, Tensor]:
        n, shape = len(self._types), self.shape
        sizes = (shape.basis_size_radial + 1, shape.basis_size_angular + 1)
        radial, angular = (self.n_types * size for size in sizes)
        empty = self._vectors.new_empty
        return empty(n, radial), empty(n, angular, shape.n_harmonics)


class _TabledPairs(_Pairs):
    """Those of a CPU, which keeps what depends on positions alone."""

    lanes = 1

    def __init__(self, fixed: Fixed, types: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> None:
        super().__init__(fixed, types, i, j, vectors)
        sizes = (self.shape.basis_size_radial + 1, self.shape.basis_size_angular + 1)
        self._radial, self._radial_slope = (self._row(sizes[0]) for _ in range(2))
        self._angular, self._angular_slope = (self._row(sizes[1]) for _ in range(2))
        self._harmonics = self._row(self.shape.n_harmonics)
        functions = (self._radial, self._radial_slope, self._angular, self._angular_slope)
        made = (*functions, self._harmonics)
        self.run(self.pairs.geometry, len(i), *self._ends, *made)

    def sums(self) -> tuple[Tensor, Tensor]:
        ones = self._vectors.new_ones(len(self._vectors))
        product = (self._angular, self._harmonics)
        return self._sums(self._radial, ones, *product, *product, 0)

    def sums_along(self, moves: Tensor) -> tuple[Tensor, Tensor]:
        stretch = moves.new_empty(len(moves))
        stretched, along = (self._row(self.shape.n_harmonics) for _ in range(2))
        moving = (*self._ends, moves.contiguous(), self._harmonics, stretch, stretched, along)
        self.run(self.pairs.turning, len(moves), *moving)
        products = (self._angular_slope, stretched, self._angular, along, 1)
        return self._sums(self._radial_slope, stretch, *products)

    def _tables(self) -> tuple[Tensor, ...]:
        return self._radial_slope, self._angular, self._angular_slope, self._harmonics

    def _row(self, size: int) -> Tensor:
        return self._vectors.new_empty(len(self._vectors), size)

    def _sums(
        self, functions: Tensor, factors: Tensor, *products: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        totals, k, n = self._totals(), self.pairs, len(self._types)
        self.run(k.radial_sums, n, *self._neighbors, functions, factors, totals[0])
        self.run(k.densities, n, *self._neighbors, *products, totals[1])
        return totals


class _SiteEnergies(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        fixed: Fixed,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        c_radial: Tensor,
        c_angular: Tensor,
        w0: Tensor,
        b0: Tensor,
        w1: Tensor,
        b1: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kind = _Pairs if vectors.is_cuda else _TabledPairs
        pairs = kind(fixed, types, i, j, vectors)
        n_radial = fixed.shape.n_max_radial + 1
        own = one_hot(types, len(w0), vectors.dtype)  # (N, T)
        scaler, center = fixed.scaler.to(own.dtype), fixed.q_center.to(own.dtype)
        radial, angular = pairs.sums()
        c_r, c_a = _of_centres(c_radial, own), _of_centres(c_angular, own)  # (N, n, T*K)
        s = c_a @ angular  # (N, n, H)
        q = vectors.new_empty(len(types), fixed.shape.n_descriptors)
        q[:, :n_radial] = _contract(c_r, radial)
        pairs.invariants(s, q)
        x = (q - _rows(center, own)) * scaler

        z = x @ w0.flatten(0, 1).T  # (N, T*M), of every type's network
        active, dz, energies = pairs.hidden(z, b0, w1, b1)
        energies = energies + pairs.repulsion()
        dq = (dz @ w0.flatten(0, 1)) * scaler
        ds = pairs.slopes(s, dq)
        g = pairs.gradients(_contract(c_r.mT, dq[:, :n_radial]), c_a.mT @ ds)

        ctx.pairs, ctx.n_radial = pairs, n_radial
        ctx.save_for_backward(
            *(own, scaler, radial, angular, c_r, c_a, s, x, active, dz, dq, ds, w0)
        )
        return energies, g

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, e: Tensor, h: Tensor) -> tuple[Tensor | None, ...]:
        own, scaler, radial, angular, c_r, c_a, s, x, active, dz, dq, ds, w0 = ctx.saved_tensors
        pairs, n_radial, n_types = ctx.pairs, ctx.n_radial, len(w0)
        flat = w0.flatten(0, 1)
        radial_along, angular_along = pairs.sums_along(h)
        s_along = c_a @ angular_along
        q_along = torch.empty_like(x)
        q_along[:, :n_radial] = _contract(c_r, radial_along)
        pairs.invariants_along(s, s_along, q_along)
        x_along = q_along * scaler
        z_along = x_along @ flat.T

        # Of e U + V, V = dz . z_along: by z, and dz by z_along; then by x, and dq by q_along; ...
        by_z, by_biases = pairs.hidden_along(z_along, active, dz, e)
        by_b0, by_w1 = _sum_by_type(by_biases, own).chunk(2, 1)
        by_w0 = (torch.cat((by_z, dz)).T @ torch.cat((x, x_along))).view_as(w0)
        by_q = (by_z @ flat) * scaler
        by_s = pairs.slopes_along(s, s_along, by_q, dq)
        both = torch.cat((by_s, ds), 2) @ torch.cat((angular, angular_along), 2).mT  # (N, n, T*K)
        by_c_a = _sum_by_type(both.flatten(1), own)
        both = torch.stack((by_q[:, :n_radial], dq[:, :n_radial]))
        rows = _by_type(both, own).flatten(0, 1)  # (2N, T*n)
        by_c_r = rows.T @ torch.cat((radial, radial_along))

        def of_pairs(by_c: Tensor, n: int) -> Tensor:
            return by_c.view(n_types, n, n_types, -1).transpose(1, 2)

        by_c = of_pairs(by_c_r, n_radial), of_pairs(by_c_a, s.shape[1])
        return None, None, None, None, None, *by_c, by_w0, by_b0, by_w1, -e.sum()


def _of_centres(c: Tensor, own: Tensor) -> Tensor:
    """(T, T, n, K) -> (N, n, T*K) of each atom's type; the same for all where there is one type."""
    if len(c) == 1:
        return c[:, 0].expand(len(own), -1, -1)
    rows: Tensor = (own @ c.transpose(1, 2).flatten(1)).unflatten(1, (c.shape[2], -1))
    return rows


def _contract(c: Tensor, values: Tensor) -> Tensor:
    """(N, n, k) and (N, k) -> (N, n). A product of a matrix where all atoms have the same c."""
    if c.stride(0) == 0:
        return values @ c[0].T
    return (c * values.unsqueeze(1)).sum(2)


def _rows(of_types: Tensor, own: Tensor) -> Tensor:
    """(T, M) -> (N, M) of each atom's type."""
    return of_types if len(of_types) == 1 else own @ of_types


def _sum_by_type(values: Tensor, own: Tensor) -> Tensor:
    """(N, M) -> (T, M)."""
    return values.sum(0, keepdim=True) if own.shape[1] == 1 else own.T @ values


def _by_type(values: Tensor, own: Tensor) -> Tensor:
    """(..., N, M) -> (..., N, T*M): in the columns of the atom's type, 0 elsewhere."""
    if own.shape[1] == 1:
        return values
    return (own.unsqueeze(-1) * values.unsqueeze(-2)).flatten(-2)


def site_energies_and_gradients(
    fixed: Fixed,
    types: Tensor,
    i: Tensor,
    j: Tensor,
    vectors: Tensor,
    parameters: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """U_i (N,) in eV and dU_i/dr_ij (E, 3) in eV/Å, differentiable once, by the parameters.

    ``i`` must ascend. ``parameters``: c_radial, c_angular, w0, b0, w1, b1 as of `Parameters`, but
    for b0, which is that of centred descriptors.
    """
    found: tuple[Tensor, Tensor] = _SiteEnergies.apply(fixed, types, i, j, vectors, *parameters)
    return found
