"""What training a NEP does for each pair, atom and n, as Warp kernels; ``training.py`` joins them.

The parts that depend on the number of neighbours are here, the matrix products between them are
PyTorch's. No atomics: sums are in the order of the edges, so results repeat bit for bit.

On a CPU the functions of each pair are in tables, and vectors hold the harmonics; GPUs have
``warp_training_lanes``.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import warp as wp

from mlff_distiller.kernels.nep.reference import C3B, C4B, C5B, Shape
from mlff_distiller.kernels.nep.warp import CPU_FLAGS
from mlff_distiller.kernels.nep.warp_functions import Types, atom_functions, radial_functions
from mlff_distiller.kernels.nep.warp_training_lanes import (
    LaneKernels,
    kernels_by_warps,
    warps_a_block,
)
from mlff_distiller.kernels.types import WARP
from mlff_distiller.kernels.warp_sums import lane_sum


@dataclass(frozen=True)
class TableKernels:
    """Sums over pairs whose functions are in tables: for CPUs."""

    geometry: wp.Kernel  # pairs
    radial_sums: wp.Kernel  # atoms
    densities: wp.Kernel  # atoms
    gradients: wp.Kernel  # pairs
    turning: wp.Kernel  # pairs


@dataclass(frozen=True)
class TrainingKernels:
    """A thread for each atom and n, except ``pairs``; the last three take ``lanes`` per atom."""

    module: wp.Module
    lanes: int
    pairs: TableKernels | LaneKernels
    invariants: wp.Kernel
    slopes: wp.Kernel
    invariants_along: wp.Kernel
    slopes_along: wp.Kernel
    repulsion: wp.Kernel
    hidden: wp.Kernel
    hidden_along: wp.Kernel


@cache
def build(shape: Shape, *, float64: bool, device: str, lanes: int) -> TrainingKernels:
    """Kernels for a "cpu" or a "cuda" device; compiled when first loaded.

    ``lanes``: `WARP`, or 1 for tables.
    """
    on_cpu = device == "cpu"
    types = Types.of(shape, float64=float64)
    sizes = (shape.n_max_radial, shape.n_max_angular, shape.basis_size_radial, shape.neurons)
    flags = (shape.basis_size_angular, shape.l_max, shape.has_q222, shape.has_q1111, float64)
    name = "_".join(map(str, map(int, (*sizes, *flags))))
    module = wp.Module(f"mlff_distiller_nep_training_{name}_{lanes}_{device}", None)
    module.options.update(
        enable_backward=False,
        block_dim=1 if on_cpu else WARP * warps_a_block(shape, float64=float64),
        default_grid_stride=False,
    )
    if on_cpu:
        module.options["cpu_compiler_flags"] = CPU_FLAGS
    func, kernel = wp.func(module=module), wp.kernel(module=module)
    outlined = wp.func(module=module, inline=False if on_cpu else None)

    real, vec3, vec_h, vec_i = types.real, types.vec3, types.harmonics, types.invariants
    vec2, vec_z = types.vec2, types.zbl
    n_k, n_kr = shape.basis_size_angular + 1, shape.basis_size_radial + 1
    n_angular, n_invariants, n_radial = (
        shape.n_max_angular + 1,
        shape.n_invariants,
        shape.n_max_radial + 1,
    )
    n_descriptors, l_max, neurons = shape.n_descriptors, shape.l_max, shape.neurons
    threads = 1 if on_cpu else WARP
    vec_kr, vec_ka = wp.types.vector(n_kr, real), wp.types.vector(n_k, real)
    of_atom = atom_functions(func, outlined, types, shape)
    harmonics, turn, zbl = of_atom.harmonics, of_atom.turning, of_atom.zbl
    invariants_of, slopes_of = of_atom.invariants, of_atom.slopes
    radial = radial_functions(func, types, n_kr, types.radial)
    angular = radial_functions(func, types, n_k, types.angular)
    radial_slopes, angular_slopes = radial.with_slopes, angular.with_slopes
    invariants_along_of, slopes_along_of = _along(outlined, types, shape)
    sum_of_lanes = lane_sum(real, threads)

    @func
    def harmonics_along(u: vec3, v: vec3) -> vec_h:
        """d/de b_lm(u + e v); (x+iy)^m changes by m (x+iy)^(m-1) (v_x + i v_y)."""
        b = vec_h()
        x, y, z = u[0], u[1], u[2]
        dx, dy, dz = v[0], v[1], v[2]
        b[0] = dz
        b[1] = dx
        b[2] = dy
        if wp.static(l_max >= 2):
            zz = z * z
            x2 = x * x - y * y
            y2 = real(2.0) * x * y
            dx2 = real(2.0) * (x * dx - y * dy)
            dy2 = real(2.0) * (x * dy + y * dx)
            b[3] = real(6.0) * z * dz
            b[4] = dz * x + z * dx
            b[5] = dz * y + z * dy
            b[6] = dx2
            b[7] = dy2
            if wp.static(l_max >= 3):
                p1 = real(5.0) * zz - real(1.0)
                dp1 = real(10.0) * z * dz
                x3 = x2 * x - y2 * y
                y3 = x2 * y + y2 * x
                dx3 = real(3.0) * (x2 * dx - y2 * dy)
                dy3 = real(3.0) * (x2 * dy + y2 * dx)
                b[8] = (real(15.0) * zz - real(3.0)) * dz
                b[9] = dp1 * x + p1 * dx
                b[10] = dp1 * y + p1 * dy
                b[11] = dz * x2 + z * dx2
                b[12] = dz * y2 + z * dy2
                b[13] = dx3
                b[14] = dy3
                if wp.static(l_max >= 4):
                    p2 = (real(7.0) * zz - real(3.0)) * z
                    p3 = real(7.0) * zz - real(1.0)
                    dp2 = (real(21.0) * zz - real(3.0)) * dz
                    dp3 = real(14.0) * z * dz
                    b[15] = (real(140.0) * zz - real(60.0)) * z * dz
                    b[16] = dp2 * x + p2 * dx
                    b[17] = dp2 * y + p2 * dy
                    b[18] = dp3 * x2 + p3 * dx2
                    b[19] = dp3 * y2 + p3 * dy2
                    b[20] = dz * x3 + z * dx3
                    b[21] = dz * y3 + z * dy3
                    b[22] = real(4.0) * (x3 * dx - y3 * dy)
                    b[23] = real(4.0) * (x3 * dy + y3 * dx)
        return b

    @kernel
    def geometry(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        i: wp.array(dtype=int),
        j: wp.array(dtype=int),
        vectors: wp.array(dtype=vec3),
        cutoffs: wp.array(dtype=vec2),
        f_radial: wp.array(dtype=vec_kr),
        slope_radial: wp.array(dtype=vec_kr),
        f_angular: wp.array(dtype=vec_ka),
        slope_angular: wp.array(dtype=vec_ka),
        b: wp.array(dtype=vec_h),
    ):
        """f_k(r), df_k/dr and b_lm of a pair, 0 beyond its cutoffs."""
        e = first + wp.tid()
        d = vectors[e]
        r = wp.length(d)
        rc = cutoffs[types[i[e]] * n_types + types[j[e]]]
        f_r = vec_kr()
        df_r = vec_kr()
        f_a = vec_ka()
        df_a = vec_ka()
        b_e = vec_h()
        if r < rc[0]:
            f_r, df_r = radial_slopes(r, rc[0])
        if r < rc[1]:
            f_a, df_a = angular_slopes(r, rc[1])
            b_e = harmonics(d / r)
        f_radial[e] = f_r
        slope_radial[e] = df_r
        f_angular[e] = f_a
        slope_angular[e] = df_a
        b[e] = b_e

    @outlined
    def add(total: wp.array(dtype=vec_h), start: int, f: vec_ka, b: vec_h):
        for k in range(n_k):
            total[start + k] = total[start + k] + f[k] * b

    @kernel
    def radial_sums(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        edges: wp.array(dtype=int),
        j: wp.array(dtype=int),
        f: wp.array(dtype=vec_kr),
        along: wp.array(dtype=real),
        total: wp.array(dtype=vec_kr),
    ):
        i = first + wp.tid()
        for t in range(n_types):
            total[i * n_types + t] = vec_kr()
        for e in range(edges[i], edges[i + 1]):
            place = i * n_types + types[j[e]]
            total[place] = total[place] + along[e] * f[e]

    @kernel
    def densities(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        edges: wp.array(dtype=int),
        j: wp.array(dtype=int),
        f: wp.array(dtype=vec_ka),
        b: wp.array(dtype=vec_h),
        second_f: wp.array(dtype=vec_ka),
        second_b: wp.array(dtype=vec_h),
        twice: int,
        total: wp.array(dtype=vec_h),
    ):
        i = first + wp.tid()
        for row in range(i * n_types * n_k, (i + 1) * n_types * n_k):
            total[row] = vec_h()
        for e in range(edges[i], edges[i + 1]):
            inside = f[e][0] != real(0.0)
            if twice != 0:
                inside = second_f[e][0] != real(0.0)
            if inside:
                start = (i * n_types + types[j[e]]) * n_k
                add(total, start, f[e], b[e])
                if twice != 0:
                    add(total, start, second_f[e], second_b[e])

    @func
    def of_descriptors(dq: wp.array(dtype=real), i: int, n: int) -> vec_i:
        own = vec_i()
        for k in range(n_invariants):
            own[k] = dq[i * n_descriptors + n_radial + k * n_angular + n]
        return own

    @kernel
    def invariants(first: int, s: wp.array(dtype=vec_h), q: wp.array(dtype=real)):
        thread = first + wp.tid()
        i = thread / n_angular
        n = thread % n_angular
        own = invariants_of(s[thread])
        for k in range(n_invariants):
            q[i * n_descriptors + n_radial + k * n_angular + n] = own[k]

    @kernel
    def slopes(
        first: int, s: wp.array(dtype=vec_h), dq: wp.array(dtype=real), ds: wp.array(dtype=vec_h)
    ):
        thread = first + wp.tid()
        own = of_descriptors(dq, thread / n_angular, thread % n_angular)
        ds[thread] = slopes_of(s[thread], own)

    @outlined
    def contracted(weights: wp.array(dtype=vec_h), start: int, f: vec_ka) -> vec_h:
        total = vec_h()
        for k in range(n_k):
            total += f[k] * weights[start + k]
        return total

    @kernel
    def gradients(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        i: wp.array(dtype=int),
        j: wp.array(dtype=int),
        vectors: wp.array(dtype=vec3),
        cutoffs: wp.array(dtype=vec2),
        slope_radial: wp.array(dtype=vec_kr),
        f_angular: wp.array(dtype=vec_ka),
        slope_angular: wp.array(dtype=vec_ka),
        b: wp.array(dtype=vec_h),
        weights_radial: wp.array(dtype=vec_kr),
        weights_angular: wp.array(dtype=vec_h),
        zbl_pairs: wp.array(dtype=vec_z),
        has_zbl: int,
        g: wp.array(dtype=vec3),
    ):
        """g_ij = dU_i/dr_ij from dU_i/d(sum_j f_k) and dU_i/d(sum_j f_k b_lm)."""
        e = first + wp.tid()
        d = vectors[e]
        r = wp.length(d)
        pair = types[i[e]] * n_types + types[j[e]]
        rc = cutoffs[pair]
        g_ij = vec3()
        if r < wp.max(rc[0], rc[1]):
            u = d / r
            place = i[e] * n_types + types[j[e]]
            along = wp.dot(slope_radial[e], weights_radial[place])
            if r < rc[1]:
                by_r = contracted(weights_angular, place * n_k, slope_angular[e])
                by_u = contracted(weights_angular, place * n_k, f_angular[e])
                across = turn(by_u, u) / r
                along += wp.dot(by_r, b[e]) - wp.dot(across, u)
                g_ij = across
            if has_zbl != 0:
                p = zbl_pairs[pair]
                if r < p[1]:
                    along += zbl(r, p)[1]
            g_ij += along * u
        g[e] = g_ij

    @kernel
    def repulsion(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        edges: wp.array(dtype=int),
        j: wp.array(dtype=int),
        vectors: wp.array(dtype=vec3),
        zbl_pairs: wp.array(dtype=vec_z),
        energies: wp.array(dtype=real),
    ):
        """Half the screened repulsion of an atom's pairs."""
        i = first + wp.tid() / threads
        lane = wp.tid() % threads
        own = real(0.0)
        for e in range(edges[i] + lane, edges[i + 1], threads):
            r = wp.length(vectors[e])
            p = zbl_pairs[types[i] * n_types + types[j[e]]]
            if r < p[1]:
                own += zbl(r, p)[0]
        own = sum_of_lanes(own)
        if lane == 0:
            energies[i] = own

    @kernel
    def turning(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        i: wp.array(dtype=int),
        j: wp.array(dtype=int),
        vectors: wp.array(dtype=vec3),
        cutoffs: wp.array(dtype=vec2),
        moves: wp.array(dtype=vec3),
        b: wp.array(dtype=vec_h),
        stretch: wp.array(dtype=real),
        b_stretched: wp.array(dtype=vec_h),
        b_along: wp.array(dtype=vec_h),
    ):
        """dr and db_lm while a pair's vector moves by ``moves``, and dr b_lm."""
        e = first + wp.tid()
        d = vectors[e]
        r = wp.length(d)
        u = d / r
        dr = wp.dot(u, moves[e])
        stretch[e] = dr
        by_r = vec_h()
        by_u = vec_h()
        if r < cutoffs[types[i[e]] * n_types + types[j[e]]][1]:
            by_r = dr * b[e]
            by_u = harmonics_along(u, (moves[e] - dr * u) / r)
        b_stretched[e] = by_r
        b_along[e] = by_u

    @kernel
    def invariants_along(
        first: int,
        s: wp.array(dtype=vec_h),
        s_along: wp.array(dtype=vec_h),
        q_along: wp.array(dtype=real),
    ):
        thread = first + wp.tid()
        i = thread / n_angular
        n = thread % n_angular
        own = invariants_along_of(s[thread], s_along[thread])
        for k in range(n_invariants):
            q_along[i * n_descriptors + n_radial + k * n_angular + n] = own[k]

    @kernel
    def slopes_along(
        first: int,
        s: wp.array(dtype=vec_h),
        s_along: wp.array(dtype=vec_h),
        dq: wp.array(dtype=real),
        dq_along: wp.array(dtype=real),
        ds: wp.array(dtype=vec_h),
    ):
        """By s of sum_k (dq_k q_k(s) + dq_along_k d/de q_k(s + e s_along))."""
        thread = first + wp.tid()
        i = thread / n_angular
        n = thread % n_angular
        own = slopes_of(s[thread], of_descriptors(dq, i, n))
        own += slopes_along_of(s[thread], s_along[thread], of_descriptors(dq_along, i, n))
        ds[thread] = own

    @kernel
    def hidden(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        z: wp.array(dtype=real),
        b0: wp.array(dtype=real),
        w1: wp.array(dtype=real),
        b1: wp.array(dtype=real),
        active: wp.array(dtype=real),
        dz: wp.array(dtype=real),
        energies: wp.array(dtype=real),
    ):
        """tanh(z - b0) and U of an atom's network, and dU/dz, which is 0 for other types."""
        i = first + wp.tid() / threads
        lane = wp.tid() % threads
        u = real(0.0)
        for t in range(n_types):
            for m in range(lane, neurons, threads):
                column = (i * n_types + t) * neurons + m
                slope = real(0.0)
                if t == types[i]:
                    value = wp.tanh(z[column] - b0[t * neurons + m])
                    active[i * neurons + m] = value
                    u += w1[t * neurons + m] * value
                    slope = w1[t * neurons + m] * (real(1.0) - value * value)
                dz[column] = slope
        u = sum_of_lanes(u)
        if lane == 0:
            energies[i] = u - b1[0]

    @kernel
    def hidden_along(
        first: int,
        types: wp.array(dtype=int),
        n_types: int,
        z_along: wp.array(dtype=real),
        active: wp.array(dtype=real),
        dz: wp.array(dtype=real),
        e: wp.array(dtype=real),
        by_z: wp.array(dtype=real),
        by_biases: wp.array(dtype=real),
    ):
        """By z, and by b0 and w1, of e U + dU/dz . z_along."""
        i = first + wp.tid() / threads
        for t in range(n_types):
            for m in range(wp.tid() % threads, neurons, threads):
                column = (i * n_types + t) * neurons + m
                by = real(0.0)
                if t == types[i]:
                    value = active[i * neurons + m]
                    along = z_along[column]
                    by = dz[column] * (e[i] - real(2.0) * value * along)
                    place = 2 * i * neurons + m
                    by_biases[place] = -by
                    by_biases[place + neurons] = e[i] * value + (real(1.0) - value * value) * along
                by_z[column] = by

    pairs: TableKernels | LaneKernels
    if lanes == 1:
        pairs = TableKernels(geometry, radial_sums, densities, gradients, turning)
    else:
        functions = (of_atom, radial, angular, harmonics_along)
        pairs = kernels_by_warps(func, kernel, *functions, types, shape, on_cpu=on_cpu)
    return TrainingKernels(
        *(module, threads, pairs, invariants, slopes, invariants_along, slopes_along),
        *(repulsion, hidden, hidden_along),
    )


