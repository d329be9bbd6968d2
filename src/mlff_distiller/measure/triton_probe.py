"""A Triton kernel small enough to compile at once; imported where Triton is to be tried."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _axpy(x, y, out, n, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    mask = i < n
    a, b = tl.load(x + i, mask=mask), tl.load(y + i, mask=mask)
    tl.store(out + i, 2.0 * a + b * b, mask=mask)


def run(device: str, n: int = 1000) -> float:
    """The largest error of 2 x + y² against the CPU."""
    x, y = torch.linspace(-1, 1, n), torch.linspace(0, 2, n)
    out = torch.empty(n, device=device)
    _axpy[(triton.cdiv(n, 256),)](x.to(device), y.to(device), out, n, SIZE=256)
    return float((out.cpu() - (2.0 * x + y * y)).abs().max())
