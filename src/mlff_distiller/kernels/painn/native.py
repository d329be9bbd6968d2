"""What each atom computes, as C++ for Warp's kernels: one source for CPU and GPU.

On a CPU a thread takes an atom, and the compiler's vectors the channels; on a GPU the lanes of a
warp do, or of half a warp, where there are so few numbers. What looks at neighbours takes some
warps for an atom if there are few atoms; each ``part`` of them takes its share of the neighbours.
Names are those of README.md; ``a`` and ``x`` are ``Shared`` and ``Layer`` of ``warp.py``.
"""

from mlff_distiller.kernels.painn.native_chain import chain
from mlff_distiller.kernels.painn.native_edges import TO_VECTOR, edges, folded, per_node, row
from mlff_distiller.kernels.painn.native_moments import (
    gradients,
    products,
    products_back,
    soft_moments,
    soft_moments_back,
    sums,
)
from mlff_distiller.kernels.painn.shape import Shape
from mlff_distiller.kernels.types import WARP


def _prelude(shape: Shape, lanes: int, warps: int) -> str:
    return f"""
    using real = {"double" if shape.float64 else "float"};
    constexpr int C = {shape.channels}, H = {shape.half}, K = {shape.radial_functions};
    #if defined(__CUDA_ARCH__)
        constexpr int lanes = {lanes}, parts = {WARP // lanes * warps};
        const int thread = threadIdx.x % {WARP * warps};
        const int lane = thread % lanes, part = thread / lanes;
        const unsigned int together = {2**lanes - 1}u << (threadIdx.x % {WARP} / lanes * lanes);
    #else
        constexpr int lane = 0, lanes = 1, part = 0, parts = 1;
    #endif
    constexpr int CL = (C + lanes - 1) / lanes, KL = (K + lanes - 1) / lanes;
    const size_t n = a.n_atoms;
    auto total = [=](real value) -> real {{
        #if defined(__CUDA_ARCH__)
            for (int other = lanes / 2; other > 0; other /= 2)
                value += __shfl_xor_sync(together, value, other);
        #endif
        return value;
    }};
    """


_SOFTEN = """
    // Of `count` vectors of `width` channels: y = x f, f = (1 + mean of their squares)^(-1/2).
    auto soften = [&](const real* __restrict__ in, real* __restrict__ out, int count, int width) {
        real squares = 0;
        for (int k = lane; k < count * width; k += lanes) squares += in[k] * in[k];
        const real f = real(1) / wp::sqrt(real(1) + total(squares) / real(width));
        for (int k = lane; k < count * width; k += lanes) out[k] = in[k] * f;
        return f;
    };
"""
_SOFTEN_BACK = """
    auto soften_back = [&](const real* __restrict__ in, const real* __restrict__ out_bar,
                           real* __restrict__ in_bar, int count, int width, real f, bool adds) {
        real along = 0;
        for (int k = lane; k < count * width; k += lanes) along += in[k] * out_bar[k];
        const real g = f * f * f / real(width) * total(along);
        for (int k = lane; k < count * width; k += lanes)
            in_bar[k] = (adds ? in_bar[k] : real(0)) + f * out_bar[k] - g * in[k];
    };
"""


def _message(shape: Shape, warps: int) -> str:
    """s' = s + sum W p and v' = v + sum (W q u + W t), of neighbours' features p, q and t."""
    each = f"""
        const real* __restrict__ w = table + (size_t)node * 9 * C;
        const real* __restrict__ f = features + (size_t)j * 5 * C;
        for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
            const real w0 = {row("w", "p", "3 * C", "c")};
            const real w1 = {row("w", "p", "3 * C", "C + c")};
            const real w2 = {row("w", "p", "3 * C", "2 * C + c")};
            const real along = w1 * f[C + c];
            acc[q] += w0 * f[c];
            accx[q] += along * ux + w2 * f[2 * C + c];
            accy[q] += along * uy + w2 * f[3 * C + c];
            accz[q] += along * uz + w2 * f[4 * C + c];
        }}
    """
    return f"""
    const real* __restrict__ table = x.table.data;
    const real* __restrict__ features = x.features.data;
    real acc[CL] = {{}}, accx[CL] = {{}}, accy[CL] = {{}}, accz[CL] = {{}};
    {edges(shape, each, slopes=False)}
    {folded("CL", ["acc", "accx", "accy", "accz"], warps)}
    if (part == 0) for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
        const size_t k = (size_t)i * C + c, k3 = (size_t)i * 3 * C + c;
        x.s_out.data[k] = x.s.data[k] + acc[q];
        x.v_out.data[k3] = x.v.data[k3] + accx[q];
        x.v_out.data[k3 + C] = x.v.data[k3 + C] + accy[q];
        x.v_out.data[k3 + 2 * C] = x.v.data[k3 + 2 * C] + accz[q];
    }}
    """


