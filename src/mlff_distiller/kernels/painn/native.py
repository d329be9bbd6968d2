"""What each atom computes, as C++ for Warp's kernels: one source for CPU and GPU.

On a CPU a thread takes an atom, and the compiler's vectors the channels; on a GPU a warp takes it,
a lane every 32nd channel. Names are those of README.md; ``a`` and ``x`` are ``Shared`` and
``Layer`` of ``warp.py``.
"""

import math
import re
from dataclasses import astuple, dataclass

from mlff_distiller.kernels.painn.harmonics import harmonics_code, solid_harmonics
from mlff_distiller.kernels.painn.tables import INTERVALS_A_HALF_WAVE

WARP = 32
FORCE_GRID = 2.0**36
"""Points an eV/Å, to which gradients are rounded: up to 10^5 eV/Å float64 adds them exactly."""
HIGHEST_OF_FIRST = 4
"""Order up to which there are harmonics of the first moments."""


@dataclass(frozen=True)
class Shape:
    """What kernels are compiled for."""

    channels: int
    radial_functions: int
    max_moment: int
    cutoff: float  # Å
    shortest: float  # Å, added in squares to a distance
    saturation: float  # 0 if messages do not saturate
    has_zbl: bool
    has_messages: bool  # beyond the first
    float64: bool

    @property
    def name(self) -> str:
        """Different for each."""
        return "_".join(re.sub(r"\W", "_", str(value)) for value in astuple(self))

    @property
    def half(self) -> int:
        return self.channels // 2

    @property
    def orders(self) -> range:
        """Those of half as many channels."""
        return range(2, self.max_moment + 1)

    def width(self, order: int) -> int:
        """Channels of the moments of an order."""
        return self.channels if order < 2 else self.half

    def place(self, order: int) -> int:
        """Where an order starts, in a buffer of moments: of one atom."""
        c = self.channels
        return min(order, 1) * c if order < 2 else 4 * c + (order**2 - 4) * self.half

    @property
    def mixes(self) -> list[int]:
        """Orders whose products take first moments mixed."""
        return [order for order in self.orders if order <= HIGHEST_OF_FIRST]

    @property
    def n_invariants(self) -> int:
        return sum(4 if order == 2 else 1 + (order in self.mixes) for order in self.orders)


