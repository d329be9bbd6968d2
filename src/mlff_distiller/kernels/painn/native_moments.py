"""Moments of the neighbourhood and their products, as C++; see ``native.py``."""

import math

from mlff_distiller.kernels.painn.harmonics import harmonics_code, solid_harmonics
from mlff_distiller.kernels.painn.native_edges import TO_VECTOR, edges, folded, per_node, row
from mlff_distiller.kernels.painn.shape import Shape

FORCE_GRID = 2.0**36
"""Points an eV/Å, to which gradients are rounded: up to 10^5 eV/Å float64 adds them exactly."""


def _harmonics(shape: Shape, *, gradients: bool) -> str:
    components = [own for order in solid_harmonics(shape.max_moment) for own in order]
    arrays = "h[M]" + (", hx[M], hy[M], hz[M]" if gradients else "")
    return f"real {arrays};\n{{ const real x = ux, y = uy, z = uz;\n" + (
        harmonics_code(components, gradients=gradients) + "\n}"
    )


def sums(shape: Shape, warps: int) -> str:
    """S[l, m, type, k] = sum over neighbours of a type of Y_lm(u) R_k(r)."""
    size = (shape.max_moment + 1) ** 2
    each = f"""
            {_harmonics(shape, gradients=False)}
            const real* w = table + (size_t)node * 3 * K;
            real f[KL];
            for (int k = lane, q = 0; k < K; k += lanes, ++q) f[q] = {row("w", "p", "K", "k")};
            for (int m = 0; m < M; ++m)
                for (int k = lane, q = 0; k < K; k += lanes, ++q) acc[m * KL + q] += h[m] * f[q];
    """
    stores = "\n".join(
        f"for (int m = 0; m < {2 * order + 1}; ++m) sums[n * width * {order**2}"
        f" + ((size_t)i * {2 * order + 1} + m) * width + type * K + k]"
        f" = acc[({order**2} + m) * KL + q];"
        for order in range(shape.max_moment + 1)
    )
    return f"""
    constexpr int M = {size};
    const size_t width = a.n_types * K;
    real* __restrict__ sums = a.sums.data;
    const real* __restrict__ table = a.radial.data;
    for (int type = 0; type < a.n_types; ++type) {{
        real acc[M * KL] = {{}};
        {edges(shape, each, slopes=False, only="a.types.data[j] == type")}
        {folded("M * KL", ["acc"], warps)}
        if (part == 0) for (int k = lane, q = 0; k < K; k += lanes, ++q) {{
            {stores}
        }}
    }}
    """


