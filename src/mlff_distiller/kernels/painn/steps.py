"""The launches and matrix products of one evaluation, in their order; names as in ``native.py``."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import warp as wp
from torch import Tensor

from mlff_distiller.kernels.compiling import Launch
from mlff_distiller.kernels.painn.chain import Chain
from mlff_distiller.kernels.painn.native import BETWEEN
from mlff_distiller.kernels.painn.shape import Shape
from mlff_distiller.kernels.painn.warp import Kernels

SMALL = 16384
"""Numbers that one core handles in the time that others need to wake."""


class Steps:
    """An evaluation of atoms whose neighbours and results ``shared`` names.

    ``weights`` are (inputs, outputs); ``rooms`` keeps the arrays in between from one recording to
    the next. Of these ``last_hidden`` (n_atoms, width) is the readout's layer before SiLU. Where
    there is a kernel ``chain``, it does all from one look at neighbours to the next.
    """

    last_hidden: Tensor

    def __init__(
        self,
        kernels: Kernels,
        shared: Any,
        weights: dict[str, Any],
        rooms: dict[Any, Tensor],
        skip: wp.array,
        device: wp.Device,
        n_threads: int,
    ) -> None:
        self._kernels, self._shared, self._weights, self._rooms = kernels, shared, weights, rooms
        self._shape: Shape = kernels.shape
        self._skip, self._device, self._n_threads = skip, device, n_threads
        self._n: int = shared.n_atoms
        self._steps: list[Callable[[], object]] = []
        self._chain = Chain(kernels) if kernels.chain is not None else None
        self._kept: list[Chain] = []
        for name in ("radial", "embedding", "outer", "zbl"):
            if name in weights:
                setattr(shared, name, _flat(weights[name]))

    def record(self) -> list[Callable[[], object]]:
        """Steps from distances to the energies of atoms and dE/dr_ij."""
        n, c = self._n, self._shape.channels
        backwards: list[Callable[[], None]] = []
        s, v = self._first()
        self._s_bar, self._v_bar = self._common("s_bar", n, c), self._common("v_bar", 3 * n, c)
        for layer in range(len(self._weights["updates"])):
            if layer:
                s, v, backward = self._message(layer, s, v)
                backwards.append(backward)
            s, v, backward = self._update(layer, s, v)
            backwards.append(backward)
        self._readout(s)
        for backward in reversed(backwards):
            backward()
        self._first_back()
        return self._steps

    # -- pieces --------------------------------------------------------------------------------

    def _room(self, name: Any, rows: int, width: int) -> Tensor:
        """Numbers that stay where they are."""
        if name not in self._rooms:
            self._rooms[name] = self._weights["radial"].new_zeros(rows * width)
        return self._rooms[name].view(rows, width)

    def _common(self, name: str, rows: int, width: int) -> Tensor:
        """The same, which kernels find among what layers share."""
        room = self._room(name, rows, width)
        setattr(self._shared, name, _flat(room))
        return room

    def _atoms(self, name: str, layer: Any = None, *, edges: bool = False) -> None:
        """Launch a kernel over all atoms, of which some look at ``edges``."""
        k, layer = self._kernels, layer or self._kernels.layer()
        if self._chain is not None and not edges:
            self._chain.layers.append(layer)
            self._chain.codes.append((BETWEEN.index(name), len(self._chain.layers) - 1))
            return
        self._end_chain()
        is_long = edges or self._n * self._shape.channels > SMALL
        step = (k.of_atoms[name], (self._skip, self._shared, layer))
        cores = self._n_threads if is_long else 1
        threads = k.shared_threads if edges else k.threads
        self._steps.append(Launch([step], self._n, self._device, cores, threads))

    def _product(
        self,
        a: Tensor,
        b: Tensor,
        out: Tensor,
        bias: Tensor | None = None,
        active: Tensor | None = None,
    ) -> None:
        """``active`` becomes the SiLU of what comes out."""
        if self._chain is not None:
            self._chain.product(self._n, out, a, b, bias, active, 1 if active is not None else 0)
            return
        if bias is None:
            self._steps.append(partial(torch.mm, a, b, out=out))
        else:
            self._steps.append(partial(torch.addmm, bias, a, b, out=out))
        if active is not None:
            self._steps.append(partial(torch.ops.aten.silu, out, out=active))

    def _slope(self, hidden: Tensor, bar: Tensor, out: Tensor) -> None:
        """From an adjoint of the SiLU of ``hidden`` to that of ``hidden``."""
        if self._chain is not None:
            self._chain.product(self._n, out, None, None, bar, hidden, 2)
        else:
            slope = partial(torch.ops.aten.silu_backward, bar, hidden, grad_input=out)
            self._steps.append(slope)

    def _end_chain(self) -> None:
        if self._chain is not None and self._chain.codes:
            k, n = self._kernels, self._n
            step = (k.chain, (self._skip, self._shared, *self._chain.arrays(self._device)))
            cores = self._n_threads
            self._steps.append(Launch([step], n, self._device, cores, k.shared_threads))
            self._kept.append(self._chain)
            self._chain = Chain(k)

    def _hidden(
        self, inputs: Tensor, matrix: Tensor, bias: Tensor, name: Any
    ) -> tuple[Tensor, Tensor]:
        """A layer before and after SiLU."""
        width = matrix.shape[1]
        hidden = self._room((name, "hidden"), self._n, width)
        active = self._room(("active", width), self._n, width)
        self._product(inputs, matrix, hidden, bias, active)
        return hidden, active

    def _network(self, inputs: Tensor, weights: list[Tensor], name: Any) -> tuple[Tensor, Tensor]:
        """The hidden layer before SiLU, and what comes out."""
        hidden, active = self._hidden(inputs, weights[0], weights[1], name)
        out = self._room((name, "gates"), self._n, weights[2].shape[1])
        self._product(active, weights[2], out, weights[3])
        return hidden, out

    def _network_back(self, weights: list[Tensor], hidden: Tensor, inputs_bar: Tensor) -> None:
        width = weights[2].shape[1]
        gates_bar = self._rooms["gates_bar"][: self._n * width].view(self._n, width)
        bar = self._room(("active", hidden.shape[1]), *hidden.shape)
        self._product(gates_bar, weights[2].T, bar)
        self._slope(hidden, bar, bar)
        self._product(bar, weights[0].T, inputs_bar)

    # -- layers --------------------------------------------------------------------------------

    def _layer(self, name: Any, s: Tensor, v: Tensor) -> Any:
        """What updates and messages have: softened scalars and vectors."""
        n, c = self._n, self._shape.channels
        x = self._kernels.layer()
        x.s, x.v = _flat(s), _flat(v)
        x.inputs = _flat(self._room((name, "inputs"), n, 2 * c))
        x.soft_v = _flat(self._room((name, "soft_v"), 3 * n, c))
        x.factors = _flat(self._room((name, "factors"), n, 2))
        for common, rows, width in (("inputs", n, 2), ("soft_v", 3 * n, 1), ("gates", n, 3)):
            self._common(f"{common}_bar", rows, width * c)
        return x

    def _results(self, name: Any, x: Any) -> tuple[Tensor, Tensor]:
        n, c = self._n, self._shape.channels
        s, v = self._room((name, "s"), n, c), self._room((name, "v"), 3 * n, c)
        x.s_out, x.v_out = _flat(s), _flat(v)
        return s, v

    def _update(
        self, layer: int, s: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[], None]]:
        n, c, name = self._n, self._shape.channels, ("update", layer)
        mixing, network = self._weights["mixing"][layer], self._weights["updates"][layer]
        x = self._layer(name, s, v)
        x.is_end = int(layer == len(self._weights["updates"]) - 1)
        mixed_v = self._room((name, "mixed_v"), 3 * n, 2 * c)
        mixed_v_bar = self._common("mixed_v_bar", 3 * n, 2 * c)
        x.mixed_v, x.dots = _flat(mixed_v), _flat(self._room((name, "dots"), n, c))
        self._atoms("soft", x)
        self._product(self._rooms[name, "soft_v"].view(3 * n, c), mixing, mixed_v)
        self._atoms("norms", x)
        hidden, gates = self._network(self._room((name, "inputs"), n, 2 * c), network, name)
        x.gates = _flat(gates)
        s_out, v_out = (self._results(name, x)) if not x.is_end else (self._end(x), v)
        self._atoms("update", x)

        def backward() -> None:
            inputs_bar = self._room("inputs_bar", n, 2 * c)
            self._atoms("gates_back", x)
            self._network_back(network, hidden, inputs_bar)
            self._atoms("mixed_back", x)
            self._product(mixed_v_bar, mixing.T, self._room("soft_v_bar", 3 * n, c))
            self._atoms("soft_back", x)

        return s_out, v_out, backward

    def _end(self, x: Any) -> Tensor:
        s = self._room("end", self._n, self._shape.channels)
        x.s_out = _flat(s)
        return s

    def _message(
        self, layer: int, s: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[], None]]:
        n, c, name = self._n, self._shape.channels, ("message", layer)
        network = self._weights["messages"][layer - 1]
        x = self._layer(name, s, v)
        x.is_last = int(layer == len(self._weights["messages"]))
        x.table = _flat(self._weights["tables"][layer - 1])
        x.features = _flat(self._room((name, "features"), n, 5 * c))
        self._atoms("soft", x)
        inputs = self._room((name, "inputs"), n, 2 * c)[:, :c]
        hidden, phi = self._network(inputs, network, name)
        x.gates = _flat(phi)
        self._atoms("features", x)
        s_out, v_out = self._results(name, x)
        self._atoms("message", x, edges=True)

        def backward() -> None:
            self._atoms("message_back", x, edges=True)
            self._network_back(network, hidden, self._room("inputs_bar", n, 2 * c)[:, :c])
            self._atoms("soft_back", x)

        return s_out, v_out, backward

    def _readout(self, s: Tensor) -> None:
        """Energies of atoms, and their derivative by scalars."""
        (matrix, bias), (last, last_bias) = self._weights["readout"], self._weights["last"]
        hidden, active = self._hidden(s, matrix, bias, "readout")
        self.last_hidden = hidden
        self._product(active, last.view(-1, 1), self._common("site", self._n, 1), last_bias)
        bar = self._room("readout_bar", *hidden.shape)
        each = last.expand(hidden.shape).contiguous()
        self._slope(hidden, each, bar)
        self._product(bar, matrix.T, self._s_bar)

    # -- moments of the neighbourhood ----------------------------------------------------------

    def _by_order(self, name: str) -> list[Tensor]:
        """Moments of each order within their room, a row for each component of an atom."""
        n, shape = self._n, self._shape
        size = shape.place(shape.max_moment + 1)
        room, views = self._common(name, n, size).view(-1), []
        for order in range(shape.max_moment + 1):
            part = room[n * shape.place(order) : n * shape.place(order + 1)]
            views.append(part.view(n * (2 * order + 1), shape.width(order)))
        return views

    def _sums(self, name: str) -> list[Tensor]:
        width, count = self._weights["moments"][0].shape[0], self._shape.max_moment + 1
        room = self._common(name, self._n * count**2, width)
        return [room[self._n * order**2 : self._n * (order + 1) ** 2] for order in range(count)]

    def _first(self) -> tuple[Tensor, Tensor]:
        """Scalars and vectors from moments, and from their products."""
        n, shape, w = self._n, self._shape, self._weights
        moments = self._by_order("moments")
        sums = self._sums("sums")
        self._common("factors", n, shape.max_moment)
        if shape.max_moment > 1:
            soft, mixed = self._by_order("soft_moments"), self._by_order("mixed")
            first = self._common("first", 3 * n, len(shape.mixes) * shape.half)
            invariants = self._common("invariants", n, shape.n_invariants * shape.half)
            turned = self._common("turned", 3 * n, shape.half)
        self._atoms("sums", edges=True)
        for own, weights, out in zip(sums, w["moments"], moments, strict=True):
            self._product(own, weights, out)
        self._atoms("soft_moments")
        if shape.max_moment == 1:
            return moments[0], moments[1]
        self._product(soft[1], w["mix"], first)
        for order in shape.orders:
            self._product(soft[order], w["mix_higher"][order - 2], mixed[order])
        self._atoms("products")
        s, v = self._room("s", n, shape.channels), self._room("v", 3 * n, shape.channels)
        self._product(invariants, w["scalars"], s, moments[0])
        self._product(turned, w["vectors"], v, moments[1])
        return s, v

    def _first_back(self) -> None:
        n, shape, w = self._n, self._shape, self._weights
        moments, sums = self._by_order("moments_bar"), self._sums("sums_bar")
        if shape.max_moment > 1:
            soft, mixed = self._by_order("soft_moments_bar"), self._by_order("mixed_bar")
            first = self._common("first_bar", 3 * n, len(shape.mixes) * shape.half)
            invariants = self._common("invariants_bar", n, shape.n_invariants * shape.half)
            turned = self._common("turned_bar", 3 * n, shape.half)
            self._product(self._s_bar, w["scalars"].T, invariants)
            self._product(self._v_bar, w["vectors"].T, turned)
            self._atoms("products_back")
            self._product(first, w["mix"].T, soft[1])
            for order in shape.orders:
                self._product(mixed[order], w["mix_higher"][order - 2].T, soft[order])
        self._atoms("soft_moments_back")
        for own, weights, out in zip(moments, w["moments"], sums, strict=True):
            self._product(own, weights.T, out)
        self._atoms("gradients", edges=True)


def _flat(tensor: Tensor) -> wp.array:
    return wp.from_torch(tensor.view(-1))
