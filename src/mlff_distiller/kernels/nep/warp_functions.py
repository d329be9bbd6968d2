"""NEP4's functions of one neighbour and of one atom, as Warp functions of any float type.

The equations are in this folder's README.md; their specification is ``reference.py``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import warp as wp

from mlff_distiller.kernels.nep.reference import C3B, C4B, C5B, ZBL_TERMS, Shape

PI = math.pi
N_ZBL = len(ZBL_TERMS)
ZBL_SIZE = 3 + 2 * N_ZBL
"""Inner and outer radius (Å), strength K Z_i Z_j / 2 (eV Å), and a, b (1/Å) of each term."""
FORCE_GRID = 2.0**36
"""Points an eV/Å, to which gradients are rounded: up to 10^5 eV/Å float64 adds them exactly."""


@dataclass(frozen=True)
class Types:
    """Warp types of a model's arrays."""

    real: type
    vec2: type
    vec3: type
    radial: type  # n_max_radial + 1
    angular: type  # n_max_angular + 1
    harmonics: type  # n_harmonics
    invariants: type
    descriptors: type
    zbl: type  # ZBL_SIZE

    @classmethod
    def of(cls, shape: Shape, *, float64: bool) -> "Types":
        real = wp.float64 if float64 else wp.float32
        lengths = (
            shape.n_max_radial + 1,
            shape.n_max_angular + 1,
            shape.n_harmonics,
            shape.n_invariants,
            shape.n_descriptors,
            ZBL_SIZE,
        )
        return cls(real, *(wp.types.vector(length, real) for length in (2, 3, *lengths)))


@dataclass(frozen=True)
class AtomFunctions:
    """Functions of an atom's density, and of one of its neighbours."""

    harmonics: wp.Function  # u -> b_lm
    turning: wp.Function  # t_lm, u -> sum_lm t_lm db_lm/du
    invariants: wp.Function  # s_lm -> q, of one n
    slopes: wp.Function  # s_lm, dU/dq of one n -> dU/ds_lm
    zbl: wp.Function  # r, pair -> energy, slope
    separation: wp.Function  # i, j, image -> r_ij


@dataclass(frozen=True)
class EdgeFunctions:
    """Functions of a pair of types and the vector r_ij."""

    pair: wp.Function  # i, j, types, n_types -> index of the pair of types
    density: wp.Function  # pair, r_ij, parameters -> g^R_n, g^A_n, b_lm
    gradient: wp.Function  # pair, r_ij, parameters, dU_i/ds -> dU_i/dr_ij, half the repulsion


@dataclass(frozen=True)
class RadialFunctions:
    """Functions of a distance."""

    values: wp.Function  # r, rc -> f_k
    with_slopes: wp.Function  # r, rc -> f_k, df_k/dr
    contract: wp.Function  # c, pair, f -> sum_k c_nk f_k


def waves(real: type) -> tuple[wp.Function, wp.Function]:
    """cos(pi x) and sin(pi x). CUDA's cos and sin are ready for any x, and keep room for that."""

    def snippet(name: str) -> str:
        return f"""
        #if defined(__CUDA_ARCH__)
            return ::{name}pi{"" if real is wp.float64 else "f"}(x);
        #else
            return wp::{name}(decltype(x)({PI}) * x);
        #endif
        """

    @wp.func_native(snippet("cos"))
    def cos_pi(x: real) -> real: ...

    @wp.func_native(snippet("sin"))
    def sin_pi(x: real) -> real: ...

    return cos_pi, sin_pi