def gradients(shape: Shape, warps: int) -> str:
    """The last of dE/dr_ij, and what an atom has: energy and virial."""
    sums = "\n".join(
        f"""
        s = sums + n * width * {order**2} + (size_t)i * {2 * order + 1} * width + type_j * K;
        for (int m = {order**2}; m < {(order + 1) ** 2}; ++m, s += width)
            for (int k = lane, q = 0; k < K; k += lanes, ++q) {{
                b[q] += s[k] * h[m];
                bx[q] += s[k] * hx[m];
                by[q] += s[k] * hy[m];
                bz[q] += s[k] * hz[m];
            }}"""
        for order in range(shape.max_moment + 1)
    )
    zbl = f"""
        const real* pair = a.zbl.data + (own_type * a.n_types + type_j) * 11;
        if (r < pair[1]) {{
            real phi = 0, dphi = 0, fc = 1, dfc = 0;
            for (int k = 3; k < 11; k += 2) {{
                const real term = pair[k] * wp::exp(-pair[k + 1] * r);
                phi += term;
                dphi -= pair[k + 1] * term;
            }}
            if (r > pair[0]) {{
                const real rate = real({math.pi!r}) / wp::max(pair[1] - pair[0], real(1e-12));
                fc = real(0.5) + real(0.5) * wp::cos(rate * (r - pair[0]));
                dfc = real(-0.5) * rate * wp::sin(rate * (r - pair[0]));
            }}
            const real strength = pair[2] * inverse;
            v[6] += strength * phi * fc;
            along += strength * (dphi * fc + phi * dfc - phi * fc * inverse);
        }}"""
    each = f"""
        {_harmonics(shape, gradients=True)}
        const int type_j = a.types.data[j];
        const real* w = table + (size_t)node * 3 * K;
        real b[KL] = {{}}, bx[KL] = {{}}, by[KL] = {{}}, bz[KL] = {{}};
        const real* __restrict__ s;
        {sums}
        real along = 0, gx = 0, gy = 0, gz = 0;
        for (int k = lane, q = 0; k < K; k += lanes, ++q) {{
            const real f = {row("w", "p", "K", "k")};
            along += ({row("w", "dp", "K", "k")}) * b[q];
            gx += f * bx[q];
            gy += f * by[q];
            gz += f * bz[q];
        }}
        {TO_VECTOR.format(per_node=per_node(shape), zbl=zbl if shape.has_zbl else "")}
        real* here = (real*)(a.g.data + row + slot);
        real total_g[3];
        for (int k = 0; k < 3; ++k) {{
            total_g[k] = g[k]{" + here[k]" if shape.has_messages else ""};
            total_g[k] = wp::rint(total_g[k] * grid) / grid;
        }}
        #if defined(__CUDA_ARCH__)
            __syncwarp(together);
        #endif
        if (lane == 0) for (int k = 0; k < 3; ++k) here[k] = total_g[k];
        v[0] -= dx * total_g[0];
        v[1] -= dy * total_g[1];
        v[2] -= dz * total_g[2];
        v[3] -= dy * total_g[2];
        v[4] -= dx * total_g[2];
        v[5] -= dx * total_g[1];
    """
    beyond = "a.g.data[row + slot] = {};"
    return f"""
    constexpr int M = {(shape.max_moment + 1) ** 2};
    const size_t width = a.n_types * K;
    const real* __restrict__ sums = a.sums_bar.data;
    const real* __restrict__ table = a.radial.data;
    real v[7] = {{}};  // the virial, and the repulsion
    const real grid = real({FORCE_GRID!r});
    {edges(shape, each, slopes=True, beyond=beyond)}
    {folded("7", ["v"], warps)}
    if (lane == 0 && part == 0) {{
        for (int k = 0; k < 6; ++k) a.virials.data[i][k] = v[k];
        a.energies.data[i] = double(a.site.data[i] + v[6]) + a.reference.data[own_type];
    }}
    """


def _moments(shape: Shape, name: str, order: int) -> str:
    """Where an atom's moments of an order lie in a buffer of all."""
    size = (2 * order + 1) * shape.width(order)
    return f"a.{name}.data + n * {shape.place(order)} + (size_t)i * {size}"


def soft_moments(shape: Shape) -> str:
    """Scalars receive what the atom's element is; higher moments are made soft."""
    higher = "\n".join(
        f"f = soften({_moments(shape, 'moments', order)}, {_moments(shape, 'soft_moments', order)},"
        f" {2 * order + 1}, {shape.width(order)});\n"
        f"if (lane == 0) a.factors.data[(size_t)i * {shape.max_moment} + {order - 1}] = f;"
        for order in range(1, shape.max_moment + 1)
    )
    return f"""
    real f;
    const real* own = a.embedding.data + (size_t)a.types.data[i] * C;
    for (int c = lane; c < C; c += lanes) a.moments.data[(size_t)i * C + c] += own[c];
    {higher if shape.max_moment > 1 else ""}
    """


