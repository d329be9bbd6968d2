"""The NEP4 energy and its closed-form gradient in plain PyTorch: the specification.

Source: Fan et al., J. Chem. Phys. 157, 114801 (2022) and Song et al., Nat. Commun. 15, 10208
(2024); the formulas and constants are written out in this folder's README.md.

Everything is linear algebra over a padded table of neighbours (``n_atoms`` x ``n_slots``), so the
expensive sums run as batched matrix products. The gradient is a formula, not autograd: a loss on
forces therefore needs one backward pass, and inference needs none. All of it stays differentiable,
any number of times, by parameters and by ``vectors``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from mlff_distiller.kernels.slots import Slots, by_type, one_hot

C3B = (
    (0.238732414637843, 0.119366207318922),
    (0.099471839432435, 0.596831036594608, 0.149207759148652),
    (0.139260575205408, 0.104445431404056, 1.044454314040563, 0.174075719006761),
    (0.011190581936149, 0.223811638722978, 0.111905819361489, 1.566681471060845, 0.195835183882606),
)
"""C_lm of the three-body invariants, l = 1..4, m = 0..l."""
C4B = (
    -0.007499480826664,
    -0.134990654879954,
    0.067495327439977,
    0.404971964639861,
    -0.809943929279723,
)
C5B = (0.026596810706114, 0.053193621412227, 0.026596810706114)

LEGENDRE: dict[tuple[int, int], dict[int, float]] = {
    (1, 0): {1: 1.0},
    (1, 1): {0: 1.0},
    (2, 0): {2: 3.0, 0: -1.0},
    (2, 1): {1: 1.0},
    (2, 2): {0: 1.0},
    (3, 0): {3: 5.0, 1: -3.0},
    (3, 1): {2: 5.0, 0: -1.0},
    (3, 2): {1: 1.0},
    (3, 3): {0: 1.0},
    (4, 0): {4: 35.0, 2: -30.0, 0: 3.0},
    (4, 1): {3: 7.0, 1: -3.0},
    (4, 2): {2: 7.0, 0: -1.0},
    (4, 3): {1: 1.0},
    (4, 4): {0: 1.0},
}
"""P_lm(z) as {power of z: coefficient}."""

ZBL_COULOMB = 14.399645  # eV Å
ZBL_LENGTH = 2.134563  # 1/Å
ZBL_TERMS = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))


@dataclass(frozen=True)
class Shape:
    """The sizes of a NEP4 model; counts are inclusive maxima as in the file's header."""

    n_max_radial: int
    n_max_angular: int
    basis_size_radial: int
    basis_size_angular: int
    l_max: int
    has_q222: bool
    has_q1111: bool
    neurons: int

    @property
    def n_invariants(self) -> int:
        """Angular invariants for each n."""
        return self.l_max + int(self.has_q222) + int(self.has_q1111)

    @property
    def n_descriptors(self) -> int:
        return self.n_max_radial + 1 + (self.n_max_angular + 1) * self.n_invariants

    @property
    def n_harmonics(self) -> int:
        """Components b_lm, l = 1..l_max."""
        return (self.l_max + 1) ** 2 - 1


@dataclass(frozen=True)
class Repulsion:
    """Screened nuclear repulsion (Ziegler, Biersack and Littmark 1985) of each pair of types."""

    table: Tensor  # (T, T, 10): inner, outer (Å), a1, b1, .. a4, b4
    charges: Tensor  # (T,) atomic numbers


@dataclass(frozen=True)
class Parameters:
    """Tensors of a model, all of one float dtype and device. T types, D descriptors, M neurons.

    The network is ``U = sum_m w1 tanh(w0 @ (s q) - b0) - b1``.
    """

    c_radial: Tensor  # (T, T, n_max_radial + 1, basis_size_radial + 1), centre then neighbour
    c_angular: Tensor  # (T, T, n_max_angular + 1, basis_size_angular + 1)
    w0: Tensor  # (T, M, D)
    b0: Tensor  # (T, M)
    w1: Tensor  # (T, M)
    b1: Tensor  # ()
    scaler: Tensor  # (D,)
    cutoff_radial: Tensor  # (T, T) Å
    cutoff_angular: Tensor  # (T, T) Å
    zbl: Repulsion | None = None


