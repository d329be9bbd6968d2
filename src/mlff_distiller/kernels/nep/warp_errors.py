"""Distances of atoms to the training set as a Warp kernel, for estimates of errors.

Descriptors are formed once more, by a thread of a CPU or a warp of a GPU for each atom, so that a
step without a look costs what it did. The module is one of its own: it is compiled when estimates
are first asked for. `ErrorModel` has the formulas.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import warp as wp

from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp import CPU_FLAGS, Specialization
from mlff_distiller.kernels.nep.warp_functions import Types, atom_functions, edge_functions
from mlff_distiller.kernels.nep.warp_lanes import (
    N_NEAR,
    LaneFunctions,
    Scratch,
    lane_functions,
    warps_a_block,
)
from mlff_distiller.kernels.types import WARP


@dataclass(frozen=True)
class ErrorKernels:
    """With the types of their arrays."""

    module: wp.Module
    threads: int  # that a launch takes for an atom
    distances: wp.Kernel


@cache
def build_errors(spec: Specialization) -> ErrorKernels:
    """For ``spec``; compiled when first loaded."""
    shape, on_cpu = spec.shape, spec.device == "cpu"
    types = Types.of(shape, float64=spec.float64)
    module = wp.Module(f"{spec.name}_errors", None)
    block_dim = 1 if on_cpu else WARP * warps_a_block(shape, float64=spec.float64)
    module.options.update(enable_backward=False, block_dim=block_dim, default_grid_stride=False)
    if on_cpu:
        module.options["cpu_compiler_flags"] = CPU_FLAGS
    func, kernel = wp.func(module=module), wp.kernel(module=module)
    outlined = wp.func(module=module, inline=False if on_cpu else None)
    one_type = spec.one_type
    of_atom = atom_functions(func, outlined, types, shape)
    of_edge = edge_functions(
        func, outlined, of_atom, types, shape, one_type=one_type, has_zbl=spec.has_zbl
    )
    if spec.lanes > 1:
        functions = (of_atom, of_edge, types, shape)
        distances = _distances_by_warps(
            lane_functions(func, *functions),
            *(kernel, types, shape),
            one_type=one_type,
            on_cpu=on_cpu,
        )
        return ErrorKernels(module, 1 if on_cpu else WARP, distances)

    real, vec2, vec3, vec_r, vec_a = types.real, types.vec2, types.vec3, types.radial, types.angular
    vec_h, vec_d = types.harmonics, types.descriptors
    pair_of, density = of_edge.pair, of_edge.density
    invariants, separation = of_atom.invariants, of_atom.separation
    n_radial, n_angular, neurons = shape.n_max_radial + 1, shape.n_max_angular + 1, shape.neurons
    n_invariants = shape.n_invariants
    vec_m = wp.types.vector(neurons, real)

    @outlined
    def distance(
        q: vec_d,
        t: int,
        w0: wp.array2d(dtype=vec_d),
        b0: wp.array2d(dtype=real),
        mean: wp.array(dtype=vec_m),
        whitening: wp.array2d(dtype=vec_m),
    ) -> real:
        hidden = vec_m()
        for m in range(neurons):
            hidden[m] = wp.tanh(wp.dot(w0[t, m], q) - b0[t, m])
        hidden -= mean[t]
        total = real(0.0)
        for m in range(neurons):
            along = wp.dot(whitening[t, m], hidden)
            total += along * along
        return total

    @kernel
    def distances(
        first: int,
        skip: wp.array(dtype=int),
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
        types: wp.array(dtype=int),
        n_types: int,
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        cutoffs: wp.array(dtype=vec2),
        c_radial: wp.array2d(dtype=vec_r),
        c_angular: wp.array2d(dtype=vec_a),
        w0: wp.array2d(dtype=vec_d),
        b0: wp.array2d(dtype=real),
        mean: wp.array(dtype=vec_m),
        whitening: wp.array2d(dtype=vec_m),
        _g: wp.array2d(dtype=vec3),
        squares: wp.array(dtype=real),
    ):
        """d_i^2 of each atom."""
        i = first + wp.tid()
        if skip[0] != 0:
            return
        q_radial = vec_r()
        s = wp.zeros(shape=(n_angular,), dtype=vec_h)
        for slot in range(counts[i]):
            j = neighbors[i, slot]
            pair = pair_of(i, j, types, n_types)
            d = separation(i, j, images[i, slot], positions, shifts)
            g_radial, g_angular, b = density(d, pair, cutoffs, c_radial, c_angular)
            q_radial += g_radial
            if wp.length(d) < cutoffs[pair][1]:
                for n in range(n_angular):
                    s[n] = s[n] + g_angular[n] * b
        q = vec_d()
        for n in range(n_radial):
            q[n] = q_radial[n]
        for n in range(n_angular):
            q_n = invariants(s[n])
            for k in range(n_invariants):
                q[n_radial + k * n_angular + n] = q_n[k]
        t = int(0)
        if wp.static(not one_type):
            t = types[i]
        squares[i] = distance(q, t, w0, b0, mean, whitening)

    return ErrorKernels(module, 1, distances)


def _distances_by_warps(
    lanes: LaneFunctions,
    kernel: Callable[..., Any],
    types: Types,
    shape: Shape,
    *,
    one_type: bool,
    on_cpu: bool,
) -> wp.Kernel:
    """d_i^2 of `ErrorModel`; ``kernel`` decorates what becomes a Warp kernel."""
    n_angular, n_descriptors = shape.n_max_angular + 1, shape.n_descriptors
    neurons = shape.neurons
    real, vec2, vec3, vec_r, vec_a = types.real, types.vec2, types.vec3, types.radial, types.angular
    vec_h = types.harmonics
    shared_density, shared_scratch = lanes.shared_density, lanes.shared_scratch
    shared_slots, first_lane, await_lanes = lanes.shared_slots, lanes.first_lane, lanes.await_lanes
    descriptors = lanes.descriptors
    at = Scratch(shape)
    SIZE, AT_DESCRIPTORS, AT_HIDDEN, AT_SUMS = at.size, at.descriptors, at.hidden, at.energies

    @kernel
    def distances(
        first: int,
        skip: wp.array(dtype=int),
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
        types: wp.array(dtype=int),
        n_types: int,
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        cutoffs: wp.array(dtype=vec2),
        c_radial: wp.array2d(dtype=vec_r),
        c_angular: wp.array2d(dtype=vec_a),
        w0_by_input: wp.array3d(dtype=real),
        b0: wp.array2d(dtype=real),
        mean: wp.array2d(dtype=real),
        whitening_by_input: wp.array3d(dtype=real),
        g: wp.array2d(dtype=vec3),
        squares: wp.array(dtype=real),
    ):
        if skip[0] != 0:
            return
        if wp.static(on_cpu):
            i = first + wp.tid()
            begin = 0
            end = WARP
            s = wp.zeros(shape=(n_angular,), dtype=vec_h)
            scratch = wp.zeros(shape=(SIZE,), dtype=real)
            near = wp.zeros(shape=(N_NEAR,), dtype=int)
        else:
            i = first + wp.tid() / WARP
            begin = first_lane()
            end = begin + 1
            s = shared_density()
            scratch = shared_scratch()
            near = shared_slots()
        _n_front, _n_near = descriptors(
            i,
            begin,
            end,
            positions,
            shifts,
            types,
            n_types,
            counts[i],
            neighbors,
            images,
            cutoffs,
            c_radial,
            c_angular,
            s,
            scratch,
            near,
            g,
        )
        t = int(0)
        if wp.static(not one_type):
            t = types[i]
        for lane in range(begin, end):
            for m in range(lane, neurons, WARP):
                z = -b0[t, m]
                for k in range(n_descriptors):
                    z += w0_by_input[t, k, m] * scratch[AT_DESCRIPTORS + k]
                scratch[AT_HIDDEN + m] = wp.tanh(z) - mean[t, m]
        await_lanes()
        for lane in range(begin, end):
            total = real(0.0)
            for m in range(lane, neurons, WARP):
                along = real(0.0)
                for k in range(neurons):
                    along += whitening_by_input[t, k, m] * scratch[AT_HIDDEN + k]
                total += along * along
            scratch[AT_SUMS + lane] = total
        await_lanes()
        for lane in range(begin, end):
            if lane == 0:
                total = real(0.0)
                for other in range(WARP):
                    total += scratch[AT_SUMS + other]
                squares[i] = total

    return distances