def _message_back(shape: Shape, warps: int) -> str:
    """Adjoints of an atom's features from those of its neighbours' sums; dE/dr_ij of both."""
    each = f"""
        const real* __restrict__ w = table + (size_t)node * 9 * C;
        const real* __restrict__ sb = s_bar + (size_t)j * C;
        const real* __restrict__ vb = v_bar + (size_t)j * 3 * C;
        real along = 0, gx = 0, gy = 0, gz = 0;
        // The neighbour sees this atom along -u.
        for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
            const real w0 = {row("w", "p", "3 * C", "c")};
            const real w1 = {row("w", "p", "3 * C", "C + c")};
            const real w2 = {row("w", "p", "3 * C", "2 * C + c")};
            const real dw0 = {row("w", "dp", "3 * C", "c")};
            const real dw1 = {row("w", "dp", "3 * C", "C + c")};
            const real dw2 = {row("w", "dp", "3 * C", "2 * C + c")};
            const real bx = vb[c], by = vb[C + c], bz = vb[2 * C + c];
            const real ub = -(ux * bx + uy * by + uz * bz);
            accp[q] += w0 * sb[c];
            accq[q] += w1 * ub;
            accx[q] += w2 * bx;
            accy[q] += w2 * by;
            accz[q] += w2 * bz;
            along += dw0 * f[c] * sb[c] + dw1 * f[C + c] * ub
                + dw2 * (f[2 * C + c] * bx + f[3 * C + c] * by + f[4 * C + c] * bz);
            const real turning = w1 * f[C + c];
            gx -= turning * bx;
            gy -= turning * by;
            gz -= turning * bz;
        }}
        {TO_VECTOR.format(per_node=per_node(shape), zbl="")}
        real* here = (real*)(a.g.data + row + slot);
        if (lane == 0)
            for (int k = 0; k < 3; ++k) here[k] = x.is_last ? g[k] : here[k] + g[k];
    """
    return f"""
    const real* __restrict__ table = x.table.data;
    const real* __restrict__ s_bar = a.s_bar.data;
    const real* __restrict__ v_bar = a.v_bar.data;
    const real* __restrict__ f = x.features.data + (size_t)i * 5 * C;
    real accp[CL] = {{}}, accq[CL] = {{}}, accx[CL] = {{}}, accy[CL] = {{}}, accz[CL] = {{}};
    {edges(shape, each, slopes=True)}
    {folded("CL", ["accp", "accq", "accx", "accy", "accz"], warps)}
    const real* soft = x.soft_v.data + (size_t)i * 3 * C;
    const real* phi = x.gates.data + (size_t)i * 3 * C;
    real* phi_bar = a.gates_bar.data + (size_t)i * 3 * C;
    real* soft_bar = a.soft_v_bar.data + (size_t)i * 3 * C;
    if (part == 0) for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
        phi_bar[c] = accp[q];
        phi_bar[C + c] = accq[q];
        phi_bar[2 * C + c] = accx[q] * soft[c] + accy[q] * soft[C + c] + accz[q] * soft[2 * C + c];
        soft_bar[c] = accx[q] * phi[2 * C + c];
        soft_bar[C + c] = accy[q] * phi[2 * C + c];
        soft_bar[2 * C + c] = accz[q] * phi[2 * C + c];
    }}
    """


_FEATURES = """
    const real* phi = x.gates.data + (size_t)i * 3 * C;
    const real* soft = x.soft_v.data + (size_t)i * 3 * C;
    real* __restrict__ f = x.features.data + (size_t)i * 5 * C;
    for (int c = lane; c < C; c += lanes) {
        f[c] = phi[c];
        f[C + c] = phi[C + c];
        for (int k = 0; k < 3; ++k) f[(2 + k) * C + c] = soft[k * C + c] * phi[2 * C + c];
    }
"""

_SOFT = """
    // Inputs of a layer's network, of which the second half is the norms', and of its matrices.
    const real f = soften(x.s.data + (size_t)i * C, x.inputs.data + (size_t)i * 2 * C, 1, C);
    const real g = soften(x.v.data + (size_t)i * 3 * C, x.soft_v.data + (size_t)i * 3 * C, 3, C);
    if (lane == 0) {
        x.factors.data[2 * i] = f;
        x.factors.data[2 * i + 1] = g;
    }
"""

_SOFT_BACK = """
    const real f = x.factors.data[2 * i], g = x.factors.data[2 * i + 1];
    soften_back(x.s.data + (size_t)i * C, a.inputs_bar.data + (size_t)i * 2 * C,
                a.s_bar.data + (size_t)i * C, 1, C, f, true);
    soften_back(x.v.data + (size_t)i * 3 * C, a.soft_v_bar.data + (size_t)i * 3 * C,
                a.v_bar.data + (size_t)i * 3 * C, 3, C, g, !x.is_end);
"""

