"""NEP4 energies, forces and virial as Warp kernels: one source for CPU and GPU.

Two passes, and no atomics, so results repeat bit for bit:

1. ``gradients``: everything of one atom, from its neighbours to U_i, its virial, and
   g_ij = dU_i/dr_ij of each slot; s_{n,lm} and dU_i/ds_{n,lm} never leave the core.
2. ``forces``: F_i = sum_j (g_ij - g_ji), where g_ji is in the slot that ``reverse`` names.

The first has two forms of the same formulas: C++ with neighbours in vectors (``warp_simd``, for
CPUs) and a warp per atom (``warp_lanes``, for GPUs). g_ij are rounded to a grid, so that float64
sums of them are exact: forces do not depend on the order of slots, and add up to zero.

``first`` is the first atom of a launch: a CPU gives each core a range of atoms. Where ``skip`` is
set nothing is done: steps that were sent to the device before it was known that neighbours must be
found anew.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp_functions import Types, atom_functions, edge_functions
from mlff_distiller.kernels.nep.warp_lanes import WARP, gradients_by_warps, warps_a_block
from mlff_distiller.kernels.nep.warp_simd import build_options, gradients_by_vectors
from mlff_distiller.kernels.types import vec6d, vec7d

# A CPU sums in vectors only with leave to reorder; NaN and infinity keep their meaning.
CPU_FLAGS = (
    "-march=native -mreassociate -fno-signed-zeros -freciprocal-math -ffp-contract=fast"
    " -mllvm=-slp-recursion-max-depth=4"
)
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
    lanes: int
    threads: int  # that a launch takes for an atom, in the first two
    gradients: wp.Kernel
    forces: wp.Kernel
    chunk_totals: wp.Kernel
    totals: wp.Kernel


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

    vec3, threads = types.vec3, 1 if on_cpu else spec.lanes
    if spec.lanes == 1:
        gradients = gradients_by_vectors(kernel, types)
    else:
        of_atom = atom_functions(func, outlined, types, shape)
        one_type = spec.one_type
        of_edge = edge_functions(
            func, outlined, of_atom, types, shape, one_type=one_type, has_zbl=spec.has_zbl
        )
        functions = (of_atom, of_edge, types, shape)
        gradients = gradients_by_warps(func, kernel, *functions, one_type=one_type, on_cpu=on_cpu)

    @wp.func_native(
        f"""
    #if defined(__CUDA_ARCH__)
        for (int other = {threads} / 2; other > 0; other /= 2)
            for (int k = 0; k < 3; ++k)
                value[k] += __shfl_xor_sync(0xffffffff, value[k], other);
    #endif
        return value;
    """
    )
    def sum_of_lanes(value: wp.vec3d) -> wp.vec3d: ...

    @kernel
    def forces(
        first: int,
        skip: wp.array(dtype=int),
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        reverse: wp.array2d(dtype=int),
        g: wp.array2d(dtype=vec3),
        forces: wp.array(dtype=wp.vec3d),
    ):
        thread = wp.tid()
        i = first + thread / threads
        lane = thread % threads
        if skip[0] != 0:
            return
        total = wp.vec3d()
        for slot in range(lane, counts[i], threads):
            back = reverse[i, slot]
            g_ij = g[i, slot]
            total += wp.vec3d(wp.float64(g_ij[0]), wp.float64(g_ij[1]), wp.float64(g_ij[2]))
            if back >= 0:
                g_ji = g[neighbors[i, slot], back]
                total -= wp.vec3d(wp.float64(g_ji[0]), wp.float64(g_ji[1]), wp.float64(g_ji[2]))
        total = sum_of_lanes(total)
        if lane == 0:
            forces[i] = total

    @kernel
    def chunk_totals(
        first: int,
        skip: wp.array(dtype=int),
        chunks: wp.array(dtype=wp.vec3i),  # system, first atom, last atom + 1
        energies: wp.array(dtype=wp.float64),
        virials: wp.array(dtype=vec6d),
        partial_totals: wp.array(dtype=vec7d),
    ):
        k = first + wp.tid()
        if skip[0] != 0:
            return
        total = vec7d()
        for i in range(chunks[k][1], chunks[k][2]):
            v = virials[i]
            total += vec7d(energies[i], v[0], v[1], v[2], v[3], v[4], v[5])
        partial_totals[k] = total

    @kernel
    def totals(
        first: int,
        skip: wp.array(dtype=int),
        first_chunk: wp.array(dtype=int),
        partial_totals: wp.array(dtype=vec7d),
        result: wp.array(dtype=vec7d),
    ):
        """Energy, and the virial's xx, yy, zz, yz, xz, xy, of each system."""
        system = first + wp.tid()
        if skip[0] != 0:
            return
        total = vec7d()
        for chunk in range(first_chunk[system], first_chunk[system + 1]):
            total += partial_totals[chunk]
        result[system] = total

    return Kernels(module, types, spec.lanes, threads, gradients, forces, chunk_totals, totals)
