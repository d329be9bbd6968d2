"""Real solid harmonics and their gradients as C++: polynomials written out."""

import math

Polynomial = dict[tuple[int, int, int], float]
"""Coefficients of x^a y^b z^c by (a, b, c)."""


def _sum(*terms: tuple[float, Polynomial]) -> Polynomial:
    total: Polynomial = {}
    for factor, polynomial in terms:
        for powers, value in polynomial.items():
            total[powers] = total.get(powers, 0.0) + factor * value
    return {powers: value for powers, value in total.items() if abs(value) > 1e-12}


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    return _sum(
        *(
            (u * v, {(p[0] + q[0], p[1] + q[1], p[2] + q[2]): 1.0})
            for p, u in a.items()
            for q, v in b.items()
        )
    )


def _slope(polynomial: Polynomial, axis: int) -> Polynomial:
    lowered: Polynomial = {}
    for powers, value in polynomial.items():
        if powers[axis]:
            less = list(powers)
            less[axis] -= 1
            lowered[less[0], less[1], less[2]] = value * powers[axis]
    return lowered


def solid_harmonics(max_order: int) -> list[list[Polynomial]]:
    """By order l and component, as ``students.painn.solid_harmonics``; of order 1 x, y, z."""
    x, y, z = ({(1, 0, 0): 1.0}, {(0, 1, 0): 1.0}, {(0, 0, 1): 1.0})
    rr = _sum(*((1.0, _product(own, own)) for own in (x, y, z)))
    orders: list[list[Polynomial]] = [[] for _ in range(max_order + 1)]
    first, cosine, sine = 1.0, {(0, 0, 0): 1.0}, dict[tuple[int, int, int], float]()
    for m in range(max_order + 1):
        below: Polynomial = {}
        legendre: Polynomial = {(0, 0, 0): first}
        for order in range(m, max_order + 1):
            ratio = 2.0 * math.factorial(order - m) / math.factorial(order + m)
            own = _sum((math.sqrt(ratio) if m else 1.0, legendre))
            orders[order] += [_product(own, cosine), _product(own, sine)] if m else [own]
            up = _sum(
                ((2 * order + 1) / (order + 1 - m), _product(z, legendre)),
                (-(order + m) / (order + 1 - m), _product(rr, below)),
            )
            below, legendre = legendre, up
        first *= 2 * m + 1
        cosine, sine = (
            _sum((1.0, _product(x, cosine)), (-1.0, _product(y, sine))),
            _sum((1.0, _product(x, sine)), (1.0, _product(y, cosine))),
        )
    if max_order:
        orders[1] = [x, y, z]
    return orders


def _code(polynomial: Polynomial) -> str:
    terms = []
    for powers, value in sorted(polynomial.items()):
        factors = [axis for axis, power in zip("xyz", powers, strict=True) for _ in range(power)]
        terms.append("*".join([f"real({value!r})", *factors]))
    return " + ".join(terms) or "real(0)"


def harmonics_code(components: list[Polynomial], *, gradients: bool) -> str:
    """``y[k] = ...;`` and ``dx[k]``, ``dy[k]``, ``dz[k]`` from ``x``, ``y``, ``z`` of ``real``."""
    lines = []
    for k, own in enumerate(components):
        lines.append(f"h[{k}] = {_code(own)};")
        if gradients:
            lines += [f"h{a}[{k}] = {_code(_slope(own, n))};" for n, a in enumerate("xyz")]
    return "\n".join(lines)