def soft_moments_back(shape: Shape) -> str:
    """Adjoints of moments: those of scalars and vectors, and of what products took."""
    higher = "\n".join(
        f"soften_back({_moments(shape, 'moments', order)},"
        f" {_moments(shape, 'soft_moments_bar', order)}, {_moments(shape, 'moments_bar', order)},"
        f" {2 * order + 1}, {shape.width(order)},"
        f" a.factors.data[(size_t)i * {shape.max_moment} + {order - 1}],"
        f" {'true' if order == 1 else 'false'});"
        for order in range(1, shape.max_moment + 1)
    )
    return f"""
    for (int c = lane; c < C; c += lanes)
        ({_moments(shape, "moments_bar", 0)})[c] = a.s_bar.data[(size_t)i * C + c];
    for (int c = lane; c < 3 * C; c += lanes)
        ({_moments(shape, "moments_bar", 1)})[c] = a.v_bar.data[(size_t)i * 3 * C + c];
    {higher if shape.max_moment > 1 else ""}
    """


def _second(shape: Shape) -> str:
    """First moments (x, y, z) and the matrix of second ones, of a channel."""
    return f"""
        const real x = first[c], y = first[{len(shape.mixes)} * H + c],
            z = first[{2 * len(shape.mixes)} * H + c];
        const real zz = b[c], zx = half_root * b[H + c], yz = half_root * b[2 * H + c],
            dd = half_root * b[3 * H + c], xy = half_root * b[4 * H + c];
        const real xx = dd - real(0.5) * zz, yy = -dd - real(0.5) * zz;
        const real tx = xx * x + xy * y + zx * z, ty = xy * x + yy * y + yz * z,
            tz = zx * x + yz * y + zz * z;
    """


def _harmonics_of_first(shape: Shape, order: int, *, gradients: bool) -> str:
    """Those of mixed first moments, and the moments ``t`` of the order."""
    count, mixes = 2 * order + 1, len(shape.mixes)
    names = ("h", "hx", "hy", "hz") if gradients else ("h",)
    arrays = ", ".join(f"{name}[{count}]" for name in names)
    at = shape.mixes.index(order)
    return f"""
        real {arrays};
        const real x = first[{at} * H + c], y = first[{mixes + at} * H + c],
            z = first[{2 * mixes + at} * H + c];
        {harmonics_code(solid_harmonics(order)[-1], gradients=gradients)}
        real along = 0;
        for (int m = 0; m < {count}; ++m) along += t[m * H + c] * h[m];
    """


def products(shape: Shape) -> str:
    """a.a, B:B, a.B.a, tr B^3, then T.T and T.Y(a) of each higher order; and B.a."""
    higher, place = [], 4
    for order in shape.orders[1:]:
        has_first = order in shape.mixes
        second = f"invariants[{place + 1} * H + c] = along;" if has_first else ""
        higher.append(f"""
    {{
        const real* __restrict__ t = {_moments(shape, "mixed", order)};
        for (int c = lane; c < H; c += lanes) {{
            real squares = 0;
            for (int m = 0; m < {2 * order + 1}; ++m) squares += t[m * H + c] * t[m * H + c];
            invariants[{place} * H + c] = squares;
            {_harmonics_of_first(shape, order, gradients=False) if has_first else ""}
            {second}
        }}
    }}""")
        place += 1 + has_first
    return f"""
    const real half_root = real({math.sqrt(3) / 2!r});
    const real* __restrict__ first = a.first.data + (size_t)i * {3 * len(shape.mixes)} * H;
    const real* __restrict__ b = {_moments(shape, "mixed", 2)};
    real* __restrict__ invariants = a.invariants.data + (size_t)i * {shape.n_invariants} * H;
    real* __restrict__ turned = a.turned.data + (size_t)i * 3 * H;
    for (int c = lane; c < H; c += lanes) {{
        {_second(shape)}
        turned[c] = tx;
        turned[H + c] = ty;
        turned[2 * H + c] = tz;
        real squares = 0;
        for (int m = 0; m < 5; ++m) squares += b[m * H + c] * b[m * H + c];
        invariants[c] = x * x + y * y + z * z;
        invariants[H + c] = squares;
        invariants[2 * H + c] = x * tx + y * ty + z * tz;
        invariants[3 * H + c] = real(3) * (xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * zx)
            + zx * (xy * yz - yy * zx));
    }}
    {"".join(higher)}
    """


