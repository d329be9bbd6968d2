"""Estimates of force errors from atoms' distances to the training set, as a Warp kernel.

One source for CPU and GPU, and for all students; see `ErrorModel` for the formulas.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

from mlff_distiller.kernels.compiling import IN_VECTORS
from mlff_distiller.kernels.nep.warp_functions import waves
from mlff_distiller.kernels.types import WARP
from mlff_distiller.kernels.warp_sums import lane_sum

BLOCK = 4 * WARP


@dataclass(frozen=True)
class EstimateKernels:
    """One, for each type of its numbers."""

    module: wp.Module
    threads: int  # that a launch takes for an atom
    estimates: wp.Kernel


@cache
def build(device: str, real: type, largest: float) -> EstimateKernels:
    """For a "cpu" or a "cuda" device, Warp's float type, and results of at most ``largest``."""
    on_cpu = device == "cpu"
    module = wp.Module(f"mlff_distiller_estimates_{device}_{real.__name__}", None)
    module.options.update(
        enable_backward=False, block_dim=1 if on_cpu else BLOCK, default_grid_stride=False
    )
    if on_cpu:
        module.options["cpu_compiler_flags"] = IN_VECTORS
    most = wp.constant(wp.float64(largest))
    cos_pi, _ = waves(real)
    lanes = 1 if on_cpu else WARP
    sum_of_lanes = lane_sum(real, lanes)

    @wp.kernel(module=module)
    def estimates(
        first: int,
        skip: wp.array(dtype=int),
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
        types: wp.array(dtype=int),
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        squares: wp.array(dtype=real),
        reach: real,
        scale: wp.array(dtype=wp.float64),
        edge: wp.array(dtype=wp.float64),
        power: wp.float64,
        errors: wp.array(dtype=wp.float64),
        extrapolation: wp.array(dtype=wp.float64),
    ):
        """``squares`` are d_i^2; the lanes of a warp share an atom's neighbours."""
        i = first + wp.tid() / lanes
        if skip[0] != 0:
            return
        total = real(0.0)
        weights = real(0.0)
        for slot in range(wp.tid() % lanes, counts[i], lanes):
            j = neighbors[i, slot]
            r = real(wp.length(positions[j] - positions[i] + shifts[images[i, slot]]))
            if r < reach:
                weight = real(0.5) + real(0.5) * cos_pi(r / reach)
                weights += weight
                total += weight * squares[j]
        total = squares[i] + sum_of_lanes(total)
        weights = real(1.0) + sum_of_lanes(weights)
        t = types[i]
        gamma = wp.sqrt(wp.float64(total / weights)) / edge[t]
        if not (gamma < most):  # NaN neither
            gamma = most
        errors[i] = wp.min(scale[t] * wp.pow(gamma, power), most)
        extrapolation[i] = gamma

    return EstimateKernels(module, lanes, estimates)