def _prelude(shape: Shape) -> str:
    return f"""
    using real = {"double" if shape.float64 else "float"};
    constexpr int C = {shape.channels}, H = {shape.half}, K = {shape.radial_functions};
    #if defined(__CUDA_ARCH__)
        const int lane = threadIdx.x % {WARP};
        constexpr int lanes = {WARP};
    #else
        constexpr int lane = 0, lanes = 1;
    #endif
    constexpr int CL = (C + lanes - 1) / lanes, KL = (K + lanes - 1) / lanes;
    const size_t n = a.n_atoms;
    auto total = [=](real value) -> real {{
        #if defined(__CUDA_ARCH__)
            for (int other = {WARP} / 2; other > 0; other /= 2)
                value += __shfl_xor_sync(0xffffffff, value, other);
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


def _edges(shape: Shape, *, slopes: bool, only: str = "", beyond: str = "") -> str:
    """The head of a loop over neighbours: u = r_ij/r, and weights of the table's rows at r."""
    n_intervals = INTERVALS_A_HALF_WAVE * shape.radial_functions
    saturates = f"""
        const real outer = a.outer.data[own_type * a.n_types + a.types.data[j]];
        if (r < outer) {{
            const real w = (real(1) - r / outer) / real({shape.saturation});
            const real s = w < real(1) ? w : real(1), ss = s * s;
            const real change = s * (real(1) - ss * (real(1) - real(0.5) * s));
            seen = outer * (real(1) - real({shape.saturation}) * change);
            stretch = real(1) - ss * (real(3) - real(2) * s);
        }}"""
    derivatives = """
        const real d3 = real(30) * xx * (real(1) - x1) * (real(1) - x1);
        const real dp[6] = {
            -d3, real(1) + xx * (real(-18) + x1 * (real(32) - real(15) * x1)),
            x1 * (real(1) + x1 * (real(-4.5) + x1 * (real(6) - real(2.5) * x1))),
            d3, xx * (real(-12) + x1 * (real(28) - real(15) * x1)),
            xx * (real(1.5) + x1 * (real(-4) + real(2.5) * x1))};"""
    return f"""
    const auto own = a.inside.data[i];
    const int own_type = a.types.data[i];
    const size_t row = (size_t)i * a.neighbors.shape[1];
    for (int slot = 0; slot < a.counts.data[i]; ++slot) {{
        const int j = a.neighbors.data[row + slot];
        {only}
        const auto other = a.inside.data[j], shift = a.shifts.data[a.images.data[row + slot]];
        const real dx = real(other[0] - own[0] + shift[0]);
        const real dy = real(other[1] - own[1] + shift[1]);
        const real dz = real(other[2] - own[2] + shift[2]);
        const real rr = dx * dx + dy * dy + dz * dz + real({shape.shortest**2!r});
        if (!(rr < real({shape.cutoff**2!r}))) {{ {beyond} continue; }}
        const real r = wp::sqrt(rr), inverse = real(1) / r;
        const real ux = dx * inverse, uy = dy * inverse, uz = dz * inverse;
        real seen = r, stretch = 1;
        {saturates if shape.saturation else ""}
        const real place = seen * real({n_intervals / shape.cutoff!r});
        const int node = place < real({n_intervals - 1}) ? (int)place : {n_intervals - 1};
        const real x1 = place - real(node), xx = x1 * x1, xxx = x1 * xx;
        const real p3 = xxx * (real(10) + x1 * (real(-15) + real(6) * x1));
        const real p[6] = {{
            real(1) - p3, x1 + xxx * (real(-6) + x1 * (real(8) - real(3) * x1)),
            real(0.5) * (xx + xxx * (real(-3) + x1 * (real(3) - x1))),
            p3, xxx * (real(-4) + x1 * (real(7) - real(3) * x1)),
            real(0.5) * xxx * (real(1) + x1 * (x1 - real(2)))}};
        {derivatives if slopes else ""}
    """


def _row(name: str, weights: str, width: str, at: str) -> str:
    """A function of the table: the sum of six rows from ``name`` on."""
    return " + ".join(f"{weights}[{k}] * {name}[{k} * {width} + {at}]" for k in range(6))


def _per_node(shape: Shape) -> str:
    return f"real({INTERVALS_A_HALF_WAVE * shape.radial_functions / shape.cutoff!r})"


def _harmonics(shape: Shape, *, gradients: bool) -> str:
    components = [own for order in solid_harmonics(shape.max_moment) for own in order]
    arrays = "h[M]" + (", hx[M], hy[M], hz[M]" if gradients else "")
    return f"real {arrays};\n{{ const real x = ux, y = uy, z = uz;\n" + (
        harmonics_code(components, gradients=gradients) + "\n}"
    )