def radial_functions(
    func: Callable[..., Any], types: Types, size: int, vec_n: type
) -> RadialFunctions:
    """f_k = (T_k(x) + 1)/2 fc for k < ``size``, and their contraction with c to ``vec_n``."""
    real = types.real
    vec_k = wp.types.vector(size, real)

    cos_pi, sin_pi = waves(real)

    @func
    def values(r: real, rc: real):
        f = vec_k()
        fc = real(0.25) + real(0.25) * cos_pi(r / rc)
        h = r / rc - real(1.0)
        x = real(2.0) * h * h - real(1.0)
        t0 = real(1.0)
        t1 = real(x)
        f[0] = real(2.0) * fc
        if wp.static(size > 1):
            f[1] = (x + real(1.0)) * fc
        for k in range(2, size):
            t2 = real(2.0) * x * t1 - t0
            t0 = t1
            t1 = t2
            f[k] = (t2 + real(1.0)) * fc
        return f

    @func
    def with_slopes(r: real, rc: real):
        f = vec_k()
        df = vec_k()
        fc = real(0.25) + real(0.25) * cos_pi(r / rc)
        dfc = -real(0.25) * real(PI) / rc * sin_pi(r / rc)
        h = r / rc - real(1.0)
        x = real(2.0) * h * h - real(1.0)
        fdx = fc * real(4.0) * h / rc
        t0 = real(1.0)
        t1 = real(x)
        u0 = real(0.0)
        u1 = real(1.0)
        f[0] = real(2.0) * fc
        df[0] = real(2.0) * dfc
        if wp.static(size > 1):
            f[1] = (x + real(1.0)) * fc
            df[1] = fdx + (x + real(1.0)) * dfc
        for k in range(2, size):
            t2 = real(2.0) * x * t1 - t0
            u2 = real(2.0) * (t1 + x * u1) - u0
            t0 = t1
            t1 = t2
            u0 = u1
            u1 = u2
            f[k] = (t2 + real(1.0)) * fc
            df[k] = u2 * fdx + (t2 + real(1.0)) * dfc
        return f, df

    @func
    def contract(c: wp.array2d(dtype=vec_n), pair: int, f: vec_k):
        g = f[0] * c[pair, 0]
        for k in range(1, size):
            g += f[k] * c[pair, k]
        return g

    return RadialFunctions(values, with_slopes, contract)


