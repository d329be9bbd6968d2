"""Steps between two looks at neighbours, gathered into a program for one kernel."""

from typing import Any

import warp as wp
from torch import Tensor

from mlff_distiller.kernels.painn.warp import OF_PRODUCT, Kernels


class Chain:
    """``codes`` are the steps in their order, see ``native_chain.py``; keeps what they refer to."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.codes: list[tuple[int, int]] = []
        self.layers: list[Any] = []
        self._products: list[Any] = []
        self._tensors: list[Tensor | None] = []

    def product(
        self,
        n: int,
        out: Tensor,  # (rows n, width)
        inputs: Tensor | None,  # (rows n, inner)
        matrix: Tensor | None,  # (inner, width)
        bias: Tensor | None,  # (width,), or like out
        other: Tensor | None,  # like out
        way: int,
    ) -> None:
        matrix = None if matrix is None else matrix.contiguous()  # lanes read a row
        p = self._kernels.product()
        given = (inputs, matrix, bias, out, other)
        for name, tensor in zip(OF_PRODUCT, given, strict=False):
            setattr(p, name, 0 if tensor is None else tensor.data_ptr())
        p.input_stride = 0 if inputs is None else inputs.stride(0)
        p.bias_stride = 0 if bias is None or bias.dim() == 1 else bias.stride(0)
        p.out_stride = out.stride(0)
        p.rows, p.width = len(out) // n, out.shape[1]
        p.inner, p.way = 0 if inputs is None else inputs.shape[1], way
        self._tensors += given
        self.codes.append((-1, len(self._products)))
        self._products.append(p)

    def arrays(self, device: wp.Device) -> tuple[wp.array, wp.array, wp.array]:
        k = self._kernels
        layers = self.layers or [k.layer()]
        products = self._products or [k.product()]
        self._arrays = (
            wp.array(self.codes, dtype=wp.vec2i, device=device),
            wp.array(layers, dtype=k.layer, device=device),
            wp.array(products, dtype=k.product, device=device),
        )
        return self._arrays