def products_back(shape: Shape) -> str:
    """Adjoints of mixed moments from those of ``products``."""
    mixes, higher, place = len(shape.mixes), [], 4
    for order in shape.orders[1:]:
        has_first = order in shape.mixes
        count = 2 * order + 1
        with_first = ""
        if has_first:
            at = shape.mixes.index(order)
            sums = "\n".join(
                f"real b{axis} = 0; for (int m = 0; m < {count}; ++m)"
                f" b{axis} += t[m * H + c] * h{axis}[m];\n"
                f"first_bar[{row * mixes + at} * H + c] = own * b{axis};"
                for row, axis in enumerate("xyz")
            )
            with_first = f"""
            const real own = in[{place + 1} * H + c];
            {_harmonics_of_first(shape, order, gradients=True)}
            {sums}
            for (int m = 0; m < {count}; ++m) t_bar[m * H + c] += own * h[m];"""
        higher.append(f"""
    {{
        const real* __restrict__ t = {_moments(shape, "mixed", order)};
        real* __restrict__ t_bar = {_moments(shape, "mixed_bar", order)};
        for (int c = lane; c < H; c += lanes) {{
            for (int m = 0; m < {count}; ++m)
                t_bar[m * H + c] = real(2) * in[{place} * H + c] * t[m * H + c];
            {with_first}
        }}
    }}""")
        place += 1 + has_first
    return f"""
    const real half_root = real({math.sqrt(3) / 2!r});
    const real* __restrict__ first = a.first.data + (size_t)i * {3 * mixes} * H;
    real* __restrict__ first_bar = a.first_bar.data + (size_t)i * {3 * mixes} * H;
    const real* __restrict__ b = {_moments(shape, "mixed", 2)};
    real* __restrict__ b_bar = {_moments(shape, "mixed_bar", 2)};
    const real* __restrict__ in = a.invariants_bar.data + (size_t)i * {shape.n_invariants} * H;
    const real* __restrict__ turned = a.turned_bar.data + (size_t)i * 3 * H;
    for (int c = lane; c < H; c += lanes) {{
        {_second(shape)}
        const real sx = turned[c], sy = turned[H + c], sz = turned[2 * H + c];
        const real i1 = real(2) * in[c], i2 = real(2) * in[H + c], i3 = in[2 * H + c],
            i4 = real(3) * in[3 * H + c], i33 = real(2) * i3;
        first_bar[c] = i1 * x + i33 * tx + xx * sx + xy * sy + zx * sz;
        first_bar[{mixes} * H + c] = i1 * y + i33 * ty + xy * sx + yy * sy + yz * sz;
        first_bar[{2 * mixes} * H + c] = i1 * z + i33 * tz + zx * sx + yz * sy + zz * sz;
        // The derivative by the matrix: a a, (s a + a s) / 2, and 3 B^2 of the trace of the cube.
        const real gxx = i3 * x * x + sx * x + i4 * (xx * xx + xy * xy + zx * zx);
        const real gyy = i3 * y * y + sy * y + i4 * (xy * xy + yy * yy + yz * yz);
        const real gzz = i3 * z * z + sz * z + i4 * (zx * zx + yz * yz + zz * zz);
        const real gxy = i33 * x * y + sx * y + sy * x
            + real(2) * i4 * (xx * xy + xy * yy + zx * yz);
        const real gyz = i33 * y * z + sy * z + sz * y
            + real(2) * i4 * (xy * zx + yy * yz + yz * zz);
        const real gzx = i33 * z * x + sz * x + sx * z
            + real(2) * i4 * (xx * zx + xy * yz + zx * zz);
        b_bar[c] = i2 * b[c] + gzz - real(0.5) * (gxx + gyy);
        b_bar[H + c] = i2 * b[H + c] + half_root * gzx;
        b_bar[2 * H + c] = i2 * b[2 * H + c] + half_root * gyz;
        b_bar[3 * H + c] = i2 * b[3 * H + c] + half_root * (gxx - gyy);
        b_bar[4 * H + c] = i2 * b[4 * H + c] + half_root * gxy;
    }}
    {"".join(higher)}
    """