def atom_functions(
    func: Callable[..., Any], outlined: Callable[..., Any], types: Types, shape: Shape
) -> AtomFunctions:
    """``func`` and ``outlined`` decorate what becomes a Warp function."""
    real, vec2, vec3, vec_h = types.real, types.vec2, types.vec3, types.harmonics
    vec_i, vec_z = types.invariants, types.zbl
    l_max, has_q222, has_q1111 = shape.l_max, shape.has_q222, shape.has_q1111
    last = shape.n_invariants - 1
    cos_pi, sin_pi = waves(real)
    lm = [
        (l, m, imag)
        for l in range(1, l_max + 1)
        for m in range(l + 1)
        for imag in range(2 if m else 1)
    ]
    c3b = wp.constant(vec_h(*(C3B[l - 1][m] * (2 if m else 1) for l, m, _ in lm)))
    k40, k41, k42, k43, k44 = (wp.constant(real(c)) for c in C4B)
    k50, k51, k52 = (wp.constant(real(c)) for c in C5B)

    @func
    def harmonics(u: vec3) -> vec_h:
        b = vec_h()
        x, y, z = u[0], u[1], u[2]
        b[0] = z
        b[1] = x
        b[2] = y
        if wp.static(l_max >= 2):
            zz = z * z
            x2 = x * x - y * y
            y2 = real(2.0) * x * y
            b[3] = real(3.0) * zz - real(1.0)
            b[4] = z * x
            b[5] = z * y
            b[6] = x2
            b[7] = y2
            if wp.static(l_max >= 3):
                p1 = real(5.0) * zz - real(1.0)
                x3 = x2 * x - y2 * y
                y3 = x2 * y + y2 * x
                b[8] = (real(5.0) * zz - real(3.0)) * z
                b[9] = p1 * x
                b[10] = p1 * y
                b[11] = z * x2
                b[12] = z * y2
                b[13] = x3
                b[14] = y3
                if wp.static(l_max >= 4):
                    p2 = (real(7.0) * zz - real(3.0)) * z
                    p3 = real(7.0) * zz - real(1.0)
                    b[15] = (real(35.0) * zz - real(30.0)) * zz + real(3.0)
                    b[16] = p2 * x
                    b[17] = p2 * y
                    b[18] = p3 * x2
                    b[19] = p3 * y2
                    b[20] = z * x3
                    b[21] = z * y3
                    b[22] = x3 * x - y3 * y
                    b[23] = x3 * y + y3 * x
        return b

    @func
    def turning(t: vec_h, u: vec3) -> vec3:
        """sum_lm t_lm db_lm/du: d/dx (x+iy)^m = m (x+iy)^(m-1), d/dy = i m (x+iy)^(m-1)."""
        x, y, z = u[0], u[1], u[2]
        gx = t[1]
        gy = t[2]
        gz = t[0]
        if wp.static(l_max >= 2):
            zz = z * z
            # Weights of the real and imaginary part of m (x+iy)^(m-1).
            r2 = t[6]
            i2 = t[7]
            gx += t[4] * z
            gy += t[5] * z
            gz += real(6.0) * z * t[3] + t[4] * x + t[5] * y
            if wp.static(l_max >= 3):
                x2 = x * x - y * y
                y2 = real(2.0) * x * y
                p1 = real(5.0) * zz - real(1.0)
                r2 += t[11] * z
                i2 += t[12] * z
                r3 = t[13]
                i3 = t[14]
                gx += t[9] * p1
                gy += t[10] * p1
                gz += (real(15.0) * zz - real(3.0)) * t[8]
                gz += real(10.0) * z * (t[9] * x + t[10] * y) + t[11] * x2 + t[12] * y2
                if wp.static(l_max >= 4):
                    x3 = x2 * x - y2 * y
                    y3 = x2 * y + y2 * x
                    p2 = (real(7.0) * zz - real(3.0)) * z
                    p3 = real(7.0) * zz - real(1.0)
                    r2 += t[18] * p3
                    i2 += t[19] * p3
                    r3 += t[20] * z
                    i3 += t[21] * z
                    gx += t[16] * p2 + real(4.0) * (t[22] * x3 + t[23] * y3)
                    gy += t[17] * p2 + real(4.0) * (t[23] * x3 - t[22] * y3)
                    gz += (real(140.0) * zz - real(60.0)) * z * t[15]
                    gz += (real(21.0) * zz - real(3.0)) * (t[16] * x + t[17] * y)
                    gz += real(14.0) * z * (t[18] * x2 + t[19] * y2) + t[20] * x3 + t[21] * y3
                gx += real(3.0) * (r3 * x2 + i3 * y2)
                gy += real(3.0) * (i3 * x2 - r3 * y2)
            gx += real(2.0) * (r2 * x + i2 * y)
            gy += real(2.0) * (i2 * x - r2 * y)
        return vec3(gx, gy, gz)

    @outlined
    def invariants(s: vec_h) -> vec_i:
        q = vec_i()
        w = wp.cw_mul(wp.cw_mul(s, s), c3b)
        q[0] = w[0] + w[1] + w[2]
        if wp.static(l_max >= 2):
            q[1] = w[3] + w[4] + w[5] + w[6] + w[7]
        if wp.static(l_max >= 3):
            q[2] = w[8] + w[9] + w[10] + w[11] + w[12] + w[13] + w[14]
        if wp.static(l_max >= 4):
            q[3] = w[15] + w[16] + w[17] + w[18] + w[19] + w[20] + w[21] + w[22] + w[23]
        if wp.static(has_q222):
            a, b, c, d, e = s[3], s[4], s[5], s[6], s[7]
            q[l_max] = (
                a * (k40 * a * a + k41 * (b * b + c * c) + k42 * (d * d + e * e))
                + k43 * d * (c * c - b * b)
                + k44 * b * c * e
            )
        if wp.static(has_q1111):
            aa = s[0] * s[0]
            p = s[1] * s[1] + s[2] * s[2]
            q[last] = k50 * aa * aa + k51 * aa * p + k52 * p * p
        return q

    @outlined
    def slopes(s: vec_h, dq: vec_i) -> vec_h:
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
        w = real(2.0) * wp.cw_mul(wp.cw_mul(w, s), c3b)
        if wp.static(has_q222):
            f = dq[l_max]
            a, b, c, d, e = s[3], s[4], s[5], s[6], s[7]
            bb, cc = b * b, c * c
            w[3] += f * (real(3.0) * k40 * a * a + k41 * (bb + cc) + k42 * (d * d + e * e))
            w[4] += f * (real(2.0) * b * (k41 * a - k43 * d) + k44 * c * e)
            w[5] += f * (real(2.0) * c * (k41 * a + k43 * d) + k44 * b * e)
            w[6] += f * (real(2.0) * k42 * a * d + k43 * (cc - bb))
            w[7] += f * (real(2.0) * k42 * a * e + k44 * b * c)
        if wp.static(has_q1111):
            f = dq[last]
            aa = s[0] * s[0]
            p = s[1] * s[1] + s[2] * s[2]
            along = real(2.0) * k51 * aa + real(4.0) * k52 * p
            w[0] += f * (real(4.0) * k50 * aa + real(2.0) * k51 * p) * s[0]
            w[1] += f * along * s[1]
            w[2] += f * along * s[2]
        return w

    @func
    def zbl(r: real, p: vec_z) -> vec2:
        """Half the screened repulsion of a pair, and its slope."""
        phi = real(0.0)
        slope = real(0.0)
        for k in range(N_ZBL):
            term = p[3 + 2 * k] * wp.exp(-p[4 + 2 * k] * r)
            phi += term
            slope -= p[4 + 2 * k] * term
        fc = real(1.0)
        dfc = real(0.0)
        if r > p[0]:
            width = wp.max(p[1] - p[0], real(1e-12))
            x = (r - p[0]) / width
            fc = real(0.5) + real(0.5) * cos_pi(x)
            dfc = -real(0.5) * real(PI) / width * sin_pi(x)
        strength = p[2] / r
        return vec2(strength * phi * fc, strength * (slope * fc + phi * dfc - phi * fc / r))

    @func
    def separation(
        i: int,
        j: int,
        image: int,
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
    ) -> vec3:
        d = positions[j] - positions[i] + shifts[image]  # in float64
        return vec3(real(d[0]), real(d[1]), real(d[2]))

    return AtomFunctions(harmonics, turning, invariants, slopes, zbl, separation)


