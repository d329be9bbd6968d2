"""Energy and gradient of an atom by the lanes of a warp: for GPUs.

Lanes are neighbours, harmonics, neurons or descriptors in turn, and hand on what they have found
in shared memory. Neighbours within the cutoff are picked out first, so that no lane idles for the
skin. s_{n,lm} is a product of two small matrices: a lane owns (l, m) and keeps all n in registers.
Sums are in the order of the neighbours, whatever slots the skin has between them.

A phase is a loop over lanes, which on a GPU is passed once by each: on a CPU the same source runs
with one lane after the other, for tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import warp as wp

from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp_functions import AtomFunctions, EdgeFunctions, Types
from mlff_distiller.kernels.types import WARP, vec6d

N_NEAR = 256
"""Slots of an atom among which the near ones are picked out; with more, all are gone through."""
SHARED_BYTES = 48 * 1024
"""That a block may have without asking for more."""
LARGEST_BLOCK = 4
"""Warps: few, since a block's place is free only when its last atom is done."""
N_TOTALS = 7  # energy, and the virial's xx, yy, zz, yz, xz, xy


class Scratch:
    """Where things lie in a warp's shared memory, in numbers of its float type."""

    def __init__(self, shape: Shape) -> None:
        def end(start: int, length: int) -> int:
            return start + -(-length // 4) * 4  # 16 bytes are loaded at once

        self.angular = end(0, shape.n_max_radial + 1)
        self.harmonics = end(self.angular, shape.n_max_angular + 1)
        row = end(self.harmonics, max(shape.n_harmonics, N_TOTALS))
        # Rows of an odd number of quadruples: eight lanes write to different banks.
        self.row = row if row % 8 else row + 4
        self.descriptors = WARP * self.row
        self.hidden = end(self.descriptors, shape.n_descriptors)
        self.energies = end(self.hidden, shape.neurons)
        self.totals = end(self.energies, WARP)
        self.size = end(self.totals, N_TOTALS)
        self.density = end(0, (shape.n_max_angular + 1) * shape.n_harmonics)


def warps_a_block(shape: Shape, *, float64: bool) -> int:
    """As many as their memory allows, each with an atom of its own."""
    scratch = Scratch(shape)
    size = (scratch.size + scratch.density) * (8 if float64 else 4) + 4 * N_NEAR
    return max(1, min(LARGEST_BLOCK, SHARED_BYTES // size))


@dataclass(frozen=True)
class LaneFunctions:
    """Memory of a warp, and what its lanes do together."""

    shared_density: wp.Function
    shared_scratch: wp.Function
    shared_slots: wp.Function
    flat: wp.Function
    first_lane: wp.Function
    await_lanes: wp.Function
    slot_of: wp.Function
    descriptors: wp.Function


def lane_functions(
    func: Callable[..., Any],
    of_atom: AtomFunctions,
    of_edge: EdgeFunctions,
    types: Types,
    shape: Shape,
) -> LaneFunctions:
    """``func`` decorates what becomes a Warp function."""
    n_radial, n_angular = shape.n_max_radial + 1, shape.n_max_angular + 1
    n_harmonics, n_invariants = shape.n_harmonics, shape.n_invariants
    real, vec2, vec3, vec_r, vec_a = types.real, types.vec2, types.vec3, types.radial, types.angular
    vec_h = types.harmonics
    invariants, separation = of_atom.invariants, of_atom.separation
    pair_of, density = of_edge.pair, of_edge.density
    at = Scratch(shape)
    ROW, AT_ANGULAR, AT_HARMONICS = at.row, at.angular, at.harmonics
    AT_DESCRIPTORS = at.descriptors
    number = "wp::float64" if real is wp.float64 else "wp::float32"
    n_warps = warps_a_block(shape, float64=real is wp.float64)

    def shared(dtype: str, size: int) -> str:
        return f"""
        #if defined(__CUDA_ARCH__)
            __shared__ __align__(16) {dtype} memory[{n_warps * size}];
            return wp::array_t<{dtype}>(memory + threadIdx.x / {WARP} * {size}, {size});
        #else
            return wp::array_t<{dtype}>();
        #endif
        """

    density_size = -(-at.density // n_harmonics)  # of the next warp, aligned

    @wp.func_native(shared(f"wp::vec_t<{n_harmonics}, {number}>", density_size))
    def shared_density() -> wp.array(dtype=vec_h): ...

    @wp.func_native(shared(number, at.size))
    def shared_scratch() -> wp.array(dtype=real): ...

    @wp.func_native(shared("wp::int32", N_NEAR))
    def shared_slots() -> wp.array(dtype=int): ...

    @wp.func_native(f"return wp::array_t<{number}>(({number}*)s.data, {n_angular * n_harmonics});")
    def flat(s: wp.array(dtype=vec_h)) -> wp.array(dtype=real): ...

    @wp.func_native(
        f"""
        #if defined(__CUDA_ARCH__)
            return threadIdx.x % {WARP};
        #else
            return 0;
        #endif
        """
    )
    def first_lane() -> int: ...

    @wp.func_native(
        """
        #if defined(__CUDA_ARCH__)
            __syncwarp();
        #endif
        """
    )
    def await_lanes(): ...

    @wp.func_native(
        """
        #if defined(__CUDA_ARCH__)
            return __ballot_sync(0xffffffff, yes);
        #else
            return votes | ((wp::uint32)yes << lane);
        #endif
        """
    )
    def vote(votes: wp.uint32, lane: int, yes: bool) -> wp.uint32: ...

    @wp.func_native(
        """
        wp::uint32 before = votes & (wp::uint32)((1ull << lane) - 1ull);
        #if defined(__CUDA_ARCH__)
            return __popc(before);
        #else
            return __builtin_popcount(before);
        #endif
        """
    )
    def votes_before(votes: wp.uint32, lane: int) -> int: ...

    @wp.func_native("return (votes >> lane) & 1u;")
    def has_voted(votes: wp.uint32, lane: int) -> bool: ...

    @func
    def angular_of(scratch: wp.array(dtype=real), row: int) -> vec_a:
        g = vec_a()
        for n in range(n_angular):
            g[n] = scratch[row + AT_ANGULAR + n]
        return g

    @func
    def slot_of(near: wp.array(dtype=int), rank: int, n_angular_near: int, count: int) -> int:
        slot = rank
        if count <= N_NEAR:
            if rank < n_angular_near:
                slot = near[rank]
            else:
                slot = near[N_NEAR - 1 - (rank - n_angular_near)]
        return slot

    @func
    def descriptors(
        i: int,
        begin: int,
        end: int,
        positions: wp.array(dtype=wp.vec3d),
        shifts: wp.array(dtype=wp.vec3d),
        types: wp.array(dtype=int),
        n_types: int,
        count: int,
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        cutoffs: wp.array(dtype=vec2),
        c_radial: wp.array2d(dtype=vec_r),
        c_angular: wp.array2d(dtype=vec_a),
        s: wp.array(dtype=vec_h),
        scratch: wp.array(dtype=real),
        near: wp.array(dtype=int),
        g: wp.array2d(dtype=vec3),
    ):
        """Densities s and descriptors of atom i; how many neighbours are near, by which cutoff.

        Where none is, dU_i/dr_ij is zero: ``g`` is told.
        """
        s_flat = flat(s)
        for lane in range(begin, end):
            for k in range(lane, wp.static(n_angular * n_harmonics), WARP):
                s_flat[k] = real(0.0)
            for k in range(lane, n_radial, WARP):
                scratch[AT_DESCRIPTORS + k] = real(0.0)

        # Slots within the angular cutoff from the front, those within the radial one from the back.
        n_front = int(0)
        n_back = int(0)
        if count > N_NEAR:
            n_front = count
        else:
            for start in range(0, count, WARP):
                in_front = wp.uint32(0)
                in_back = wp.uint32(0)
                for lane in range(begin, end):
                    is_angular = bool(False)
                    is_radial = bool(False)
                    slot = start + lane
                    if slot < count:
                        j = neighbors[i, slot]
                        rc = cutoffs[pair_of(i, j, types, n_types)]
                        r = wp.length(separation(i, j, images[i, slot], positions, shifts))
                        is_angular = r < rc[1]
                        is_radial = r < rc[0] and r >= rc[1]
                        if not is_angular and not is_radial:
                            g[i, slot] = vec3()
                    in_front = vote(in_front, lane, is_angular)
                    in_back = vote(in_back, lane, is_radial)
                for lane in range(begin, end):
                    if has_voted(in_front, lane):
                        near[n_front + votes_before(in_front, lane)] = start + lane
                    if has_voted(in_back, lane):
                        near[N_NEAR - 1 - n_back - votes_before(in_back, lane)] = start + lane
                n_front += votes_before(in_front, WARP)
                n_back += votes_before(in_back, WARP)
        n_near = n_front + n_back
        await_lanes()

        # A row for each neighbour, and their sums.
        for start in range(0, n_near, WARP):
            for lane in range(begin, end):
                g_radial = vec_r()
                g_angular = vec_a()
                b = vec_h()
                if start + lane < n_near:
                    slot = slot_of(near, start + lane, n_front, count)
                    j = neighbors[i, slot]
                    pair = pair_of(i, j, types, n_types)
                    d = separation(i, j, images[i, slot], positions, shifts)
                    g_radial, g_angular, b = density(d, pair, cutoffs, c_radial, c_angular)
                row = lane * ROW
                for n in range(n_radial):
                    scratch[row + n] = g_radial[n]
                for n in range(n_angular):
                    scratch[row + AT_ANGULAR + n] = g_angular[n]
                for h in range(n_harmonics):
                    scratch[row + AT_HARMONICS + h] = b[h]
            await_lanes()
            for lane in range(begin, end):
                for n in range(lane, n_radial, WARP):
                    q = scratch[AT_DESCRIPTORS + n]
                    for k in range(wp.min(n_near - start, WARP)):
                        q += scratch[k * ROW + n]
                    scratch[AT_DESCRIPTORS + n] = q
                for h in range(lane, n_harmonics, WARP):
                    total = vec_a()
                    for n in range(n_angular):
                        total[n] = s_flat[n * n_harmonics + h]
                    for k in range(wp.min(n_front - start, WARP)):
                        row = k * ROW
                        total += scratch[row + AT_HARMONICS + h] * angular_of(scratch, row)
                    for n in range(n_angular):
                        s_flat[n * n_harmonics + h] = total[n]
            await_lanes()

        for lane in range(begin, end):
            for n in range(lane, n_angular, WARP):
                q_n = invariants(s[n])
                for k in range(n_invariants):
                    scratch[AT_DESCRIPTORS + n_radial + k * n_angular + n] = q_n[k]
        await_lanes()
        return n_front, n_near

    return LaneFunctions(
        *(shared_density, shared_scratch, shared_slots, flat),
        *(first_lane, await_lanes, slot_of, descriptors),
    )


def gradients_by_warps(
    lanes: LaneFunctions,
    kernel: Callable[..., Any],
    of_atom: AtomFunctions,
    of_edge: EdgeFunctions,
    types: Types,
    shape: Shape,
    *,
    one_type: bool,
    on_cpu: bool,
) -> wp.Kernel:
    """``kernel`` decorates what becomes a Warp kernel."""
    n_radial, n_angular = shape.n_max_radial + 1, shape.n_max_angular + 1
    n_invariants, n_descriptors, neurons = shape.n_invariants, shape.n_descriptors, shape.neurons
    real, vec2, vec3, vec_r, vec_a = types.real, types.vec2, types.vec3, types.radial, types.angular
    vec_h, vec_i, vec_z = types.harmonics, types.invariants, types.zbl
    slopes, separation = of_atom.slopes, of_atom.separation
    pair_of, gradient = of_edge.pair, of_edge.gradient
    shared_density, shared_scratch = lanes.shared_density, lanes.shared_scratch
    shared_slots, first_lane, await_lanes = lanes.shared_slots, lanes.first_lane, lanes.await_lanes
    slot_of, descriptors = lanes.slot_of, lanes.descriptors
    at = Scratch(shape)
    ROW, SIZE, AT_DESCRIPTORS = at.row, at.size, at.descriptors
    AT_HIDDEN, AT_ENERGIES, AT_TOTALS = at.hidden, at.energies, at.totals

    @kernel
    def gradients(
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
        zbl_pairs: wp.array(dtype=vec_z),
        w0: wp.array3d(dtype=real),
        w0_by_input: wp.array3d(dtype=real),
        b0: wp.array2d(dtype=real),
        w1: wp.array2d(dtype=real),
        reference: wp.array(dtype=wp.float64),
        g: wp.array2d(dtype=vec3),
        energies: wp.array(dtype=wp.float64),
        virials: wp.array(dtype=vec6d),
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
        for lane in range(begin, end):
            for k in range(lane, N_TOTALS, WARP):
                scratch[AT_TOTALS + k] = real(0.0)
        count = counts[i]
        n_front, n_near = descriptors(
            i,
            begin,
            end,
            positions,
            shifts,
            types,
            n_types,
            count,
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
            u = real(0.0)
            for m in range(lane, neurons, WARP):
                z = -b0[t, m]
                for k in range(n_descriptors):
                    z += w0_by_input[t, k, m] * scratch[AT_DESCRIPTORS + k]
                active = wp.tanh(z)
                u += w1[t, m] * active
                scratch[AT_HIDDEN + m] = w1[t, m] * (real(1.0) - active * active)
            scratch[AT_ENERGIES + lane] = u
        await_lanes()
        for lane in range(begin, end):
            for k in range(lane, n_descriptors, WARP):
                dq = real(0.0)
                for m in range(neurons):
                    dq += scratch[AT_HIDDEN + m] * w0[t, m, k]
                scratch[AT_DESCRIPTORS + k] = dq
        await_lanes()
        for lane in range(begin, end):
            for n in range(lane, n_angular, WARP):
                dq_n = vec_i()
                for k in range(n_invariants):
                    dq_n[k] = scratch[AT_DESCRIPTORS + n_radial + k * n_angular + n]
                s[n] = slopes(s[n], dq_n)
        await_lanes()

        # Another row for each neighbour: its energy and virial. The first has the network's too.
        for start in range(0, wp.max(n_near, 1), WARP):
            for lane in range(begin, end):
                u = real(0.0)
                d = vec3()
                g_ij = vec3()
                if start == 0:
                    u = scratch[AT_ENERGIES + lane]
                if start + lane < n_near:
                    slot = slot_of(near, start + lane, n_front, count)
                    j = neighbors[i, slot]
                    pair = pair_of(i, j, types, n_types)
                    d = separation(i, j, images[i, slot], positions, shifts)
                    dq_radial = vec_r()
                    for n in range(n_radial):
                        dq_radial[n] = scratch[AT_DESCRIPTORS + n]
                    g_ij, repulsion = gradient(
                        d, pair, cutoffs, c_radial, c_angular, zbl_pairs, dq_radial, s
                    )
                    u += repulsion
                    g[i, slot] = g_ij
                row = lane * ROW
                scratch[row] = u
                scratch[row + 1] = -d[0] * g_ij[0]
                scratch[row + 2] = -d[1] * g_ij[1]
                scratch[row + 3] = -d[2] * g_ij[2]
                scratch[row + 4] = -d[1] * g_ij[2]
                scratch[row + 5] = -d[0] * g_ij[2]
                scratch[row + 6] = -d[0] * g_ij[1]
            await_lanes()
            for lane in range(begin, end):
                for k in range(lane, N_TOTALS, WARP):
                    sum_k = scratch[AT_TOTALS + k]
                    for other in range(WARP):
                        sum_k += scratch[other * ROW + k]
                    scratch[AT_TOTALS + k] = sum_k
            await_lanes()
        for lane in range(begin, end):
            if lane == 0:
                energies[i] = wp.float64(scratch[AT_TOTALS]) + reference[t]
                v = vec6d()
                for k in range(6):
                    v[k] = wp.float64(scratch[AT_TOTALS + 1 + k])
                virials[i] = v

    return gradients
