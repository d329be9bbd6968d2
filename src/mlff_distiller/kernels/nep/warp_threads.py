"""Energy and gradient of an atom by one thread: for CPUs, whose vectors take the harmonics."""

from collections.abc import Callable
from typing import Any

import warp as wp

from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp_functions import AtomFunctions, EdgeFunctions, Types
from mlff_distiller.kernels.types import vec6d


def gradients_by_threads(
    outlined: Callable[..., Any],
    kernel: Callable[..., Any],
    of_atom: AtomFunctions,
    of_edge: EdgeFunctions,
    types: Types,
    shape: Shape,
    *,
    one_type: bool,
) -> wp.Kernel:
    """``outlined`` and ``kernel`` decorate what becomes a Warp function and kernel."""
    n_radial, n_angular = shape.n_max_radial + 1, shape.n_max_angular + 1
    n_invariants, neurons = shape.n_invariants, shape.neurons
    real, vec2, vec3, vec_r, vec_a = types.real, types.vec2, types.vec3, types.radial, types.angular
    vec_h, vec_i, vec_d, vec_z = types.harmonics, types.invariants, types.descriptors, types.zbl
    slopes, separation = of_atom.slopes, of_atom.separation
    pair_of, gather, descriptor = of_edge.pair, of_edge.gather, of_edge.descriptor
    gradient = of_edge.gradient

    @outlined
    def network(
        q: vec_d,
        t: int,
        w0: wp.array2d(dtype=vec_d),
        b0: wp.array2d(dtype=real),
        w1: wp.array2d(dtype=real),
    ):
        u = real(0.0)
        dq = vec_d()
        for m in range(neurons):
            w = w0[t, m]
            active = wp.tanh(wp.dot(w, q) - b0[t, m])
            u += w1[t, m] * active
            dq += (w1[t, m] * (real(1.0) - active * active)) * w
        return u, dq

    @kernel
    def gradients(
        first: int,
        skip: wp.array(dtype=int),
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
        types: wp.array(dtype=int),
        n_types: int,
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        cutoffs: wp.array(dtype=vec2),
        c_radial: wp.array2d(dtype=vec_r),
        c_angular: wp.array2d(dtype=vec_a),
        zbl_pairs: wp.array(dtype=vec_z),
        w0: wp.array2d(dtype=vec_d),
        b0: wp.array2d(dtype=real),
        w1: wp.array2d(dtype=real),
        reference: wp.array(dtype=wp.float64),
        g: wp.array2d(dtype=vec3),
        energies: wp.array(dtype=wp.float64),
        virials: wp.array(dtype=vec6d),
    ):
        i = first + wp.tid()
        if skip[0] != 0:
            return
        s = wp.zeros(shape=(n_angular,), dtype=vec_h)
        # fmt: off
        q_radial = gather(
            i, positions, shifts, types, n_types, counts, neighbors, images,
            cutoffs, c_radial, c_angular, s,
        )
        # fmt: on
        q = descriptor(q_radial, s)
        t = int(0)
        if wp.static(not one_type):
            t = types[i]
        u, dq = network(q, t, w0, b0, w1)
        for n in range(n_radial):
            q_radial[n] = dq[n]
        for n in range(n_angular):
            dq_n = vec_i()
            for k in range(n_invariants):
                dq_n[k] = dq[n_radial + k * n_angular + n]
            s[n] = slopes(s[n], dq_n)

        diagonal = vec3()
        off_diagonal = vec3()
        for slot in range(counts[i]):
            j = neighbors[i, slot]
            pair = pair_of(i, j, types, n_types)
            d = separation(i, j, images[i, slot], positions, shifts)
            rc = cutoffs[pair]
            g_ij = vec3()
            if wp.length(d) < wp.max(rc[0], rc[1]):
                g_ij, repulsion = gradient(
                    d, pair, cutoffs, c_radial, c_angular, zbl_pairs, q_radial, s
                )
                u += repulsion
                diagonal -= wp.cw_mul(d, g_ij)
                off_diagonal -= vec3(d[1] * g_ij[2], d[0] * g_ij[2], d[0] * g_ij[1])
            g[i, slot] = g_ij
        energies[i] = wp.float64(u) + reference[t]
        virials[i] = vec6d(
            wp.float64(diagonal[0]),
            wp.float64(diagonal[1]),
            wp.float64(diagonal[2]),
            wp.float64(off_diagonal[0]),
            wp.float64(off_diagonal[1]),
            wp.float64(off_diagonal[2]),
        )

    return gradients
