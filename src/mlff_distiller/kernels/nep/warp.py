"""NEP4 energies, forces and virial as Warp kernels: one source for CPU and GPU.

Two passes, and no atomics, so results repeat bit for bit:

1. ``gradients``: everything of one atom, from its neighbours to U_i, its virial, and
   g_ij = dU_i/dr_ij of each slot; s_{n,lm} and dU_i/ds_{n,lm} never leave the core.
2. ``forces`` (``kernels/warp_sums.py``): F_i = sum_j (g_ij - g_ji), where g_ji is in the slot
   that ``reverse`` names.

The first has two forms of the same formulas: C++ with neighbours in vectors (``warp_simd``, for
CPUs) and a warp per atom (``warp_lanes``, for GPUs). g_ij are rounded to a grid, so that float64
sums of them are exact: forces do not depend on the order of slots, and add up to zero.

``first`` is the first atom of a launch: a CPU gives each core a range of atoms. Where ``skip`` is
set nothing is done: steps that were sent to the device before it was known that neighbours must be
found again.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

from mlff_distiller.kernels.compiling import IN_VECTORS
from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp_functions import Types, atom_functions, edge_functions
from mlff_distiller.kernels.nep.warp_lanes import (
    gradients_by_warps,
    lane_functions,
    warps_a_block,
)
from mlff_distiller.kernels.nep.warp_simd import build_options, gradients_by_vectors
from mlff_distiller.kernels.types import WARP
from mlff_distiller.kernels.warp_sums import Sums, sum_kernels

CPU_FLAGS = f"{IN_VECTORS} -mllvm=-slp-recursion-max-depth=4"
"""For kernels whose vectors the compiler finds itself."""
BLOCKS = 4
"""On a multiprocessor at once: as many as its registers hold almost without spills."""


@dataclass(frozen=True)
class Specialization:
    """What the kernels are compiled for."""

    shape: Shape
    one_type: bool
    has_zbl: bool
    float64: bool
    device: str  # "cpu" or "cuda"
    lanes: int  # that share an atom: WARP, or 1 on a CPU, where those of a warp take turns

    @property
    def name(self) -> str:
        s = self.shape
        sizes = (s.n_max_radial, s.n_max_angular, s.basis_size_radial, s.basis_size_angular)
        flags = (s.has_q222, s.has_q1111, self.one_type, self.has_zbl, self.float64)
        numbers = (*sizes, s.l_max, s.neurons, *map(int, flags), self.lanes)
        return "mlff_distiller_nep_" + "_".join(map(str, numbers)) + f"_{self.device}"


@dataclass(frozen=True)
class Kernels:
    """In the order of their use, with the types of their arrays."""

    module: wp.Module
    types: Types
    vec3: type
    lanes: int
    threads: int  # that a launch takes for an atom, in gradients and forces
    gradients: wp.Kernel
    sums: Sums


@cache
def build(spec: Specialization) -> Kernels:
    """Kernels for ``spec``; compiled when first loaded."""
    shape, on_cpu = spec.shape, spec.device == "cpu"
    types = Types.of(shape, float64=spec.float64)
    module = wp.Module(spec.name, None)
    module.options.update(
        enable_backward=False,
        block_dim=1 if on_cpu else WARP * warps_a_block(shape, float64=spec.float64),
        default_grid_stride=False,
    )
    if spec.lanes == 1:
        own = build_options(shape, has_zbl=spec.has_zbl, float64=spec.float64)
        module.options.update(own)
    elif on_cpu:
        module.options["cpu_compiler_flags"] = CPU_FLAGS
    elif not spec.float64:
        module.options["launch_bounds"] = (module.options["block_dim"], BLOCKS)
    func, kernel = wp.func(module=module), wp.kernel(module=module)
    # Out of line on the CPU these sums run in vectors, and compile in half the time.
    outlined = wp.func(module=module, inline=False if on_cpu else None)

    threads = 1 if on_cpu else spec.lanes
    if spec.lanes == 1:
        gradients = gradients_by_vectors(kernel, types)
    else:
        of_atom = atom_functions(func, outlined, types, shape)
        one_type = spec.one_type
        of_edge = edge_functions(
            func, outlined, of_atom, types, shape, one_type=one_type, has_zbl=spec.has_zbl
        )
        functions = (of_atom, of_edge, types, shape)
        lanes = lane_functions(func, *functions)
        gradients = gradients_by_warps(lanes, kernel, *functions, one_type=one_type, on_cpu=on_cpu)

    sums = sum_kernels(kernel, types.vec3, threads)
    return Kernels(module, types, types.vec3, spec.lanes, threads, gradients, sums)
