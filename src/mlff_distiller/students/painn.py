"""``painn``: the accurate tier, equivariant message passing with scalars and vectors.

After Schütt, Unke and Gastegger (ICML 2021, arXiv:2102.03150). Beside the paper's form, the first
layer, whose messages depend on the neighbour's element alone, also gathers higher moments of the
neighbourhood, and offers products of all its moments (three to five bodies, as in the atomic
cluster expansion) to the scalars: angles cost no second pass over the edges there.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mlff_distiller.kernels.slots import Slots, by_type, one_hot
from mlff_distiller.students.base import Student
from mlff_distiller.students.repulsion import Pairs

SHORTEST = 1e-6
"""Å. Keeps the direction of coincident atoms finite."""
SATURATION = 0.25
"""Share of ZBL's outer radius within which messages cease to change."""
_HIGHEST_OF_FIRST = 4
"""Order up to which harmonics of the first moments are formed; their cost grows as its square."""
_RATE_OF = 64, 2
"""Channels and layers up to which the learning rate is the given one."""
_FIRST_NORM_WIDTH = 1e-3
"""For students whose ``config`` does not say: what they were trained with."""


class PaiNN(Student):
    """PaiNN-style student; extensive, smooth to second order at the cutoff.

    Parameters
    ----------
    channels, layers
        Scalars, and vectors, of each atom; passes of messages.
    radial_functions
        Bessel functions sin(k pi r / r_c) / r under a polynomial envelope.
    max_moment
        Order of the first layer's highest moments, 1 to 8; from 2 on there are products.
    norm_width
        Below it the norm of a vector is parabolic, so that the energy has a curvature where
        symmetry makes the vector vanish.
    radial_scale
        Factor of the radial functions, by which an atom's first messages have unit variance.
    zbl
        ``zbl[t][u]`` = inner and outer radius (Å) and a1, b1 .. a4, b4; None for no repulsion.
    saturates
        Whether messages stay as they are where atoms come closer than ZBL's outer radius, of which
        no data tell: what changes there is the repulsion alone.
    """

    architecture: ClassVar[str] = "painn"
    kernels: ClassVar[str | None] = "painn"
    weight_decay: ClassVar[float] = 0.02
    scale: Tensor  # () eV

    def __init__(
        self,
        elements: tuple[str, ...],
        cutoff: float,
        channels: int,
        layers: int,
        radial_functions: int,
        radial_scale: float,
        *,
        max_moment: int = 3,
        norm_width: float = 1.0,
        zbl: Pairs | None = None,
        saturates: bool = True,
    ) -> None:
        super().__init__(elements, cutoff, zbl)
        self.saturates = saturates
        self.norm_width = norm_width
        self.channels, self.layers, self.radial_functions = channels, layers, radial_functions
        self.radial_scale, self.max_moment = radial_scale, max_moment
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.embedding = nn.Parameter(torch.zeros(len(elements), channels, dtype=torch.float64))
        self.messages, self.updates = nn.ModuleList(), nn.ModuleList()
        for layer in range(layers):
            self.updates.append(_Update(channels, norm_width, last=layer == layers - 1))
            if layer:
                self.messages.append(_Message(channels, radial_functions))
        self.gather = _Gather(len(elements), channels, radial_functions, max_moment)
        self.readout = _perceptron(channels, max(8, channels // 2), 1)
        self.double()

    def parameter_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """One, of a learning rate that falls with the width and the depth.

        An orthogonal step's norm grows as the root of the width, and layers multiply.
        """
        channels, layers = _RATE_OF
        rate = math.sqrt(channels / self.channels) * layers / self.layers
        return [(min(1.0, rate), list(self.parameters()))]

    def config(self) -> dict[str, Any]:
        return {
            "elements": list(self.elements),
            "cutoff": self.cutoff,
            "channels": self.channels,
            "layers": self.layers,
            "radial_functions": self.radial_functions,
            "radial_scale": self.radial_scale,
            "max_moment": self.max_moment,
            "norm_width": self.norm_width,
            "zbl": self.zbl,
            "saturates": self.saturates,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PaiNN:
        given = {"norm_width": _FIRST_NORM_WIDTH, "saturates": False, **config}
        if "moments" in given:  # of students from before there were higher ones
            given["max_moment"] = 2 if given.pop("moments") else 1
        return cls(**{**given, "elements": tuple(config["elements"])})

    def site_energies(
        self,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        max_neighbors: int | None = None,
    ) -> Tensor:
        s, r, pair = self._scalars(types, i, j, vectors, max_neighbors)
        energies: Tensor = self.scale.to(s.dtype) * self.readout(s).squeeze(1)
        if self.repulsion is not None:
            energies = energies + self.repulsion(r, *pair).sum(1)
        return energies

    @torch.no_grad()
    def environments(self, types: Tensor, i: Tensor, j: Tensor, vectors: Tensor) -> Tensor:
        """The last hidden layer."""
        hidden: Tensor = self.readout[:-1](self._scalars(types, i, j, vectors)[0])
        return hidden

    def _scalars(
        self,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        max_neighbors: int | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Those of the last layer (n_atoms, C); distances (n_atoms, n_slots) and their types."""
        slots = Slots.from_edges(types, i, j, vectors, 2.0 * self.cutoff, max_neighbors)
        r = (slots.vectors.square().sum(2) + SHORTEST**2).sqrt()  # (n_atoms, n_slots)
        directions = slots.vectors / r.unsqueeze(2)
        pair, seen = (types.unsqueeze(1), slots.neighbor_types), r
        if self.repulsion is not None and self.saturates:
            seen = saturated(r, self.repulsion.outer(*pair, r.dtype))
        radial = self.radial_scale * bessel(seen, self.cutoff, self.radial_functions)
        s, v = self.gather(slots.neighbor_types, radial, directions)
        s, v = self.updates[0](_of_type(self.embedding, types) + s, v)
        for message, update in zip(self.messages, self.updates[1:], strict=True):
            s, v = update(*message(s, v, slots.neighbors, radial, directions))
        return s, r, pair


def saturated(r: Tensor, outer: Tensor) -> Tensor:
    """``r`` from ``outer`` (...) on; below ``(1 - w) outer`` constant, twice differentiable.

    With u = (1 - r/outer)/w it is ``outer (1 - w (u - u^3 + u^4 / 2))``.
    """
    u = ((1.0 - r / outer) / SATURATION).clamp(0.0, 1.0)
    return torch.where(
        r > outer, r, outer * (1.0 - SATURATION * u * (1.0 - u**2 * (1.0 - 0.5 * u)))
    )


def bessel(r: Tensor, cutoff: float, n: int) -> Tensor:
    """sin(k pi r / r_c) r_c / r (..., n), times an envelope with two zero derivatives at r_c.

    Gasteiger et al., arXiv:2003.03123, eq. 7; the envelope is 1 - 10 x^3 + 15 x^4 - 6 x^5.
    """
    x = (r / cutoff).clamp(max=1.0)
    envelope = 1.0 - x**3 * (10.0 - x * (15.0 - 6.0 * x))
    k = torch.arange(1, n + 1, device=r.device, dtype=r.dtype)
    return torch.sin(math.pi * k * x.unsqueeze(-1)) * (envelope * cutoff / r).unsqueeze(-1)


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Weights undefined: PyTorch's own would be drawn from the global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    return layer


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, hidden), nn.SiLU(), _linear(hidden, outputs))


class _Gather(nn.Module):
    """The first messages: moments of the neighbourhood, weighted by the neighbour's element."""

    def __init__(self, n_types: int, channels: int, radial_functions: int, max_moment: int) -> None:
        super().__init__()
        half = channels // 2
        self.sizes = [channels, channels, *[half] * (max_moment - 1)]
        self.weights = nn.Parameter(torch.zeros(n_types, sum(self.sizes)))
        self.filters = _linear(radial_functions, sum(self.sizes), bias=False)
        self.products = _Products(channels, half) if max_moment > 1 else None
        self.higher = nn.ModuleList(
            _HigherProducts(order, channels, half) for order in range(3, max_moment + 1)
        )

    def forward(
        self, neighbor_types: Tensor, radial: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scalars (n_atoms, C) and vectors (n_atoms, 3, C).

        From the types (n_atoms, n_slots), radial functions (.., K) and directions (.., 3) of
        neighbours. Sums over these come before weights of channels: there are fewer functions.
        """
        flat = directions.flatten(0, 1)
        harmonics = solid_harmonics(len(self.sizes) - 1, flat)
        harmonics[1] = flat
        orders = [own.shape[1] for own in harmonics]
        angular = torch.cat(harmonics, 1).unflatten(0, directions.shape[:2])
        sums = angular.mT @ by_type(radial, neighbor_types, len(self.weights))
        weights = (self.weights.unsqueeze(1) * self.filters.weight.T).flatten(0, 1)
        moments = [
            own @ weight
            for own, weight in zip(sums.split(orders, 1), weights.split(self.sizes, 1), strict=True)
        ]  # (n_atoms, 2 l + 1, C) each
        scalars, vectors = moments[0].squeeze(1), moments[1]
        if self.products is None:
            return scalars, vectors
        soft = _soft(vectors, 1)
        ds, dv = self.products(soft, _soft(moments[2], 1))
        for moment, products in zip(moments[3:], self.higher, strict=True):
            ds = ds + products(soft, _soft(moment, 1))
        return scalars + ds, vectors + dv


class _Message(nn.Module):
    """Sums over neighbours of their scalars, filtered, of directions, and of their vectors."""

    def __init__(self, channels: int, radial_functions: int) -> None:
        super().__init__()
        self.network = _perceptron(channels, channels, 3 * channels)
        self.filters = _linear(radial_functions, 3 * channels, bias=False)

    def forward(
        self, s: Tensor, v: Tensor, neighbors: Tensor, radial: Tensor, directions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``s`` (n_atoms, C) and ``v`` (n_atoms, 3, C) with their messages.

        From ``neighbors`` (n_atoms, n_slots), their radial functions (.., K), directions (.., 3).
        """

        def of_neighbors(x: Tensor) -> Tensor:
            return x.index_select(0, neighbors.flatten()).view(*neighbors.shape, *x.shape[1:])

        weights = of_neighbors(self.network(_soft(s))) * self.filters(radial)
        own, along, turned = weights.chunk(3, dim=2)
        dv = (of_neighbors(_soft(v, 1)) * turned.unsqueeze(2)).sum(1)
        return s + own.sum(1), v + directions.mT @ along + dv


def _of_type(table: Tensor, types: Tensor) -> Tensor:
    """Rows (n_atoms, C) of ``table`` (T, C). A product: its gradient needs no sums over atoms."""
    return one_hot(types, len(table), table.dtype) @ table


def _soft(x: Tensor, components: int | None = None) -> Tensor:
    """``x`` over the root of 1 + its mean square over channels: products of products stay finite.

    Squares are summed over the axis ``components`` of a vector first.
    """
    squares = x.square()
    if components is not None:
        squares = squares.sum(components, keepdim=True)
    return x * torch.rsqrt(1.0 + squares.mean(-1, keepdim=True))


def solid_harmonics(max_order: int, vectors: Tensor) -> list[Tensor]:
    """Real harmonics times r^l, of norm r^l, of the orders l = 0 to ``max_order``.

    A tensor (n, 2 l + 1, ...) an order, of vectors (n, 3, ...): m = 0, then cos and sin of each
    m > 0; second ones are (3 z^2 - r^2) / 2 and, over sqrt(3), zx, yz, (x^2 - y^2) / 2, xy. The
    recursion of Pi_l^m(z) (Helgaker, Joergensen and Olsen 2000, section 6.4).
    """
    x, y, z = vectors.unbind(1)
    rr = x * x + y * y + z * z
    orders: list[list[Tensor]] = [[] for _ in range(max_order + 1)]
    first, cosine, sine = 1.0, torch.ones_like(z), torch.zeros_like(z)  # (2m - 1)!!, r^m cos m phi
    for m in range(max_order + 1):
        below, legendre = torch.zeros_like(z), torch.full_like(z, first)
        for order in range(m, max_order + 1):
            ratio = 2.0 * math.factorial(order - m) / math.factorial(order + m)
            own = legendre * (math.sqrt(ratio) if m else 1.0)
            orders[order] += [own * cosine, own * sine] if m else [own]
            next_up = (2 * order + 1) * z * legendre - (order + m) * rr * below
            below, legendre = legendre, next_up / (order + 1 - m)
        first *= 2 * m + 1
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
    return [torch.stack(own, 1) for own in orders]


class _Products(nn.Module):
    """Products of first moments a and second moments B: a.a, B:B, a.B.a, tr B^3, and B.a."""

    def __init__(self, channels: int, mixed: int) -> None:
        super().__init__()
        self.mix = _linear(channels, mixed, bias=False)
        self.mix_second = _linear(mixed, mixed, bias=False)
        self.scalars = _linear(4 * mixed, channels, bias=False)
        self.vectors = _linear(mixed, channels, bias=False)

    def forward(self, vectors: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (n_atoms, C) and vectors (n_atoms, 3, C) to be added."""
        a, b = self.mix(vectors), self.mix_second(second)
        zz, zx, yz, dd, xy = b.unbind(1)
        root = math.sqrt(3.0)
        xx, yy = 0.5 * (root * dd - zz), -0.5 * (root * dd + zz)
        xy, yz, zx = 0.5 * root * xy, 0.5 * root * yz, 0.5 * root * zx
        x, y, z = a.unbind(1)
        turned = torch.stack(
            [xx * x + xy * y + zx * z, xy * x + yy * y + yz * z, zx * x + yz * y + zz * z], 1
        )
        determinant = (
            xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * zx) + zx * (xy * yz - yy * zx)
        )  # a third of the trace of the cube, B being traceless
        invariants = [(a * a).sum(1), (b * b).sum(1), (a * turned).sum(1), 3.0 * determinant]
        return self.scalars(torch.cat(invariants, 1)), self.vectors(turned)


class _HigherProducts(nn.Module):
    """Products of first moments a and those T of a higher order: T.T; T.Y(a) up to the fourth.

    Y(a) are the harmonics of a.
    """

    def __init__(self, order: int, channels: int, mixed: int) -> None:
        super().__init__()
        self.order = order
        self.mix = _linear(channels, mixed, bias=False) if order <= _HIGHEST_OF_FIRST else None
        self.mix_higher = _linear(mixed, mixed, bias=False)
        self.scalars = _linear((1 + (self.mix is not None)) * mixed, channels, bias=False)

    def forward(self, vectors: Tensor, higher: Tensor) -> Tensor:
        """Scalars (n_atoms, C) to be added."""
        t = self.mix_higher(higher)
        invariants = [(t * t).sum(1)]
        if self.mix is not None:
            own = solid_harmonics(self.order, self.mix(vectors))[-1]
            invariants.append((t * own).sum(1))
        added: Tensor = self.scalars(torch.cat(invariants, 1))
        return added


class _Update(nn.Module):
    """Scalars and vectors of one atom mix; of the last layer only the scalars are needed."""

    def __init__(self, channels: int, norm_width: float, *, last: bool) -> None:
        super().__init__()
        self.kinds, self.norm_width = 2 if last else 3, norm_width
        self.u = _linear(channels, channels, bias=False)
        self.v = _linear(channels, channels, bias=False)
        self.network = _perceptron(2 * channels, channels, self.kinds * channels)

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        soft = _soft(v, 1)
        uv, vv = self.u(soft), self.v(soft)
        norm = (vv.square().sum(1) + self.norm_width**2).sqrt()
        gates = self.network(torch.cat([_soft(s), norm], 1)).chunk(self.kinds, dim=1)
        s = s + gates[0] + gates[1] * (uv * vv).sum(1)
        return s, v if self.kinds == 2 else v + gates[2].unsqueeze(1) * uv