_NORMS = """
    real* norms = x.inputs.data + (size_t)i * 2 * C + C;
    const real* uv = x.mixed_v.data + (size_t)i * 6 * C;
    for (int c = lane; c < C; c += lanes) {
        real squares = a.norm_width * a.norm_width, dot = 0;
        for (int k = 0; k < 3; ++k) {
            const real v = uv[k * 2 * C + C + c];
            squares += v * v;
            dot += uv[k * 2 * C + c] * v;
        }
        norms[c] = wp::sqrt(squares);
        x.dots.data[(size_t)i * C + c] = dot;
    }
"""

_UPDATE = """
    const int kinds = x.is_end ? 2 : 3;
    const real* gates = x.gates.data + (size_t)i * kinds * C;
    const real* uv = x.mixed_v.data + (size_t)i * 6 * C;
    for (int c = lane; c < C; c += lanes) {
        const size_t at = (size_t)i * C + c;
        x.s_out.data[at] = x.s.data[at] + gates[c] + gates[C + c] * x.dots.data[at];
    }
    if (!x.is_end)
        for (int k = 0; k < 3; ++k)
            for (int c = lane; c < C; c += lanes) {
                const size_t at = ((size_t)i * 3 + k) * C + c;
                x.v_out.data[at] = x.v.data[at] + gates[2 * C + c] * uv[k * 2 * C + c];
            }
"""

_GATES_BACK = """
    const int kinds = x.is_end ? 2 : 3;
    real* gates_bar = a.gates_bar.data + (size_t)i * kinds * C;
    const real* uv = x.mixed_v.data + (size_t)i * 6 * C;
    const real* v_bar = a.v_bar.data + (size_t)i * 3 * C;
    for (int c = lane; c < C; c += lanes) {
        const size_t at = (size_t)i * C + c;
        gates_bar[c] = a.s_bar.data[at];
        gates_bar[C + c] = a.s_bar.data[at] * x.dots.data[at];
        if (!x.is_end) {
            real own = 0;
            for (int k = 0; k < 3; ++k) own += v_bar[k * C + c] * uv[k * 2 * C + c];
            gates_bar[2 * C + c] = own;
        }
    }
"""

_MIXED_BACK = """
    const int kinds = x.is_end ? 2 : 3;
    const real* gates = x.gates.data + (size_t)i * kinds * C;
    const real* norms = x.inputs.data + (size_t)i * 2 * C + C;
    const real* norms_bar = a.inputs_bar.data + (size_t)i * 2 * C + C;
    const real* s_bar = a.s_bar.data + (size_t)i * C;
    const real* v_bar = a.v_bar.data + (size_t)i * 3 * C;
    for (int k = 0; k < 3; ++k) {
        const real* uv = x.mixed_v.data + ((size_t)i * 3 + k) * 2 * C;
        real* uv_bar = a.mixed_v_bar.data + ((size_t)i * 3 + k) * 2 * C;
        for (int c = lane; c < C; c += lanes) {
            const real own = s_bar[c] * gates[C + c];
            const real passed = x.is_end ? real(0) : gates[2 * C + c] * v_bar[k * C + c];
            uv_bar[c] = own * uv[C + c] + passed;
            uv_bar[C + c] = own * uv[c] + norms_bar[c] / norms[c] * uv[C + c];
        }
    }
"""


OF_EDGES = ("sums", "message", "message_back", "gradients")
"""Kernels that look at neighbours."""
BETWEEN = (
    *("soft_moments", "products", "soft", "norms", "update", "features", "gates_back"),
    *("mixed_back", "soft_back", "products_back", "soft_moments_back"),
)
"""Others, by their numbers in a chain."""
SHARED = (*OF_EDGES, "chain")
"""Kernels for which an atom may have some warps."""


def bodies(shape: Shape, warps: int, *, chained: bool) -> dict[str, str]:
    """What atom ``i`` does in each kernel, for which it has ``warps`` if it is among `SHARED`.

    Where they are ``chained``, "chain" does what is not of `OF_EDGES`.
    """
    own = {
        "sums": sums(shape, warps),
        "soft_moments": _SOFTEN + soft_moments(shape),
        "soft": _SOFTEN + _SOFT,
        "norms": _NORMS,
        "update": _UPDATE,
        "gates_back": _GATES_BACK,
        "mixed_back": _MIXED_BACK,
        "soft_back": _SOFTEN_BACK + _SOFT_BACK,
        "soft_moments_back": _SOFTEN_BACK + soft_moments_back(shape),
        "gradients": gradients(shape, warps),
    }
    if shape.max_moment > 1:
        own |= {"products": products(shape), "products_back": products_back(shape)}
    if shape.has_messages:
        own |= {
            "features": _FEATURES,
            "message": _message(shape, warps),
            "message_back": _message_back(shape, warps),
        }
    if chained:
        between = [own.pop(name, "") for name in BETWEEN]
        own["chain"] = chain(between, warps)
    few = WARP // 2 if 2 * shape.radial_functions <= WARP else WARP
    lanes = {"sums": few, "gradients": few}
    return {
        name: _prelude(shape, lanes.get(name, WARP), warps if name in SHARED else 1) + body
        for name, body in own.items()
    }
