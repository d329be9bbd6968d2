"""A loop over an atom's neighbours, as C++: directions, and weights of a table's rows."""

from mlff_distiller.kernels.painn.shape import Shape
from mlff_distiller.kernels.painn.tables import INTERVALS_A_HALF_WAVE
from mlff_distiller.kernels.types import WARP

MOST_SHARED = 16384
"""Bytes in which the warps of an atom exchange sums; a GPU gives 48 KiB to a block."""


def edges(shape: Shape, each: str, *, slopes: bool, only: str = "true", beyond: str = "") -> str:
    """Does ``each`` for neighbours within the cutoff, and ``beyond`` for ``slot``s of others.

    There are u = r_ij/r, and weights of the table's rows at r. On a GPU the lanes of a warp look at
    as many slots, and the parts of an atom take turns at the neighbours found, by their rank
    among these: sums do not depend on what else the list holds.
    """
    n_intervals = INTERVALS_A_HALF_WAVE * shape.radial_functions
    saturates = f"""
        const real outer = a.outer.data[own_type * a.n_types + a.types.data[e.j]];
        if (e.r < outer) {{
            const real w = (real(1) - e.r / outer) / real({shape.saturation});
            const real s = w < real(1) ? w : real(1), ss = s * s;
            const real change = s * (real(1) - ss * (real(1) - real(0.5) * s));
            seen = outer * (real(1) - real({shape.saturation}) * change);
            e.stretch = real(1) - ss * (real(3) - real(2) * s);
        }}"""
    derivatives = """
        const real d3 = real(30) * xx * (real(1) - x1) * (real(1) - x1);
        const real dp[6] = {
            -d3, real(1) + xx * (real(-18) + x1 * (real(32) - real(15) * x1)),
            x1 * (real(1) + x1 * (real(-4.5) + x1 * (real(6) - real(2.5) * x1))),
            d3, xx * (real(-12) + x1 * (real(28) - real(15) * x1)),
            xx * (real(1.5) + x1 * (real(-4) + real(2.5) * x1))};"""
    names = ["j", "dx", "dy", "dz", "r", "inverse", "place"]
    if shape.saturation and slopes:
        names.append("stretch")
    from_lane = " ".join(f"e.{name} = __shfl_sync(all, own.{name}, from);" for name in names)
    return f"""
    const auto here_ = a.inside.data[i];
    const int own_type = a.types.data[i], count = a.counts.data[i];
    const size_t row = (size_t)i * a.neighbors.shape[1];
    struct Edge {{ bool near; int j; real dx, dy, dz, r, inverse, place, stretch; }};
    auto look = [&](int slot) {{
        Edge e = {{}};
        const int j = e.j = a.neighbors.data[row + slot];
        if (!({only})) return e;
        const auto other = a.inside.data[j], shift = a.shifts.data[a.images.data[row + slot]];
        e.dx = real(other[0] - here_[0] + shift[0]);
        e.dy = real(other[1] - here_[1] + shift[1]);
        e.dz = real(other[2] - here_[2] + shift[2]);
        const real rr = e.dx * e.dx + e.dy * e.dy + e.dz * e.dz + real({shape.shortest**2!r});
        e.near = rr < real({shape.cutoff**2!r});
        if (!e.near) return e;
        e.r = wp::sqrt(rr);
        e.inverse = real(1) / e.r;
        real seen = e.r;
        e.stretch = 1;
        {saturates if shape.saturation else ""}
        e.place = seen * real({n_intervals / shape.cutoff!r});
        return e;
    }};
    auto each = [&](const Edge& e, int slot) {{
        const int j = e.j;
        const real dx = e.dx, dy = e.dy, dz = e.dz, r = e.r, inverse = e.inverse;
        const real ux = dx * inverse, uy = dy * inverse, uz = dz * inverse;
        const real stretch = {"e.stretch" if shape.saturation else "1"};
        const int node = e.place < real({n_intervals - 1}) ? (int)e.place : {n_intervals - 1};
        const real x1 = e.place - real(node), xx = x1 * x1, xxx = x1 * xx;
        const real p3 = xxx * (real(10) + x1 * (real(-15) + real(6) * x1));
        const real p[6] = {{
            real(1) - p3, x1 + xxx * (real(-6) + x1 * (real(8) - real(3) * x1)),
            real(0.5) * (xx + xxx * (real(-3) + x1 * (real(3) - x1))),
            p3, xxx * (real(-4) + x1 * (real(7) - real(3) * x1)),
            real(0.5) * xxx * (real(1) + x1 * (x1 - real(2)))}};
        {derivatives if slopes else ""}
        {each}
    }};
    #if defined(__CUDA_ARCH__)
        const unsigned int all = 0xffffffff;
        const int place = threadIdx.x % {WARP}, before = thread / {WARP} * ({WARP} / lanes);
        for (int start = 0, rank = 0; start < count; start += {WARP}) {{
            Edge own = {{}};
            if (start + place < count) {{
                own = look(start + place);
                const int slot = start + place;
                if (!own.near && before == 0) {{ {beyond or ";"} }}
            }}
            const unsigned int near = __ballot_sync(all, own.near);
            const int found = __popc(near);
            // In the lane of its rank, which lane looked at a neighbour.
            int looked = 0;
            for (int width = {WARP // 2}, rest = place; width; width /= 2) {{
                const int below = __popc((near >> looked) & ((1u << width) - 1u));
                if (rest >= below) rest -= below, looked += width;
            }}
            int next = before - rank % parts;
            if (next <= -({WARP} / lanes)) next += parts;
            for (; next < found; next += parts) {{
                const int own_next = next + part - before;
                const int from = __shfl_sync(all, looked, own_next & {WARP - 1});
                Edge e = {{}};
                {from_lane}
                if (own_next >= 0 && own_next < found) each(e, start + from);
            }}
            rank += found;
        }}
    #else
        for (int slot = 0; slot < count; ++slot) {{
            const Edge e = look(slot);
            if (e.near) each(e, slot);
            {f"else {{ {beyond} }}" if beyond else ""}
        }}
    #endif
    """