def _sums(shape: Shape) -> str:
    """S[l, m, type, k] = sum over neighbours of a type of Y_lm(u) R_k(r)."""
    size = (shape.max_moment + 1) ** 2
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
        {_edges(shape, slopes=False, only="if (a.types.data[j] != type) continue;")}
            {_harmonics(shape, gradients=False)}
            const real* w = table + (size_t)node * 3 * K;
            real f[KL];
            for (int k = lane, q = 0; k < K; k += lanes, ++q) f[q] = {_row("w", "p", "K", "k")};
            for (int m = 0; m < M; ++m)
                for (int k = lane, q = 0; k < K; k += lanes, ++q) acc[m * KL + q] += h[m] * f[q];
        }}
        for (int k = lane, q = 0; k < K; k += lanes, ++q) {{
            {stores}
        }}
    }}
    """


def _gradients(shape: Shape) -> str:
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
            repulsion += strength * phi * fc;
            along += strength * (dphi * fc + phi * dfc - phi * fc * inverse);
        }}"""
    return f"""
    constexpr int M = {(shape.max_moment + 1) ** 2};
    const size_t width = a.n_types * K;
    const real* __restrict__ sums = a.sums_bar.data;
    const real* __restrict__ table = a.radial.data;
    real repulsion = 0, v[6] = {{}};
    const real grid = real({FORCE_GRID!r});
    {_edges(shape, slopes=True, beyond="if (lane == 0) a.g.data[row + slot] = {{}};")}
        {_harmonics(shape, gradients=True)}
        const int type_j = a.types.data[j];
        const real* w = table + (size_t)node * 3 * K;
        real b[KL] = {{}}, bx[KL] = {{}}, by[KL] = {{}}, bz[KL] = {{}};
        const real* __restrict__ s;
        {sums}
        real along = 0, gx = 0, gy = 0, gz = 0;
        for (int k = lane, q = 0; k < K; k += lanes, ++q) {{
            const real f = {_row("w", "p", "K", "k")};
            along += ({_row("w", "dp", "K", "k")}) * b[q];
            gx += f * bx[q];
            gy += f * by[q];
            gz += f * bz[q];
        }}
        {_TO_VECTOR.format(per_node=_per_node(shape), zbl=zbl if shape.has_zbl else "")}
        real* here = (real*)(a.g.data + row + slot);
        real total_g[3];
        for (int k = 0; k < 3; ++k) {{
            total_g[k] = g[k]{" + here[k]" if shape.has_messages else ""};
            total_g[k] = wp::rint(total_g[k] * grid) / grid;
        }}
        #if defined(__CUDA_ARCH__)
            __syncwarp();
        #endif
        if (lane == 0) for (int k = 0; k < 3; ++k) here[k] = total_g[k];
        v[0] -= dx * total_g[0];
        v[1] -= dy * total_g[1];
        v[2] -= dz * total_g[2];
        v[3] -= dy * total_g[2];
        v[4] -= dx * total_g[2];
        v[5] -= dx * total_g[1];
    }}
    if (lane == 0) {{
        for (int k = 0; k < 6; ++k) a.virials.data[i][k] = v[k];
        a.energies.data[i] = double(a.site.data[i] + repulsion) + a.reference.data[own_type];
    }}
    """


_TO_VECTOR = """
        // From derivatives by the table's place and by u to those by r_ij.
        along = total(along) * stretch * {per_node};
        gx = total(gx), gy = total(gy), gz = total(gz);
        {zbl}
        const real across = along - (ux * gx + uy * gy + uz * gz) * inverse;
        const real g[3] = {{across * ux + gx * inverse, across * uy + gy * inverse,
                           across * uz + gz * inverse}};
"""


def _message(shape: Shape) -> str:
    """s' = s + sum W p and v' = v + sum (W q u + W t), of neighbours' features p, q and t."""
    return f"""
    const real* __restrict__ table = x.table.data;
    const real* __restrict__ features = x.features.data;
    real acc[CL] = {{}}, accx[CL] = {{}}, accy[CL] = {{}}, accz[CL] = {{}};
    {_edges(shape, slopes=False)}
        const real* __restrict__ w = table + (size_t)node * 9 * C;
        const real* __restrict__ f = features + (size_t)j * 5 * C;
        for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
            const real w0 = {_row("w", "p", "3 * C", "c")};
            const real w1 = {_row("w", "p", "3 * C", "C + c")};
            const real w2 = {_row("w", "p", "3 * C", "2 * C + c")};
            const real along = w1 * f[C + c];
            acc[q] += w0 * f[c];
            accx[q] += along * ux + w2 * f[2 * C + c];
            accy[q] += along * uy + w2 * f[3 * C + c];
            accz[q] += along * uz + w2 * f[4 * C + c];
        }}
    }}
    for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
        const size_t k = (size_t)i * C + c, k3 = (size_t)i * 3 * C + c;
        x.s_out.data[k] = x.s.data[k] + acc[q];
        x.v_out.data[k3] = x.v.data[k3] + accx[q];
        x.v_out.data[k3 + C] = x.v.data[k3 + C] + accy[q];
        x.v_out.data[k3 + 2 * C] = x.v.data[k3 + 2 * C] + accz[q];
    }}
    """


