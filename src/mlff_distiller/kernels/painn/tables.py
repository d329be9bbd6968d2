"""Functions of a distance as tables: quintic Hermite polynomials between equidistant nodes.

They have the function's value and its first two derivatives at every node, so that energies keep
two continuous derivatives, and vanish with them at the cutoff.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

INTERVALS_A_HALF_WAVE = 11
"""Intervals for each half wave of the highest radial function. Slopes are then within some 10^-6 of
the steepest."""


def radial_table(
    functions: Callable[[Tensor, float, int], Tensor], cutoff: float, n: int
) -> Tensor:
    """``functions``, ``students.painn.bessel``, as a table (intervals + 1, 3, n), float64.

    By node, order of the derivative, and function; derivatives are by the number of the node.
    """
    n_intervals = INTERVALS_A_HALF_WAVE * n
    spacing = cutoff / n_intervals
    r = spacing * torch.arange(1, n_intervals, dtype=torch.float64)
    r = r[:, None].repeat(1, n).requires_grad_()  # a leaf for each function
    with torch.enable_grad():
        value = functions(r, cutoff, n).diagonal(dim1=1, dim2=2)
        (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), r)
    table = torch.zeros(n_intervals + 1, 3, n, dtype=torch.float64)
    table[1:-1] = torch.stack([value, slope * spacing, curvature * spacing**2], 1).detach()
    k = math.pi * torch.arange(1, n + 1, dtype=torch.float64)
    table[0, 0], table[0, 2] = k, -(k**3) / 3.0 / n_intervals**2  # sin(k x) / x at 0
    return table