@cache
def _harmonic_tables(l_max: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Constants that build b_lm and its derivatives from powers of z and of x + iy."""
    columns = [
        (l, m, imag)
        for l in range(1, l_max + 1)
        for m in range(l + 1)
        for imag in (0, 1)
        if m or not imag
    ]
    legendre = torch.zeros(l_max + 1, len(columns), dtype=dtype)
    slope = torch.zeros_like(legendre)
    c3b = torch.zeros(len(columns), l_max, dtype=dtype)
    order = torch.tensor([m for _, m, _ in columns])
    imaginary = torch.tensor([imag for *_, imag in columns])
    for column, (l, m, _) in enumerate(columns):
        for power, coefficient in LEGENDRE[l, m].items():
            legendre[power, column] = coefficient
            if power:
                slope[power - 1, column] = power * coefficient
        c3b[column, l - 1] = C3B[l - 1][m] * (2 if m else 1)
    # Re (x+iy)^m and Im (x+iy)^m stand at 2m and 2m + 1 of the stack of powers; each matrix picks
    # one of them for every column: d/dx z^m = m z^(m-1), d/dy Re = -m Im, d/dy Im = m Re.
    each = torch.arange(len(columns))
    lower = 2 * (order - 1).clamp(min=0)
    pick, by_x, by_y = (torch.zeros(2 * l_max + 2, len(columns), dtype=dtype) for _ in range(3))
    pick[2 * order + imaginary, each] = 1.0
    by_x[lower + imaginary, each] = order.to(dtype)
    by_y[lower + 1 - imaginary, each] = (order * (2 * imaginary - 1)).to(dtype)
    return tuple(table.to(device) for table in (legendre, slope, c3b, pick, by_x, by_y))


def harmonics(unit: Tensor, l_max: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Polynomials b_lm (..., H) of ``unit`` (..., 3), and their derivatives by x, y and z of it."""
    legendre, slope, _, pick, by_x, by_y = _harmonic_tables(l_max, unit.dtype, unit.device)
    x, y, z = unit.unbind(-1)
    z_powers = [torch.ones_like(z)]
    real, imag = [torch.ones_like(z)], [torch.zeros_like(z)]
    for _ in range(l_max):
        z_powers.append(z_powers[-1] * z)
        real, imag = [*real, real[-1] * x - imag[-1] * y], [*imag, real[-1] * y + imag[-1] * x]
    powers = torch.stack(z_powers, -1)
    plane = torch.stack([part for pair in zip(real, imag, strict=True) for part in pair], -1)
    polar, in_plane = powers @ legendre, plane @ pick
    gradient = (polar * (plane @ by_x), polar * (plane @ by_y), (powers @ slope) * in_plane)
    return polar * in_plane, gradient


def radial_functions(r: Tensor, cutoff: Tensor, basis_size: int) -> tuple[Tensor, Tensor]:
    """f_k(r), k = 0..basis_size (..., K), and df_k/dr; both zero beyond ``cutoff``."""
    inside = r < cutoff
    phase = math.pi * r / cutoff
    fc = torch.where(inside, 0.5 + 0.5 * torch.cos(phase), 0.0)
    dfc = torch.where(inside, -0.5 * math.pi / cutoff * torch.sin(phase), 0.0)
    shifted = r / cutoff - 1.0
    x, dx = 2.0 * shifted**2 - 1.0, 4.0 * shifted / cutoff
    chebyshev, slopes = [torch.ones_like(x), x], [torch.zeros_like(x), torch.ones_like(x)]
    for _ in range(2, basis_size + 1):
        slopes.append(2.0 * chebyshev[-1] + 2.0 * x * slopes[-1] - slopes[-2])
        chebyshev.append(2.0 * x * chebyshev[-1] - chebyshev[-2])
    # f_0 = fc equals (T_0 + 1)/2 fc, so one formula serves every k.
    half = 0.5 * (torch.stack(chebyshev[: basis_size + 1], -1) + 1.0)
    dhalf = 0.5 * torch.stack(slopes[: basis_size + 1], -1)
    fc, dfc, dx = fc.unsqueeze(-1), dfc.unsqueeze(-1), dx.unsqueeze(-1)
    return half * fc, dhalf * dx * fc + half * dfc


@dataclass(frozen=True)
class Geometry:
    """What depends on positions alone: reusable while only the parameters change."""

    r: Tensor  # (N, J)
    unit: Tensor  # (N, J, 3)
    radial: Tensor  # (N, J, T*K)
    radial_slope: Tensor
    angular: Tensor  # (N, J, T*K)
    angular_slope: Tensor
    harmonics: Tensor  # (N, J, H)
    harmonics_gradient: tuple[Tensor, Tensor, Tensor]  # (N, J, H) each, by the unit vector
    pair_cutoffs: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, shape: Shape, parameters: Parameters, types: Tensor, slots: Slots) -> Geometry:
        n_types = len(parameters.cutoff_radial)
        r = torch.linalg.vector_norm(slots.vectors, dim=-1)
        unit = slots.vectors / r.unsqueeze(-1)
        pair = (types.unsqueeze(1).expand_as(slots.neighbor_types), slots.neighbor_types)
        cutoffs = parameters.cutoff_radial[pair], parameters.cutoff_angular[pair]

        def basis(cutoff: Tensor, size: int) -> list[Tensor]:
            functions = radial_functions(r, cutoff, size)
            return [by_type(values, slots.neighbor_types, n_types) for values in functions]

        radial, radial_slope = basis(cutoffs[0], shape.basis_size_radial)
        angular, angular_slope = basis(cutoffs[1], shape.basis_size_angular)
        lm, lm_gradient = harmonics(unit, shape.l_max)
        return cls(r, unit, radial, radial_slope, angular, angular_slope, lm, lm_gradient, cutoffs)


