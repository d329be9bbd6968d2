"""The sums over pairs of ``warp_training`` by the lanes of a warp, and without tables: for GPUs.

Lanes are pairs when they fill a row each in shared memory, then components of the sums. A phase is
a loop over lanes, which on a GPU is passed once by each: on a CPU the same source runs with one
lane after the other, for tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import warp as wp

from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp_functions import AtomFunctions, RadialFunctions, Types
from mlff_distiller.kernels.types import WARP

SHARED_BYTES = 48 * 1024
"""That a block may have without asking for more."""
LARGEST_BLOCK = 4
"""Warps."""


def row_size(shape: Shape) -> int:
    """Numbers of a pair in shared memory: its type, functions and harmonics, twice; odd."""
    size = 1 + shape.basis_size_radial + 1
    size += 2 * (shape.basis_size_angular + 1 + shape.n_harmonics)
    return size + 1 - size % 2


def warps_a_block(shape: Shape, *, float64: bool) -> int:
    """As many as their memory allows, each with an atom of its own."""
    size = WARP * row_size(shape) * (8 if float64 else 4)
    return max(1, min(LARGEST_BLOCK, SHARED_BYTES // size))


@dataclass(frozen=True)
class LaneKernels:
    """A warp for each atom in the first two, a thread for each pair in the last."""

    sums: wp.Kernel
    sums_along: wp.Kernel
    gradients: wp.Kernel


def kernels_by_warps(
    func: Callable[..., Any],
    kernel: Callable[..., Any],
    of_atom: AtomFunctions,
    radial: RadialFunctions,
    angular: RadialFunctions,
    harmonics_along: wp.Function,
    types: Types,
    shape: Shape,
    *,
    on_cpu: bool,
) -> LaneKernels:
    """``func`` and ``kernel`` decorate what becomes a Warp function and kernel."""
    real, vec2, vec3, vec_h, vec_z = types.real, types.vec2, types.vec3, types.harmonics, types.zbl
    n_kr, n_k, n_h = shape.basis_size_radial + 1, shape.basis_size_angular + 1, shape.n_harmonics
    vec_kr, vec_ka = wp.types.vector(n_kr, real), wp.types.vector(n_k, real)
    harmonics, turning, zbl = of_atom.harmonics, of_atom.turning, of_atom.zbl
    radial_values, angular_values = radial.values, angular.values
    radial_slopes, angular_slopes = radial.with_slopes, angular.with_slopes
    ROW = row_size(shape)
    AT_RADIAL = 1
    AT_ANGULAR = AT_RADIAL + n_kr
    AT_SECOND = AT_ANGULAR + n_k
    AT_HARMONICS = AT_SECOND + n_k
    AT_ALONG = AT_HARMONICS + n_h
    SIZE = WARP * ROW
    number = "wp::float64" if real is wp.float64 else "wp::float32"
    n_warps = warps_a_block(shape, float64=real is wp.float64)

    @wp.func_native(
        f"""
        #if defined(__CUDA_ARCH__)
            __shared__ {number} memory[{n_warps * SIZE}];
            return wp::array_t<{number}>(memory + threadIdx.x / {WARP} * {SIZE}, {SIZE});
        #else
            return wp::array_t<{number}>();
        #endif
        """
    )
    def shared_rows() -> wp.array(dtype=real): ...

    @wp.func_native(
        f"""
        #if defined(__CUDA_ARCH__)
            return threadIdx.x % {WARP};
        #else
            return 0;
        #endif
        """
    )
    def first_lane() -> int: ...

    @wp.func_native(
        """
        #if defined(__CUDA_ARCH__)
            __syncwarp();
        #endif
        """
    )
    def await_lanes(): ...

    @func
    def function_of(rows: wp.array(dtype=real), start: int) -> vec_ka:
        f = vec_ka()
        for k in range(n_k):
            f[k] = rows[start + k]
        return f

    @func
    def clear(
        i: int, lane: int, n_types: int, radial: wp.array(dtype=real), angular: wp.array(dtype=real)
    ):
        for k in range(lane, n_types * n_kr, WARP):
            radial[i * n_types * n_kr + k] = real(0.0)
        for k in range(lane, n_types * wp.static(n_k * n_h), WARP):
            angular[i * n_types * wp.static(n_k * n_h) + k] = real(0.0)

    @func
    def add_rows(
        i: int,
        lane: int,
        n_rows: int,
        n_types: int,
        twice: bool,
        rows: wp.array(dtype=real),
        radial: wp.array(dtype=real),
        angular: wp.array(dtype=real),
    ):
        for t in range(n_types):
            place = i * n_types + t
            for h in range(lane, n_h, WARP):
                total = vec_ka()
                for k in range(n_rows):
                    row = k * ROW
                    if int(rows[row]) == t:
                        total += rows[row + AT_HARMONICS + h] * function_of(rows, row + AT_ANGULAR)
                        if twice:
                            total += rows[row + AT_ALONG + h] * function_of(rows, row + AT_SECOND)
                for k in range(n_k):
                    at = (place * n_k + k) * n_h + h
                    angular[at] = angular[at] + total[k]
            for n in range(lane, n_kr, WARP):
                own = radial[place * n_kr + n]
                for k in range(n_rows):
                    row = k * ROW
                    if int(rows[row]) == t:
                        own += rows[row + AT_RADIAL + n]
                radial[place * n_kr + n] = own

    @kernel
    def sums(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        edges: wp.array(dtype=int),
        j: wp.array(dtype=int),
        vectors: wp.array(dtype=vec3),
        cutoffs: wp.array(dtype=vec2),
        radial: wp.array(dtype=real),
        angular: wp.array(dtype=real),
    ):
        """sum_j f_k and sum_j f_k b_lm of each type of neighbour."""
        if wp.static(on_cpu):
            i = first + wp.tid()
            begin = 0
            end = WARP
            rows = wp.zeros(shape=(SIZE,), dtype=real)
        else:
            i = first + wp.tid() / WARP
            begin = first_lane()
            end = begin + 1
            rows = shared_rows()
        last = edges[i + 1]
        for lane in range(begin, end):
            clear(i, lane, n_types, radial, angular)
        for start in range(edges[i], last, WARP):
            for lane in range(begin, end):
                f_r = vec_kr()
                f_a = vec_ka()
                b = vec_h()
                t = int(-1)
                e = start + lane
                if e < last:
                    t = types[j[e]]
                    d = vectors[e]
                    r = wp.length(d)
                    rc = cutoffs[types[i] * n_types + t]
                    if r < rc[0]:
                        f_r = radial_values(r, rc[0])
                    if r < rc[1]:
                        f_a = angular_values(r, rc[1])
                        b = harmonics(d / r)
                row = lane * ROW
                rows[row] = real(t)
                for k in range(n_kr):
                    rows[row + AT_RADIAL + k] = f_r[k]
                for k in range(n_k):
                    rows[row + AT_ANGULAR + k] = f_a[k]
                for h in range(n_h):
                    rows[row + AT_HARMONICS + h] = b[h]
            await_lanes()
            for lane in range(begin, end):
                add_rows(i, lane, wp.min(last - start, WARP), n_types, False, rows, radial, angular)
            await_lanes()

    @kernel
    def sums_along(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        edges: wp.array(dtype=int),
        j: wp.array(dtype=int),
        vectors: wp.array(dtype=vec3),
        cutoffs: wp.array(dtype=vec2),
        moves: wp.array(dtype=vec3),
        radial: wp.array(dtype=real),
        angular: wp.array(dtype=real),
    ):
        """How those change while the pairs' vectors move by ``moves``."""
        if wp.static(on_cpu):
            i = first + wp.tid()
            begin = 0
            end = WARP
            rows = wp.zeros(shape=(SIZE,), dtype=real)
        else:
            i = first + wp.tid() / WARP
            begin = first_lane()
            end = begin + 1
            rows = shared_rows()
        last = edges[i + 1]
        for lane in range(begin, end):
            clear(i, lane, n_types, radial, angular)
        for start in range(edges[i], last, WARP):
            for lane in range(begin, end):
                df_r = vec_kr()
                f_a = vec_ka()
                df_a = vec_ka()
                b = vec_h()
                b_along = vec_h()
                dr = real(0.0)
                t = int(-1)
                e = start + lane
                if e < last:
                    t = types[j[e]]
                    d = vectors[e]
                    r = wp.length(d)
                    u = d / r
                    dr = wp.dot(u, moves[e])
                    rc = cutoffs[types[i] * n_types + t]
                    if r < rc[0]:
                        _f, df_r = radial_slopes(r, rc[0])
                    if r < rc[1]:
                        f_a, df_a = angular_slopes(r, rc[1])
                        b = harmonics(u)
                        b_along = harmonics_along(u, (moves[e] - dr * u) / r)
                row = lane * ROW
                rows[row] = real(t)
                for k in range(n_kr):
                    rows[row + AT_RADIAL + k] = dr * df_r[k]
                for k in range(n_k):
                    rows[row + AT_ANGULAR + k] = df_a[k]
                    rows[row + AT_SECOND + k] = f_a[k]
                for h in range(n_h):
                    rows[row + AT_HARMONICS + h] = dr * b[h]
                    rows[row + AT_ALONG + h] = b_along[h]
            await_lanes()
            for lane in range(begin, end):
                add_rows(i, lane, wp.min(last - start, WARP), n_types, True, rows, radial, angular)
            await_lanes()

    @kernel
    def gradients(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        i: wp.array(dtype=int),
        j: wp.array(dtype=int),
        vectors: wp.array(dtype=vec3),
        cutoffs: wp.array(dtype=vec2),
        by_radial: wp.array(dtype=vec_kr),
        by_angular: wp.array(dtype=vec_h),
        zbl_pairs: wp.array(dtype=vec_z),
        has_zbl: int,
        g: wp.array(dtype=vec3),
    ):
        """g_ij = dU_i/dr_ij from dU_i by those sums."""
        e = first + wp.tid()
        d = vectors[e]
        r = wp.length(d)
        u = d / r
        place = i[e] * n_types + types[j[e]]
        pair = types[i[e]] * n_types + types[j[e]]
        rc = cutoffs[pair]
        along = real(0.0)
        across = vec3()
        if r < rc[0]:
            _f, df_r = radial_slopes(r, rc[0])
            along += wp.dot(df_r, by_radial[place])
        if r < rc[1]:
            f_a, df_a = angular_slopes(r, rc[1])
            by_r = vec_h()
            by_u = vec_h()
            for k in range(n_k):
                weights = by_angular[place * n_k + k]
                by_r += df_a[k] * weights
                by_u += f_a[k] * weights
            across = turning(by_u, u) / r
            along += wp.dot(by_r, harmonics(u)) - wp.dot(across, u)
        if has_zbl != 0:
            p = zbl_pairs[pair]
            if r < p[1]:
                along += zbl(r, p)[1]
        g[e] = across + along * u

    return LaneKernels(sums, sums_along, gradients)
