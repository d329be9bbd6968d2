"""Vectors that several kernels exchange."""

import warp as wp

vec6d = wp.types.vector(6, wp.float64)
"""A symmetric tensor: xx, yy, zz, yz, xz, xy."""
vec7d = wp.types.vector(7, wp.float64)
"""An energy, then a symmetric tensor."""
