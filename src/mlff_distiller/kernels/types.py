"""Vectors that several kernels exchange, and the size of a warp."""

import warp as wp

WARP = 32
"""Threads of a GPU that run together, its lanes."""

vec6d = wp.types.vector(6, wp.float64)
"""A symmetric tensor: xx, yy, zz, yz, xz, xy."""
vec7d = wp.types.vector(7, wp.float64)
"""An energy, then a symmetric tensor."""
