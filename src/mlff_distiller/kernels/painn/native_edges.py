"""A loop over an atom's neighbours, as C++: directions, and weights of a table's rows."""

from mlff_distiller.kernels.painn.shape import Shape
from mlff_distiller.kernels.painn.tables import INTERVALS_A_HALF_WAVE


def edges(shape: Shape, *, slopes: bool, only: str = "", beyond: str = "") -> str:
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