def _message_back(shape: Shape) -> str:
    """Adjoints of an atom's features from those of its neighbours' sums; dE/dr_ij of both."""
    return f"""
    const real* __restrict__ table = x.table.data;
    const real* __restrict__ s_bar = a.s_bar.data;
    const real* __restrict__ v_bar = a.v_bar.data;
    const real* __restrict__ f = x.features.data + (size_t)i * 5 * C;
    real accp[CL] = {{}}, accq[CL] = {{}}, accx[CL] = {{}}, accy[CL] = {{}}, accz[CL] = {{}};
    {_edges(shape, slopes=True)}
        const real* __restrict__ w = table + (size_t)node * 9 * C;
        const real* __restrict__ sb = s_bar + (size_t)j * C;
        const real* __restrict__ vb = v_bar + (size_t)j * 3 * C;
        real along = 0, gx = 0, gy = 0, gz = 0;
        // The neighbour sees this atom along -u.
        for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
            const real w0 = {_row("w", "p", "3 * C", "c")};
            const real w1 = {_row("w", "p", "3 * C", "C + c")};
            const real w2 = {_row("w", "p", "3 * C", "2 * C + c")};
            const real dw0 = {_row("w", "dp", "3 * C", "c")};
            const real dw1 = {_row("w", "dp", "3 * C", "C + c")};
            const real dw2 = {_row("w", "dp", "3 * C", "2 * C + c")};
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
        {_TO_VECTOR.format(per_node=_per_node(shape), zbl="")}
        real* here = (real*)(a.g.data + row + slot);
        if (lane == 0)
            for (int k = 0; k < 3; ++k) here[k] = x.is_last ? g[k] : here[k] + g[k];
    }}
    const real* soft = x.soft_v.data + (size_t)i * 3 * C;
    const real* phi = x.gates.data + (size_t)i * 3 * C;
    real* phi_bar = a.gates_bar.data + (size_t)i * 3 * C;
    real* soft_bar = a.soft_v_bar.data + (size_t)i * 3 * C;
    for (int c = lane, q = 0; c < C; c += lanes, ++q) {{
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


def _moments(shape: Shape, name: str, order: int) -> str:
    """Where an atom's moments of an order lie in a buffer of all."""
    size = (2 * order + 1) * shape.width(order)
    return f"a.{name}.data + n * {shape.place(order)} + (size_t)i * {size}"


def _soft_moments(shape: Shape) -> str:
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


def _soft_moments_back(shape: Shape) -> str:
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


def _products(shape: Shape) -> str:
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


def _products_back(shape: Shape) -> str:
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


def bodies(shape: Shape) -> dict[str, str]:
    """What atom ``i`` does in each kernel."""
    own = {
        "sums": _sums(shape),
        "soft_moments": _SOFTEN + _soft_moments(shape),
        "soft": _SOFTEN + _SOFT,
        "norms": _NORMS,
        "update": _UPDATE,
        "gates_back": _GATES_BACK,
        "mixed_back": _MIXED_BACK,
        "soft_back": _SOFTEN_BACK + _SOFT_BACK,
        "soft_moments_back": _SOFTEN_BACK + _soft_moments_back(shape),
        "gradients": _gradients(shape),
    }
    if shape.max_moment > 1:
        own |= {"products": _products(shape), "products_back": _products_back(shape)}
    if shape.has_messages:
        own |= {
            "features": _FEATURES,
            "message": _message(shape),
            "message_back": _message_back(shape),
        }
    return {name: _prelude(shape) + body for name, body in own.items()}
