"""NEP4 energies, forces and virial as Warp kernels: one source for CPU and GPU.

Three passes with one thread an atom, and no atomics, so results repeat bit for bit:

1. ``density``: radial descriptors and s_{n,lm}, summed over the atom's neighbours.
2. ``network``: U_i and dU_i/dq; s_{n,lm} is replaced by dU_i/ds_{n,lm}.
3. ``force``: b_lm(-u) = (-1)^l b_lm(u), so a thread adds the weights of both ends of a pair and
   contracts once: F_i = sum_j d/dr_ij sum_{n,lm} (w_i + (-1)^l w_j)_{n,lm} g_n(r_ij) b_lm(u_ij).

What is gathered from a neighbour lies together, [atom, n] of all harmonics; neighbours are
[slot, atom], so that lanes with one atom each read them coalesced. ``first`` is the atom of the
launch's first thread: a CPU gives each core a range of atoms. Where ``skip`` is set nothing is
done: steps that were sent to the device before it was known that neighbours must be found anew.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

from mlff_distiller.kernels.nep.reference import Shape
from mlff_distiller.kernels.nep.warp_functions import (
    Types,
    atom_functions,
    radial_functions,
)

vec6d = wp.types.vector(6, wp.float64)
vec7d = wp.types.vector(7, wp.float64)

# A CPU sums in vectors only with leave to reorder; NaN and infinity keep their meaning.
CPU_FLAGS = (
    "-march=native -mreassociate -fno-signed-zeros -freciprocal-math -ffp-contract=fast"
    " -mllvm=-slp-recursion-max-depth=4"
)


@dataclass(frozen=True)
class Specialization:
    """What the kernels are compiled for."""

    shape: Shape
    one_type: bool
    has_zbl: bool
    float64: bool
    device: str  # "cpu" or "cuda"

    @property
    def name(self) -> str:
        s = self.shape
        sizes = (s.n_max_radial, s.n_max_angular, s.basis_size_radial, s.basis_size_angular)
        flags = (s.has_q222, s.has_q1111, self.one_type, self.has_zbl, self.float64)
        numbers = (*sizes, s.l_max, s.neurons, *map(int, flags))
        return "mlff_distiller_nep_" + "_".join(map(str, numbers)) + f"_{self.device}"


@dataclass(frozen=True)
class Kernels:
    """In the order of their use, with the types of their arrays."""

    module: wp.Module
    types: Types
    density: wp.Kernel
    network: wp.Kernel
    force: wp.Kernel
    chunk_totals: wp.Kernel
    totals: wp.Kernel


@cache
def build(spec: Specialization) -> Kernels:
    """Kernels for ``spec``; compiled when first loaded."""
    shape = spec.shape
    module = wp.Module(spec.name, None)
    module.options.update(
        enable_backward=False,
        block_dim=1 if spec.device == "cpu" else 128,
        default_grid_stride=False,
    )
    if spec.device == "cpu":
        module.options["cpu_compiler_flags"] = CPU_FLAGS
    func, kernel = wp.func(module=module), wp.kernel(module=module)
    # Out of line on the CPU these sums run in vectors, and compile in half the time.
    outlined = wp.func(module=module, inline=False if spec.device == "cpu" else None)

    n_radial, n_angular = shape.n_max_radial + 1, shape.n_max_angular + 1
    n_invariants, neurons = shape.n_invariants, shape.neurons
    one_type, has_zbl = spec.one_type, spec.has_zbl
    types = Types.of(shape, float64=spec.float64)
    real, vec2, vec3, vec_r, vec_a = types.real, types.vec2, types.vec3, types.radial, types.angular
    vec_h, vec_i, vec_d, vec_z = types.harmonics, types.invariants, types.descriptors, types.zbl
    mat_s = wp.types.matrix((n_angular, shape.n_harmonics), real)
    signs = [(-1.0) ** l for l in range(1, shape.l_max + 1) for _ in range(2 * l + 1)]
    parity = wp.constant(vec_h(*signs))

    of_atom = atom_functions(func, outlined, types, shape)
    harmonics, turning, separation = of_atom.harmonics, of_atom.turning, of_atom.separation
    invariants, slopes, zbl = of_atom.invariants, of_atom.slopes, of_atom.zbl
    radial = radial_functions(func, types, shape.basis_size_radial + 1, vec_r)
    angular = radial_functions(func, types, shape.basis_size_angular + 1, vec_a)
    radial_values, radial_slopes, contract_r = radial.values, radial.with_slopes, radial.contract
    angular_values, angular_slopes, contract_a = (
        angular.values,
        angular.with_slopes,
        angular.contract,
    )

    @kernel
    def density(
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
        s: wp.array2d(dtype=vec_h),
        q_radial: wp.array(dtype=vec_r),
    ):
        i = first + wp.tid()
        if skip[0] != 0:
            return
        q = vec_r()
        total = mat_s()
        pair = int(0)
        for slot in range(counts[i]):
            j = neighbors[slot, i]
            if wp.static(not one_type):
                pair = types[i] * n_types + types[j]
            d = separation(i, j, images[slot, i], positions, shifts)
            r = wp.length(d)
            rc = cutoffs[pair]
            if r < rc[0]:
                q += contract_r(c_radial, pair, radial_values(r, rc[0]))
            if r < rc[1]:
                g = contract_a(c_angular, pair, angular_values(r, rc[1]))
                b = harmonics(d / r)
                for n in range(n_angular):
                    total[n] += g[n] * b
        q_radial[i] = q
        for n in range(n_angular):
            s[i, n] = total[n]

    @kernel
    def network(
        first: int,
        skip: wp.array(dtype=int),
        types: wp.array(dtype=int),
        scaler: wp.array(dtype=vec_d),
        w0: wp.array2d(dtype=vec_d),
        b0: wp.array2d(dtype=real),
        w1: wp.array2d(dtype=real),
        reference: wp.array(dtype=wp.float64),
        s: wp.array2d(dtype=vec_h),
        q_radial: wp.array(dtype=vec_r),
        energies: wp.array(dtype=wp.float64),
    ):
        i = first + wp.tid()
        if skip[0] != 0:
            return
        t = int(0)
        if wp.static(not one_type):
            t = types[i]
        q = vec_d()
        radial = q_radial[i]
        for n in range(n_radial):
            q[n] = radial[n]
        for n in range(n_angular):
            q_n = invariants(s[i, n])
            for k in range(n_invariants):
                q[n_radial + k * n_angular + n] = q_n[k]
        scale = scaler[0]
        q = wp.cw_mul(q, scale)
        dq = vec_d()
        u = real(0.0)
        for m in range(neurons):
            w = w0[t, m]
            active = wp.tanh(wp.dot(w, q) - b0[t, m])
            u += w1[t, m] * active
            dq += (w1[t, m] * (real(1.0) - active * active)) * w
        energies[i] = wp.float64(u) + reference[t]
        dq = wp.cw_mul(dq, scale)
        for n in range(n_radial):
            radial[n] = dq[n]
        q_radial[i] = radial
        for n in range(n_angular):
            dq_n = vec_i()
            for k in range(n_invariants):
                dq_n[k] = dq[n_radial + k * n_angular + n]
            s[i, n] = slopes(s[i, n], dq_n)

    @outlined
    def both_ends(ds: wp.array2d(dtype=vec_h), i: int, j: int, g: vec_a, dg: vec_a):
        by_r = vec_h()
        by_u = vec_h()
        for n in range(n_angular):
            both = ds[i, n] + wp.cw_mul(ds[j, n], parity)
            by_r += dg[n] * both
            by_u += g[n] * both
        return by_r, by_u

    @outlined
    def each_end(
        ds: wp.array2d(dtype=vec_h),
        i: int,
        j: int,
        g: vec_a,
        dg: vec_a,
        g_back: vec_a,
        dg_back: vec_a,
    ):
        by_r = vec_h()
        by_u = vec_h()
        for n in range(n_angular):
            mine = ds[i, n]
            theirs = wp.cw_mul(ds[j, n], parity)
            by_r += dg[n] * mine + dg_back[n] * theirs
            by_u += g[n] * mine + g_back[n] * theirs
        return by_r, by_u

    @kernel
    def force(
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
        ds: wp.array2d(dtype=vec_h),
        dq_radial: wp.array(dtype=vec_r),
        energies: wp.array(dtype=wp.float64),
        forces: wp.array(dtype=wp.vec3d),
        virials: wp.array(dtype=vec6d),
    ):
        i = first + wp.tid()
        if skip[0] != 0:
            return
        total = vec3()
        diagonal = vec3()
        off_diagonal = vec3()
        repulsion = real(0.0)
        own = dq_radial[i]
        pair = int(0)
        back = int(0)
        for slot in range(counts[i]):
            j = neighbors[slot, i]
            if wp.static(not one_type):
                pair = types[i] * n_types + types[j]
                back = types[j] * n_types + types[i]
            d = separation(i, j, images[slot, i], positions, shifts)
            r = wp.length(d)
            rc = cutoffs[pair]
            if r < wp.max(rc[0], rc[1]):
                u = d / r
                along = real(0.0)
                pull = vec3()
                if r < rc[0]:
                    _f, df = radial_slopes(r, rc[0])
                    if wp.static(one_type):
                        along += wp.dot(own + dq_radial[j], contract_r(c_radial, pair, df))
                    else:
                        along += wp.dot(own, contract_r(c_radial, pair, df))
                        along += wp.dot(dq_radial[j], contract_r(c_radial, back, df))
                if r < rc[1]:
                    h, dh = angular_slopes(r, rc[1])
                    g = contract_a(c_angular, pair, h)
                    dg = contract_a(c_angular, pair, dh)
                    if wp.static(one_type):
                        by_r, by_u = both_ends(ds, i, j, g, dg)
                    else:
                        g_back = contract_a(c_angular, back, h)
                        dg_back = contract_a(c_angular, back, dh)
                        by_r, by_u = each_end(ds, i, j, g, dg, g_back, dg_back)
                    along += wp.dot(by_r, harmonics(u))
                    pull = turning(by_u, u) / r
                    along -= wp.dot(pull, u)
                if wp.static(has_zbl):
                    p = zbl_pairs[pair]
                    if r < p[1]:
                        half = zbl(r, p)
                        repulsion += half[0]
                        along += real(2.0) * half[1]
                pull += along * u
                total += pull
                diagonal += wp.cw_mul(d, pull)
                off_diagonal += vec3(d[1] * pull[2], d[0] * pull[2], d[0] * pull[1])
        forces[i] = wp.vec3d(wp.float64(total[0]), wp.float64(total[1]), wp.float64(total[2]))
        if wp.static(has_zbl):
            energies[i] = energies[i] + wp.float64(repulsion)
        # Every pair is met from both ends.
        half_d = real(-0.5) * diagonal
        half_o = real(-0.5) * off_diagonal
        virials[i] = vec6d(
            wp.float64(half_d[0]),
            wp.float64(half_d[1]),
            wp.float64(half_d[2]),
            wp.float64(half_o[0]),
            wp.float64(half_o[1]),
            wp.float64(half_o[2]),
        )

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

    return Kernels(module, types, density, network, force, chunk_totals, totals)
