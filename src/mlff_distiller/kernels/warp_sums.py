"""Sums over pairs and over the atoms of a system as Warp kernels, without atomics.

Gradients g_ij = dE/dr_ij lie in slots; they are numbers on a grid, which float64 adds exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import warp as wp

from mlff_distiller.kernels.types import vec6d, vec7d


@dataclass(frozen=True)
class Sums:
    """In the order of their use."""

    forces: wp.Kernel
    chunk_totals: wp.Kernel
    totals: wp.Kernel


def lane_sum(number: type, threads: int) -> wp.Function:
    """Sums a number or a vector over ``threads`` of one warp, each of which gets the result."""
    length = number._length_
    one = "value[k]" if length > 1 else "value"

    @wp.func_native(
        f"""
    #if defined(__CUDA_ARCH__)
        for (int other = {threads} / 2; other > 0; other /= 2)
            for (int k = 0; k < {length}; ++k)
                {one} += __shfl_xor_sync(0xffffffff, {one}, other);
    #endif
        return value;
    """
    )
    def sum_of_lanes(value: number) -> number: ...

    return sum_of_lanes


def sum_kernels(kernel: Callable[..., Any], vec3: type, threads: int) -> Sums:
    """``kernel`` decorates them; ``threads`` share an atom's pairs, each a lane of one warp."""
    sum_of_lanes = lane_sum(wp.vec3d, threads)

    @kernel
    def forces(
        first: int,
        skip: wp.array(dtype=int),
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        reverse: wp.array2d(dtype=int),
        g: wp.array2d(dtype=vec3),
        forces: wp.array(dtype=wp.vec3d),
    ):
        """F_i = sum_j (g_ij - g_ji), where g_ji is in the slot that ``reverse`` names."""
        thread = wp.tid()
        i = first + thread / threads
        lane = thread % threads
        if skip[0] != 0:
            return
        total = wp.vec3d()
        for slot in range(lane, counts[i], threads):
            back = reverse[i, slot]
            g_ij = g[i, slot]
            total += wp.vec3d(wp.float64(g_ij[0]), wp.float64(g_ij[1]), wp.float64(g_ij[2]))
            if back >= 0:
                g_ji = g[neighbors[i, slot], back]
                total -= wp.vec3d(wp.float64(g_ji[0]), wp.float64(g_ji[1]), wp.float64(g_ji[2]))
        total = sum_of_lanes(total)
        if lane == 0:
            forces[i] = total

    @kernel
    def chunk_totals(
        first: int,
        skip: wp.array(dtype=int),
        chunks: wp.array(dtype=wp.vec3i),  # system, first atom, last atom + 1
        energies: wp.array(dtype=wp.float64),
        virials: wp.array(dtype=vec6d),
        partial_totals: wp.array(dtype=vec7d),
    ):
        k = first + wp.tid()
        if skip[0] != 0:
            return
        total = vec7d()
        for i in range(chunks[k][1], chunks[k][2]):
            v = virials[i]
            total += vec7d(energies[i], v[0], v[1], v[2], v[3], v[4], v[5])
        partial_totals[k] = total

    @kernel
    def totals(
        first: int,
        skip: wp.array(dtype=int),
        first_chunk: wp.array(dtype=int),
        partial_totals: wp.array(dtype=vec7d),
        result: wp.array(dtype=vec7d),
    ):
        """Energy, and the virial's xx, yy, zz, yz, xz, xy, of each system."""
        system = first + wp.tid()
        if skip[0] != 0:
            return
        total = vec7d()
        for chunk in range(first_chunk[system], first_chunk[system + 1]):
            total += partial_totals[chunk]
        result[system] = total

    return Sums(forces, chunk_totals, totals)
