"""painn's energy and gradient as Warp kernels around matrix products that a library does.

The body of each is C++ (``native.py``). Where ``skip`` is set nothing is done: steps that were sent
to the device before it was known that neighbours must be found again. ``first`` is the first atom
of a launch: a CPU gives each core a range of atoms.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import warp as wp

from mlff_distiller.kernels.compiling import IN_VECTORS
from mlff_distiller.kernels.painn.native import SHARED, bodies
from mlff_distiller.kernels.painn.shape import Shape
from mlff_distiller.kernels.types import WARP, vec6d
from mlff_distiller.kernels.warp_sums import Sums, sum_kernels

BLOCK = 4 * WARP
OF_ATOMS = (
    *("embedding", "radial", "outer", "zbl"),
    *("sums", "moments", "soft_moments", "factors", "first", "mixed", "invariants", "turned"),
    *("sums_bar", "moments_bar", "soft_moments_bar", "first_bar", "mixed_bar", "invariants_bar"),
    *("turned_bar", "s_bar", "v_bar", "inputs_bar", "soft_v_bar", "mixed_v_bar", "gates_bar"),
    "site",
)
"""Arrays of real numbers that all layers share; ``_bar`` is the energy's derivative by them."""
OF_LAYER = (
    *("s", "v", "inputs", "soft_v", "factors", "mixed_v", "dots", "gates", "s_out", "v_out"),
    *("features", "table"),
)
"""Those of an update, or of a message."""
OF_PRODUCT = {
    **dict.fromkeys(("inputs", "matrix", "bias", "out", "other"), wp.uint64),
    **dict.fromkeys(("input_stride", "bias_stride", "out_stride"), int),
    **dict.fromkeys(("rows", "inner", "width", "way"), int),
}
"""Addresses, what rows are apart, and sizes, of an atom; ``way`` is 1 if the SiLU of ``out`` goes
to ``other``, and 2 if ``out`` is multiplied by its slope there."""


@dataclass(frozen=True)
class Kernels:
    """Kernels over atoms, by their names in ``native.py``, and the types of their arguments."""

    shape: Shape
    module: wp.Module
    vec3: type
    shared: Any
    layer: Any
    threads: int  # that a launch takes for an atom
    shared_threads: int  # the same of kernels for which an atom may have some warps
    product: Any
    of_atoms: dict[str, wp.Kernel]
    chain: wp.Kernel | None  # does what is between looks at neighbours, where these are chained
    sums: Sums


@cache
def build(shape: Shape, device: str, warps: int = 1, *, chained: bool = False) -> Kernels:
    """Kernels for a "cpu" or a "cuda" device; compiled when first loaded.

    On a GPU ``warps`` share an atom's neighbours: some if there are few atoms.
    """
    on_cpu = device == "cpu"
    threads, shared_threads = (1, 1) if on_cpu else (WARP, warps * WARP)
    how = f"{warps}{'_chained' if chained else ''}"
    real = wp.float64 if shape.float64 else wp.float32
    vec3 = wp.types.vector(3, real)
    module = wp.Module(f"mlff_distiller_painn_{shape.name}_{how}_{device}", None)
    module.options.update(
        enable_backward=False, block_dim=1 if on_cpu else BLOCK, default_grid_stride=False
    )
    if on_cpu:
        module.options["cpu_compiler_flags"] = IN_VECTORS

    def struct(name: str, arrays: tuple[str, ...], others: dict[str, Any]) -> Any:
        fields = {**others, **dict.fromkeys(arrays, wp.array(dtype=real))}
        return wp.struct(type(name, (), {"__annotations__": fields, "__module__": __name__}))

    shared = struct(
        "Shared",
        OF_ATOMS,
        {
            "n_atoms": int,
            "n_types": int,
            "norm_width": real,
            "inside": wp.array(dtype=wp.vec3d),
            "shifts": wp.array(dtype=wp.vec3d),
            "types": wp.array(dtype=int),
            "counts": wp.array(dtype=int),
            "neighbors": wp.array2d(dtype=int),
            "images": wp.array2d(dtype=int),
            "reference": wp.array(dtype=wp.float64),
            "g": wp.array2d(dtype=vec3),
            "energies": wp.array(dtype=wp.float64),
            "virials": wp.array(dtype=vec6d),
        },
    )
    layer = struct("Layer", OF_LAYER, {"is_end": int, "is_last": int})
    product = struct("Product", (), OF_PRODUCT)

    def of_atoms(name: str, body: str) -> wp.Kernel:
        def of_atom(i: int, a: shared, x: layer): ...

        of_atom.__name__ = of_atom.__qualname__ = f"{name}_of_atom"
        of_atom = wp.func_native(body)(of_atom)
        per_atom = shared_threads if name in SHARED else threads

        def of_range(first: int, skip: wp.array(dtype=int), a: shared, x: layer):
            if skip[0] == 0:
                of_atom(first + wp.tid() / per_atom, a, x)

        return wp.Kernel(of_range, key=name, module=module)

    own = bodies(shape, warps, chained=chained)

    @wp.func_native(own.pop("chain", ""))
    def chain_of_atom(
        i: int,
        a: shared,
        codes: wp.array(dtype=wp.vec2i),
        layers: wp.array(dtype=layer),
        products: wp.array(dtype=product),
    ): ...

    def chain(
        first: int,
        skip: wp.array(dtype=int),
        a: shared,
        codes: wp.array(dtype=wp.vec2i),
        layers: wp.array(dtype=layer),
        products: wp.array(dtype=product),
    ):
        if skip[0] == 0:
            chain_of_atom(first + wp.tid() / shared_threads, a, codes, layers, products)

    return Kernels(
        *(shape, module, vec3, shared, layer, threads, shared_threads, product),
        {name: of_atoms(name, body) for name, body in own.items()},
        wp.Kernel(chain, key="chain", module=module, options={"launch_bounds": (BLOCK, 8)})
        if chained
        else None,
        sum_kernels(wp.kernel(module=module), vec3, threads),
    )