def edge_functions(
    func: Callable[..., Any],
    outlined: Callable[..., Any],
    of_atom: AtomFunctions,
    types: Types,
    shape: Shape,
    *,
    one_type: bool,
    has_zbl: bool,
) -> EdgeFunctions:
    """What an atom's density takes from a neighbour, and what its energy's gradient gives it."""
    real, vec2, vec3, vec_h, vec_z = types.real, types.vec2, types.vec3, types.harmonics, types.zbl
    vec_r, vec_a = types.radial, types.angular
    n_angular = shape.n_max_angular + 1
    harmonics, turning, zbl = of_atom.harmonics, of_atom.turning, of_atom.zbl
    radial = radial_functions(func, types, shape.basis_size_radial + 1, vec_r)
    angular = radial_functions(func, types, shape.basis_size_angular + 1, vec_a)
    radial_values, radial_slopes, contract_r = radial.values, radial.with_slopes, radial.contract
    angular_values, angular_slopes, contract_a = (
        angular.values,
        angular.with_slopes,
        angular.contract,
    )

    @func
    def pair_of(i: int, j: int, types: wp.array(dtype=int), n_types: int) -> int:
        pair = int(0)
        if wp.static(not one_type):
            pair = types[i] * n_types + types[j]
        return pair

    @func
    def density(
        d: vec3,
        pair: int,
        cutoffs: wp.array(dtype=vec2),
        c_radial: wp.array2d(dtype=vec_r),
        c_angular: wp.array2d(dtype=vec_a),
    ):
        r = wp.length(d)
        rc = cutoffs[pair]
        g_radial = vec_r()
        g_angular = vec_a()
        b = vec_h()
        if r < rc[0]:
            g_radial = contract_r(c_radial, pair, radial_values(r, rc[0]))
        if r < rc[1]:
            g_angular = contract_a(c_angular, pair, angular_values(r, rc[1]))
            b = harmonics(d / r)
        return g_radial, g_angular, b

    @outlined
    def with_harmonics(ds: wp.array(dtype=vec_h), g: vec_a, dg: vec_a):
        by_r = vec_h()
        by_u = vec_h()
        for n in range(n_angular):
            by_r += dg[n] * ds[n]
            by_u += g[n] * ds[n]
        return by_r, by_u

    @func
    def gradient(
        d: vec3,
        pair: int,
        cutoffs: wp.array(dtype=vec2),
        c_radial: wp.array2d(dtype=vec_r),
        c_angular: wp.array2d(dtype=vec_a),
        zbl_pairs: wp.array(dtype=vec_z),
        dq_radial: vec_r,
        ds: wp.array(dtype=vec_h),
    ):
        r = wp.length(d)
        rc = cutoffs[pair]
        u = d / r
        along = real(0.0)
        across = vec3()
        repulsion = real(0.0)
        if r < rc[0]:
            _f, df = radial_slopes(r, rc[0])
            along += wp.dot(dq_radial, contract_r(c_radial, pair, df))
        if r < rc[1]:
            h, dh = angular_slopes(r, rc[1])
            g = contract_a(c_angular, pair, h)
            dg = contract_a(c_angular, pair, dh)
            by_r, by_u = with_harmonics(ds, g, dg)
            across = turning(by_u, u) / r
            along += wp.dot(by_r, harmonics(u)) - wp.dot(across, u)
        if wp.static(has_zbl):
            p = zbl_pairs[pair]
            if r < p[1]:
                half = zbl(r, p)
                repulsion = half[0]
                along += half[1]
        g_ij = (across + along * u) * real(FORCE_GRID)
        g_ij = vec3(wp.rint(g_ij[0]), wp.rint(g_ij[1]), wp.rint(g_ij[2])) / real(FORCE_GRID)
        return g_ij, repulsion

    return EdgeFunctions(pair_of, density, gradient)