def _along(outlined: Any, types: Types, shape: Shape) -> tuple[wp.Function, wp.Function]:
    """How an n's invariants, and their gradient, change while s_lm does."""
    real, vec_h, vec_i = types.real, types.harmonics, types.invariants
    l_max, has_q222, has_q1111 = shape.l_max, shape.has_q222, shape.has_q1111
    last = shape.n_invariants - 1
    lm = [(l, m) for l in range(1, l_max + 1) for m in range(l + 1) for _ in range(2 if m else 1)]
    c3b = wp.constant(vec_h(*(C3B[l - 1][m] * (2 if m else 1) for l, m in lm)))
    k40, k41, k42, k43, k44 = (wp.constant(real(c)) for c in C4B)
    k50, k51, k52 = (wp.constant(real(c)) for c in C5B)

    @outlined
    def invariants_along(s: vec_h, v: vec_h) -> vec_i:
        q = vec_i()
        w = real(2.0) * wp.cw_mul(wp.cw_mul(s, v), c3b)
        q[0] = w[0] + w[1] + w[2]
        if wp.static(l_max >= 2):
            q[1] = w[3] + w[4] + w[5] + w[6] + w[7]
        if wp.static(l_max >= 3):
            q[2] = w[8] + w[9] + w[10] + w[11] + w[12] + w[13] + w[14]
        if wp.static(l_max >= 4):
            q[3] = w[15] + w[16] + w[17] + w[18] + w[19] + w[20] + w[21] + w[22] + w[23]
        if wp.static(has_q222):
            a, b, c, d, e = s[3], s[4], s[5], s[6], s[7]
            bb, cc = b * b, c * c
            q[l_max] = (
                (real(3.0) * k40 * a * a + k41 * (bb + cc) + k42 * (d * d + e * e)) * v[3]
                + (real(2.0) * b * (k41 * a - k43 * d) + k44 * c * e) * v[4]
                + (real(2.0) * c * (k41 * a + k43 * d) + k44 * b * e) * v[5]
                + (real(2.0) * k42 * a * d + k43 * (cc - bb)) * v[6]
                + (real(2.0) * k42 * a * e + k44 * b * c) * v[7]
            )
        if wp.static(has_q1111):
            aa = s[0] * s[0]
            p = s[1] * s[1] + s[2] * s[2]
            common = real(2.0) * k51 * aa + real(4.0) * k52 * p
            q[last] = (real(4.0) * k50 * aa + real(2.0) * k51 * p) * s[0] * v[0] + common * (
                s[1] * v[1] + s[2] * v[2]
            )
        return q

    @outlined
    def slopes_along(s: vec_h, v: vec_h, dq: vec_i) -> vec_h:
        w = vec_h()
        for m in range(0, 3):
            w[m] = dq[0]
        if wp.static(l_max >= 2):
            for m in range(3, 8):
                w[m] = dq[1]
        if wp.static(l_max >= 3):
            for m in range(8, 15):
                w[m] = dq[2]
        if wp.static(l_max >= 4):
            for m in range(15, 24):
                w[m] = dq[3]
        w = real(2.0) * wp.cw_mul(wp.cw_mul(w, v), c3b)
        if wp.static(has_q222):
            f = dq[l_max]
            a, b, c, d, e = s[3], s[4], s[5], s[6], s[7]
            va, vb, vc, vd, ve = v[3], v[4], v[5], v[6], v[7]
            two = real(2.0)
            w[3] += (
                two
                * f
                * (real(3.0) * k40 * a * va + k41 * (b * vb + c * vc) + k42 * (d * vd + e * ve))
            )
            w[4] += f * (
                two * (vb * (k41 * a - k43 * d) + b * (k41 * va - k43 * vd))
                + k44 * (vc * e + c * ve)
            )
            w[5] += f * (
                two * (vc * (k41 * a + k43 * d) + c * (k41 * va + k43 * vd))
                + k44 * (vb * e + b * ve)
            )
            w[6] += two * f * (k42 * (va * d + a * vd) + k43 * (c * vc - b * vb))
            w[7] += f * (two * k42 * (va * e + a * ve) + k44 * (vb * c + b * vc))
        if wp.static(has_q1111):
            f = dq[last]
            aa = s[0] * s[0]
            p = s[1] * s[1] + s[2] * s[2]
            dp = real(2.0) * (s[1] * v[1] + s[2] * v[2])
            common = real(2.0) * k51 * aa + real(4.0) * k52 * p
            change = real(4.0) * (k51 * s[0] * v[0] + k52 * dp)
            w[0] += f * (real(12.0) * k50 * aa * v[0] + real(2.0) * k51 * (dp * s[0] + p * v[0]))
            w[1] += f * (change * s[1] + common * v[1])
            w[2] += f * (change * s[2] + common * v[2])
        return w

    return invariants_along, slopes_along