def folded(size: str, arrays: list[str], warps: int) -> str:
    """Adds up what the parts of an atom have in ``arrays`` of ``size``, for the first one."""
    others = WARP * max(1, warps - 1)
    at_once = max(1, MOST_SHARED // (8 * len(arrays) * others))

    def each(line: str, first: str, stop: str) -> str:
        lines = (
            line.format(own=f"{own}[q]", place=f"here[({k} * {at_once} + q - {first}) * {others}]")
            for k, own in enumerate(arrays)
        )
        return f"for (int q = {first}; q < {stop}; ++q) {{ {' '.join(lines)} }}"

    among_warps = f"""
        __shared__ real memory[{len(arrays) * at_once * others}];
        #pragma unroll
        for (int from = 0; from < {size}; from += {at_once}) {{
            const int stop = from + {at_once} < {size} ? from + {at_once} : {size};
            real* here = memory + thread - {WARP};
            __syncthreads();
            if (thread >= {WARP}) {each("{place} = {own};", "from", "stop")}
            __syncthreads();
            if (thread < {WARP}) for (int warp = 1; warp < {warps}; ++warp) {{
                here += {WARP};
                {each("{own} += {place};", "from", "stop")}
            }}
        }}"""
    return f"""
    #if defined(__CUDA_ARCH__)
    {{
        for (int other = lanes; other < {WARP}; other *= 2)
            {each("{own} += __shfl_xor_sync(0xffffffff, {own}, other);", "0", size)}
        {among_warps if warps > 1 else ""}
    }}
    #endif
    """


def row(name: str, weights: str, width: str, at: str) -> str:
    """A function of the table: the sum of six rows from ``name`` on."""
    return " + ".join(f"{weights}[{k}] * {name}[{k} * {width} + {at}]" for k in range(6))


def per_node(shape: Shape) -> str:
    """Nodes an Å."""
    return f"real({INTERVALS_A_HALF_WAVE * shape.radial_functions / shape.cutoff!r})"


TO_VECTOR = """
        // From derivatives by the table's place and by u to those by r_ij.
        along = total(along) * stretch * {per_node};
        gx = total(gx), gy = total(gy), gz = total(gz);
        {zbl}
        const real across = along - (ux * gx + uy * gy + uz * gz) * inverse;
        const real g[3] = {{across * ux + gx * inverse, across * uy + gy * inverse,
                           across * uz + gz * inverse}};
"""