def _many_body(s: Tensor, shape: Shape) -> tuple[Tensor, list[Tensor]]:
    """Invariants (N, n, I) of s (N, n, H), and d/ds (N, n, H) of those beyond three bodies."""
    c3b = _harmonic_tables(shape.l_max, s.dtype, s.device)[2]
    invariants, derivatives = [(s * s) @ c3b], []
    for wanted, form in ((shape.has_q222, _q222), (shape.has_q1111, _q1111)):
        if wanted:
            value, derivative = form(s)
            invariants.append(value.unsqueeze(-1))
            derivatives.append(derivative)
    return torch.cat(invariants, -1), derivatives


def _q222(s: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c, d, e = s[..., 3:8].unbind(-1)
    k0, k1, k2, k3, k4 = C4B
    value = (
        k0 * a**3
        + k1 * a * (b * b + c * c)
        + k2 * a * (d * d + e * e)
        + k3 * d * (c * c - b * b)
        + k4 * b * c * e
    )
    slopes = torch.stack(
        (
            3 * k0 * a * a + k1 * (b * b + c * c) + k2 * (d * d + e * e),
            2 * k1 * a * b - 2 * k3 * d * b + k4 * c * e,
            2 * k1 * a * c + 2 * k3 * d * c + k4 * b * e,
            2 * k2 * a * d + k3 * (c * c - b * b),
            2 * k2 * a * e + k4 * b * c,
        ),
        -1,
    )
    return value, torch.nn.functional.pad(slopes, (3, s.shape[-1] - 8))


def _q1111(s: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c = s[..., :3].unbind(-1)
    k0, k1, k2 = C5B
    p = b * b + c * c
    value = k0 * a**4 + k1 * a * a * p + k2 * p * p
    common = 2 * k1 * a * a + 4 * k2 * p
    slopes = torch.stack((4 * k0 * a**3 + 2 * k1 * a * p, common * b, common * c), -1)
    return value, torch.nn.functional.pad(slopes, (0, s.shape[-1] - 3))


def _of_centres(c: Tensor, types: Tensor) -> Tensor:
    """(T, T, n, K) -> (N, n, T*K) of each atom. A product: its gradient sums no atoms by index."""
    own = one_hot(types, len(c), c.dtype)
    rows: Tensor = (own @ c.flatten(1)).unflatten(1, c.shape[1:])
    return rows.transpose(1, 2).flatten(2)


def descriptors(
    shape: Shape, parameters: Parameters, types: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """q (N, D), unscaled, in NEP4's order; s (N, n, H); dq/ds of the four- and five-body ones."""
    c_radial = _of_centres(parameters.c_radial, types)
    c_angular = _of_centres(parameters.c_angular, types)
    radial = (c_radial @ geometry.radial.sum(1).unsqueeze(-1)).squeeze(-1)
    density = geometry.angular.transpose(1, 2) @ geometry.harmonics  # (N, T*K, H)
    s = c_angular @ density
    invariants, derivatives = _many_body(s, shape)
    return torch.cat((radial, invariants.transpose(1, 2).flatten(1)), 1), s, derivatives


def network(parameters: Parameters, types: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """U (N,) and dU/dq (N, D). Every type's network is evaluated, the atom's own one taken."""
    n_types, neurons, _ = parameters.w0.shape
    x = q * parameters.scaler
    hidden = (x @ parameters.w0.flatten(0, 1).T).view(-1, n_types, neurons) - parameters.b0
    active = torch.tanh(hidden)
    own = one_hot(types, n_types, q.dtype)
    w1 = parameters.w1 * own.unsqueeze(-1)  # (N, T, M), zero for other types
    energy = (w1 * active).sum((1, 2)) - parameters.b1
    slope = (w1 * (1.0 - active * active)).flatten(1) @ parameters.w0.flatten(0, 1)
    return energy, slope * parameters.scaler


def screened_repulsion(
    r: Tensor, zi: Tensor, zj: Tensor, table: Tensor, outer: Tensor
) -> tuple[Tensor, Tensor]:
    """Half of a pair's screened repulsion (...,) in eV, and its d/dr in eV/Å.

    ``table`` (..., 10) as in ``Repulsion``, with ``outer`` (...,) Å in place of its second column.
    """
    inner = table[..., 0]
    scale = (zi**0.23 + zj**0.23) * ZBL_LENGTH
    a, b = table[..., 2::2], table[..., 3::2] * scale.unsqueeze(-1)
    screened = a * torch.exp(-b * r.unsqueeze(-1))
    phi, dphi = screened.sum(-1), -(b * screened).sum(-1)
    width = (outer - inner).clamp(min=1e-12)
    phase = math.pi * (r - inner) / width
    fc = torch.where(r < inner, 1.0, torch.where(r < outer, 0.5 + 0.5 * torch.cos(phase), 0.0))
    ramp = -0.5 * math.pi / width * torch.sin(phase)
    dfc = torch.where((r >= inner) & (r < outer), ramp, 0.0)
    strength = 0.5 * ZBL_COULOMB * zi * zj / r
    return strength * phi * fc, strength * (dphi * fc + phi * dfc - phi * fc / r)


def zbl(
    repulsion: Repulsion, types: Tensor, slots: Slots, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Half the screened repulsion of each atom (N,) and its d/dr for each slot (N, J)."""
    pair = (types.unsqueeze(1).expand_as(slots.neighbor_types), slots.neighbor_types)
    table, charges = repulsion.table[pair], repulsion.charges
    outer = torch.minimum(table[..., 1], geometry.pair_cutoffs[1])  # GPUMD: the angular pairs
    value, slope = screened_repulsion(geometry.r, charges[pair[0]], charges[pair[1]], table, outer)
    return value.sum(1), slope


def energies_and_gradients(
    shape: Shape, parameters: Parameters, types: Tensor, slots: Slots
) -> tuple[Tensor, Tensor]:
    """U_i (N,) in eV, and dU_i/dr_ij (N, J, 3) in eV/Å, zero in empty slots.

    Forces are ``F_i = sum_j (dU_i/dr_ij - dU_j/dr_ji)``, the virial ``-sum_ij r_ij dU_i/dr_ij``.
    """
    geometry = Geometry.of(shape, parameters, types, slots)
    q, s, derivatives = descriptors(shape, parameters, types, geometry)
    energies, dq = network(parameters, types, q)

    n_radial, n_angular = shape.n_max_radial + 1, shape.n_max_angular + 1
    dq_radial = dq[:, :n_radial]
    dq_angular = dq[:, n_radial:].unflatten(1, (shape.n_invariants, n_angular))
    c3b = _harmonic_tables(shape.l_max, s.dtype, s.device)[2]
    ds = 2.0 * s * (dq_angular[:, : shape.l_max].transpose(1, 2) @ c3b.T)
    for k, derivative in enumerate(derivatives):
        ds = ds + derivative * dq_angular[:, shape.l_max + k].unsqueeze(-1)
    c_radial = _of_centres(parameters.c_radial, types)
    c_angular = _of_centres(parameters.c_angular, types)
    weight_radial = c_radial.transpose(1, 2) @ dq_radial.unsqueeze(-1)  # (N, T*K, 1)
    weight_angular = c_angular.transpose(1, 2) @ ds  # (N, T*K, H)

    along = (geometry.radial_slope @ weight_radial).squeeze(-1)
    along = along + ((geometry.angular_slope @ weight_angular) * geometry.harmonics).sum(-1)
    if parameters.zbl is not None:
        half, slope = zbl(parameters.zbl, types, slots, geometry)
        energies, along = energies + half, along + slope
    turning = geometry.angular @ weight_angular  # (N, J, H)
    turn = torch.stack([(turning * own).sum(-1) for own in geometry.harmonics_gradient], -1)
    turn = turn - geometry.unit * (turn * geometry.unit).sum(-1, keepdim=True)
    gradients = along.unsqueeze(-1) * geometry.unit + turn / geometry.r.unsqueeze(-1)
    return energies, gradients
