"""The loss of a minibatch, and its derivatives by site energies and by pair gradients, as kernels.

The specification is ``training.loss`` on `Student.predict`: forces and strain gradients are sums of
``g_ij = dU_i/dr_ij``, a loss of Huber errors follows, and back to ``h_ij = dL/dg_ij``:

    F_i = sum_j (g_ij - g_ji),  W = sum_ij r_ij g_ij,  h_ij = dL/dF_i - dL/dF_j + r_ij dL/dW.

No atomics, a few launches, and nothing is kept for a backward pass.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

WARP = 32
vec10d = wp.types.vector(10, wp.float64)
"""An energy, and a tensor by rows."""


@dataclass(frozen=True)
class AdjointKernels:
    """In the order of their use."""

    module: wp.Module
    spreads: type  # of each kind of error
    lanes: int  # threads that share an atom in ``forces``
    vectors: wp.Kernel  # edges
    forces: wp.Kernel  # atoms
    of_atoms: wp.Kernel  # atoms
    of_systems: wp.Kernel  # systems
    of_pairs: wp.Kernel  # edges


@cache
def build(*, float64: bool, device: str) -> AdjointKernels:
    """Kernels for a "cpu" or a "cuda" device; compiled when first loaded."""
    on_cpu = device == "cpu"
    lanes = 1 if on_cpu else WARP
    real = wp.float64 if float64 else wp.float32
    vec3, vec5 = wp.types.vector(3, real), wp.types.vector(5, real)
    vec3s = wp.types.vector(3, wp.int16)
    module = wp.Module(
        f"mlff_distiller_adjoints_{'double' if float64 else 'single'}_{device}", None
    )
    module.options.update(
        enable_backward=False, block_dim=1 if on_cpu else 64, default_grid_stride=False
    )
    func, kernel = wp.func(module=module), wp.kernel(module=module)

    @func
    def huber(error: real, delta: real) -> real:
        size = wp.abs(error)
        value = size - real(0.5) * delta
        if size < delta:
            value = real(0.5) * error * error / delta
        return value

    @func
    def slope(error: real, delta: real) -> real:
        return wp.clamp(error / delta, real(-1.0), real(1.0))

    @kernel
    def vectors(
        first: int,
        i: wp.array(dtype=int),
        j: wp.array(dtype=int),
        shifts: wp.array(dtype=vec3s),
        system: wp.array(dtype=wp.int64),
        positions: wp.array(dtype=wp.vec3d),
        cell: wp.array(dtype=wp.mat33d),
        vectors: wp.array(dtype=wp.vec3d),
        rounded: wp.array(dtype=vec3),
    ):
        """r_ij, in float64 and as the student takes it."""
        e = first + wp.tid()
        s = shifts[e]
        images = wp.vec3d(wp.float64(s[0]), wp.float64(s[1]), wp.float64(s[2]))
        d = positions[j[e]] - positions[i[e]] + images * cell[int(system[i[e]])]
        vectors[e] = d
        rounded[e] = vec3(real(d[0]), real(d[1]), real(d[2]))

    @wp.func_native(
        f"""
    #if defined(__CUDA_ARCH__)
        for (int other = {WARP} / 2; other > 0; other /= 2)
            value += __shfl_xor_sync(0xffffffff, value, other);
    #endif
        return value;
    """
    )
    def sum_of_lanes(value: wp.float64) -> wp.float64: ...

    @kernel
    def forces(
        first: int,
        edges: wp.array(dtype=int),
        reverse: wp.array(dtype=int),
        vectors: wp.array(dtype=wp.vec3d),
        g: wp.array(dtype=vec3),
        energies: wp.array(dtype=wp.float64),
        forces: wp.array(dtype=vec3),
        totals: wp.array(dtype=vec10d),
    ):
        i = first + wp.tid() / lanes
        lane = wp.tid() % lanes
        force = wp.vec3d()
        total = vec10d()
        for e in range(edges[i] + lane, edges[i + 1], lanes):
            own = wp.vec3d(wp.float64(g[e][0]), wp.float64(g[e][1]), wp.float64(g[e][2]))
            back = g[reverse[e]]
            force += own - wp.vec3d(wp.float64(back[0]), wp.float64(back[1]), wp.float64(back[2]))
            r = vectors[e]
            for a in range(3):
                for b in range(3):
                    total[1 + 3 * a + b] += r[a] * own[b]
        for a in range(3):
            force[a] = sum_of_lanes(force[a])
        for a in range(1, 10):
            total[a] = sum_of_lanes(total[a])
        if lane == 0:
            total[0] = energies[i]
            forces[i] = vec3(real(force[0]), real(force[1]), real(force[2]))
            totals[i] = total

    @func
    def curved(difference: vec3, inverse: real, spread: real, delta: real):
        """The Huber error of a probe's curvature, and its slope by the first frame's force."""
        value = real(0.0)
        by_force = vec3()
        for a in range(3):
            error = difference[a] * inverse / spread
            value += huber(error, delta)
            by_force[a] = slope(error, delta) * inverse / spread
        return value, by_force

    @kernel
    def of_atoms(
        first: int,
        forces: wp.array(dtype=vec3),
        wanted: wp.array(dtype=vec3),
        energies: wp.array(dtype=wp.float64),
        wanted_energies: wp.array(dtype=wp.float64),
        atom_weights: wp.array(dtype=real),
        site_weights: wp.array(dtype=real),
        partner: wp.array(dtype=wp.int64),
        inverse_distance: wp.array(dtype=real),
        scales: wp.array(dtype=real),  # weight over norm of each kind
        spreads: vec5,
        delta: real,
        by_force: wp.array(dtype=vec3),
        by_energy: wp.array(dtype=real),
        losses: wp.array(dtype=real),
    ):
        i = first + wp.tid()
        difference = forces[i] - wanted[i]
        loss = real(0.0)
        v = vec3()
        weight = atom_weights[i] * scales[0]
        for a in range(3):
            error = difference[a] / spreads[0]
            loss += weight * huber(error, delta)
            v[a] = weight * slope(error, delta) / spreads[0]
        site = real((energies[i] - wanted_energies[i]) / wp.float64(spreads[1]))
        loss += scales[1] * site_weights[i] * huber(site, delta)
        by_energy[i] = scales[1] * site_weights[i] * slope(site, delta) / spreads[1]
        other = int(partner[i])
        if other != i and scales[4] != real(0.0):
            across = difference - (forces[other] - wanted[other])
            if inverse_distance[i] > real(0.0):
                value, bent = curved(across, inverse_distance[i], spreads[4], delta)
                weight = atom_weights[i] * scales[4]
                loss += weight * value
                v += weight * bent
            if inverse_distance[other] > real(0.0):
                value, bent = curved(-across, inverse_distance[other], spreads[4], delta)
                v -= atom_weights[other] * scales[4] * bent
        by_force[i] = v
        losses[i] = loss

    @kernel
    def of_systems(
        first: int,
        totals: wp.array(dtype=vec10d),
        energy: wp.array(dtype=wp.float64),
        stress: wp.array(dtype=wp.mat33d),
        sizes: wp.array(dtype=real),
        volume: wp.array(dtype=wp.float64),
        system_weights: wp.array(dtype=real),
        stress_weights: wp.array(dtype=real),
        scales: wp.array(dtype=real),
        spreads: vec5,
        delta: real,
        by_energy: wp.array(dtype=real),
        by_strain: wp.array(dtype=wp.mat33d),
        losses: wp.array(dtype=real),
    ):
        k = first + wp.tid()
        total = totals[k]
        size = wp.float64(sizes[k])
        error = real((total[0] - energy[k]) / size / wp.float64(spreads[2]))
        weight = scales[2] * system_weights[k]
        loss = weight * huber(error, delta)
        by_energy[k] = weight * slope(error, delta) / (sizes[k] * spreads[2])
        weight = scales[3] * stress_weights[k] / real(9.0)
        by = wp.mat33d()
        if weight != real(0.0):
            spread = wp.float64(spreads[3])
            for a in range(3):
                for b in range(3):
                    own = wp.float64(0.5) * (total[1 + 3 * a + b] + total[1 + 3 * b + a])
                    error = real((own / volume[k] - stress[k][a, b]) / spread)
                    loss += weight * huber(error, delta)
                    part = wp.float64(weight * slope(error, delta)) / (spread * volume[k])
                    by[a, b] += wp.float64(0.5) * part
                    by[b, a] += wp.float64(0.5) * part
        by_strain[k] = by
        losses[k] = loss

    @kernel
    def of_pairs(
        first: int,
        i: wp.array(dtype=int),
        j: wp.array(dtype=int),
        system: wp.array(dtype=wp.int64),
        vectors: wp.array(dtype=wp.vec3d),
        by_force: wp.array(dtype=vec3),
        by_strain: wp.array(dtype=wp.mat33d),
        h: wp.array(dtype=vec3),
    ):
        e = first + wp.tid()
        strained = by_strain[int(system[i[e]])] * vectors[e]
        own = by_force[i[e]] - by_force[j[e]]
        h[e] = own + vec3(real(strained[0]), real(strained[1]), real(strained[2]))

    return AdjointKernels(module, vec5, lanes, vectors, forces, of_atoms, of_systems, of_pairs)
