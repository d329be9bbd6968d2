"""Integrators as Warp kernels: one source for CPU and GPU, one thread per atom, float64.

A step is ``kinetic``, ``couple`` (one thread per system) and ``shift`` of the images, as far as the
ensemble needs them; ``advance``; then forces; then ``kick``. Whatever is random is a function of
(seed, step, atom), so a run may be cut anywhere. ``advance`` sets ``moved`` if an atom has left its
skin; the step's forces and ``kick`` then do nothing but raise ``halt``, which stops all later steps
until the host has found new neighbours. README.md has the equations.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

from mlff_distiller.kernels.neighbors.warp import has_left, on_grid
from mlff_distiller.kernels.types import vec6d, vec7d

real = wp.float64

MULTIPLIERS = wp.constant(wp.vec2ui(wp.uint32(0xD2511F53), wp.uint32(0xCD9E8D57)))
INCREMENTS = wp.constant(wp.vec2ui(wp.uint32(0x9E3779B9), wp.uint32(0xBB67AE85)))
LOW_WORD = wp.constant(wp.uint64(0xFFFFFFFF))
TWO_PI = 6.283185307179586
CELL_BROKE = 1 << 30
"""In ``broken``, plus the number of the system."""
LARGEST_STRAIN = 0.25
"""Strain of one step; beyond it a run stops."""

FIXED, ISOTROPIC, ANISOTROPIC, TRICLINIC = range(4)
"""What of the cell may change: nothing, its size, its three Cartesian extents, all of it."""

OF_ATOM, OF_ENERGY, OF_CELL = 0, 1 << 16, 2 << 16
"""What random numbers are for."""


@dataclass(frozen=True)
class Kernels:
    """In the order of their use."""

    module: wp.Module
    kinetic: wp.Kernel
    couple: wp.Kernel
    advance: wp.Kernel
    kick: wp.Kernel


@wp.func
def philox(counter: wp.vec4ui, seed: wp.uint64) -> wp.vec4ui:
    """Philox4x32-10 (Salmon et al., SC11, 2011): four random words."""
    shift = wp.uint64(32)
    low = LOW_WORD
    k0 = wp.uint32(seed & low)
    k1 = wp.uint32(wp.rshift(seed, shift))
    c = wp.vec4ui(counter[0], counter[1], counter[2], counter[3])
    for _ in range(10):
        a = wp.uint64(c[0]) * wp.uint64(MULTIPLIERS[0])
        b = wp.uint64(c[2]) * wp.uint64(MULTIPLIERS[1])
        c = wp.vec4ui(
            (wp.uint32(wp.rshift(b, shift)) ^ c[1]) ^ k0,
            wp.uint32(b & low),
            (wp.uint32(wp.rshift(a, shift)) ^ c[3]) ^ k1,
            wp.uint32(a & low),
        )
        k0 = k0 + INCREMENTS[0]
        k1 = k1 + INCREMENTS[1]
    return c


@wp.func
def uniforms(seed: wp.uint64, step: wp.int64, index: int, purpose: int) -> wp.vec4d:
    """Four numbers in (0, 1) of one atom's or system's step."""
    of_step = wp.uint64(step)
    counter = wp.vec4ui(
        wp.uint32(of_step & LOW_WORD),
        wp.uint32(wp.rshift(of_step, wp.uint64(32))),
        wp.uint32(index),
        wp.uint32(purpose),
    )
    words = philox(counter, seed)
    scale = real(2.3283064365386963e-10)  # 2^-32
    half = real(0.5)
    return wp.vec4d(
        (real(words[0]) + half) * scale,
        (real(words[1]) + half) * scale,
        (real(words[2]) + half) * scale,
        (real(words[3]) + half) * scale,
    )


@wp.func
def normals(seed: wp.uint64, step: wp.int64, index: int, purpose: int) -> wp.vec4d:
    """Four normal deviates (Box and Muller)."""
    u = uniforms(seed, step, index, purpose)
    r0 = wp.sqrt(-real(2.0) * wp.log(u[0]))
    r1 = wp.sqrt(-real(2.0) * wp.log(u[2]))
    p0 = real(TWO_PI) * u[1]
    p1 = real(TWO_PI) * u[3]
    return wp.vec4d(r0 * wp.cos(p0), r0 * wp.sin(p0), r1 * wp.cos(p1), r1 * wp.sin(p1))


@wp.func
def gamma(shape: wp.float64, seed: wp.uint64, step: wp.int64, index: int) -> wp.float64:
    """A deviate of the gamma distribution, shape >= 1 (Marsaglia and Tsang, 2000)."""
    d = shape - real(1.0) / real(3.0)
    c = real(1.0) / wp.sqrt(real(9.0) * d)
    found = real(-1.0)
    draw = int(1)
    while found < real(0.0):
        x = normals(seed, step, index, OF_ENERGY + draw)[0]
        u = uniforms(seed, step, index, OF_ENERGY + draw + 1)[0]
        draw += 2
        v = real(1.0) + c * x
        v = v * v * v
        if v > real(0.0):
            if wp.log(u) < real(0.5) * x * x + d - d * v + d * wp.log(v):
                found = d * v
    return found


@wp.func
def exponential(e: wp.mat33d) -> wp.mat33d:
    """Exponential of a small matrix, by its series."""
    one = wp.identity(3, dtype=wp.float64)
    m = one + e / real(8.0)
    for k in range(7, 0, -1):
        m = one + e * m / real(k)
    return m


@wp.func
def norm_bound(a: wp.mat33d) -> wp.float64:
    """The lesser of two upper bounds on the largest singular value."""
    rows = real(0.0)
    columns = real(0.0)
    squares = real(0.0)
    for i in range(3):
        row = real(0.0)
        column = real(0.0)
        for j in range(3):
            row += wp.abs(a[i, j])
            column += wp.abs(a[j, i])
            squares += a[i, j] * a[i, j]
        rows = wp.max(rows, row)
        columns = wp.max(columns, column)
    return wp.min(wp.sqrt(squares), wp.sqrt(rows * columns))


@cache
def build(device: str, *, langevin: bool, coupled: bool) -> Kernels:
    """Kernels for ``device``, "cpu" or "cuda"; compiled when first loaded.

    ``langevin``: friction and noise. ``coupled``: ``couple``'s factors act.
    """
    name = f"mlff_distiller_dynamics_{int(langevin)}{int(coupled)}_{device}"
    module = wp.Module(name, None)
    module.options.update(
        enable_backward=False,
        block_dim=1 if device == "cpu" else 128,
        default_grid_stride=False,
    )
    kernel = wp.kernel(module=module)

    @kernel
    def kinetic(
        first: int,
        halt: wp.array(dtype=int),
        chunks: wp.array(dtype=wp.vec3i),  # system, first atom, last atom + 1
        masses: wp.array(dtype=wp.float64),
        velocities: wp.array(dtype=wp.vec3d),
        partial: wp.array(dtype=vec6d),
    ):
        """Half the sum of m v v of each chunk: xx, yy, zz, yz, xz, xy."""
        k = first + wp.tid()
        if halt[0] != 0:
            return
        total = vec6d()
        for i in range(chunks[k][1], chunks[k][2]):
            v = velocities[i]
            m = real(0.5) * masses[i]
            total += m * vec6d(
                v[0] * v[0], v[1] * v[1], v[2] * v[2], v[1] * v[2], v[0] * v[2], v[0] * v[1]
            )
        partial[k] = total

    @kernel
    def couple(
        first: int,
        halt: wp.array(dtype=int),
        step: wp.array(dtype=wp.int64),
        seeds: wp.array(dtype=wp.uint64),
        first_chunk: wp.array(dtype=int),
        partial: wp.array(dtype=vec6d),
        thermal: wp.array(dtype=wp.float64),  # kT
        n_dof: wp.array(dtype=wp.float64),
        decay: wp.float64,  # exp(-time step / thermostat's time); 1 for no thermostat
        totals: wp.array(dtype=vec7d),
        mode: int,
        pressure: wp.array(dtype=wp.float64),
        rate: wp.float64,  # compressibility * time step / barostat's time
        cutoff: wp.float64,
        skin: wp.float64,
        built_dual: wp.array(dtype=wp.mat33d),
        lattice: wp.array(dtype=wp.mat33d),
        stretch: wp.array(dtype=wp.mat33d),
        limit_squared: wp.array(dtype=wp.float64),
        factor: wp.array(dtype=wp.float64),
        growth: wp.array(dtype=wp.mat33d),
        shrinkage: wp.array(dtype=wp.mat33d),
        moved: wp.array(dtype=int),
        broken: wp.array(dtype=int),
    ):
        s = first + wp.tid()
        if halt[0] != 0:
            return
        k = vec6d()
        for chunk in range(first_chunk[s], first_chunk[s + 1]):
            k += partial[chunk]
        kt = thermal[s]
        seed = seeds[s]
        now = step[0]
        energy = k[0] + k[1] + k[2]
        alpha = real(1.0)
        if decay < real(1.0) and energy > real(0.0):
            # Bussi, Donadio and Parrinello (2007), eq. A7.
            r = normals(seed, now, 0, OF_ENERGY)[0]
            others = real(2.0) * gamma(real(0.5) * (n_dof[s] - real(1.0)), seed, now, 0)
            share = (real(1.0) - decay) * real(0.5) * kt / energy
            squared = decay + share * (r * r + others) + real(2.0) * r * wp.sqrt(decay * share)
            alpha = wp.sqrt(wp.max(squared, real(0.0)))
            if r + wp.sqrt(decay / share) < real(0.0):
                alpha = -alpha
        factor[s] = alpha
        if mode != FIXED:
            h = lattice[s]
            volume = wp.abs(wp.determinant(h))
            w = totals[s]
            twice = real(2.0) * alpha * alpha
            pxx = (twice * k[0] + w[1]) / volume - pressure[s]
            pyy = (twice * k[1] + w[2]) / volume - pressure[s]
            pzz = (twice * k[2] + w[3]) / volume - pressure[s]
            pyz = (twice * k[3] + w[4]) / volume
            pxz = (twice * k[4] + w[5]) / volume
            pxy = (twice * k[5] + w[6]) / volume
            third = rate / real(3.0)
            noise = wp.sqrt(real(2.0) * kt * third / volume)
            z = normals(seed, now, 0, OF_CELL)
            if mode == ISOTROPIC:
                e = third * (pxx + pyy + pzz) / real(3.0) + noise * z[0] / wp.sqrt(real(3.0))
                strain = e * wp.identity(3, dtype=wp.float64)
            else:
                exx = third * pxx + noise * z[0]
                eyy = third * pyy + noise * z[1]
                ezz = third * pzz + noise * z[2]
                eyz = real(0.0)
                exz = real(0.0)
                exy = real(0.0)
                if mode == TRICLINIC:
                    y = normals(seed, now, 0, OF_CELL + 1)
                    shear = noise * wp.sqrt(real(0.5))
                    eyz = third * pyz + shear * y[0]
                    exz = third * pxz + shear * y[1]
                    exy = third * pxy + shear * y[2]
                strain = wp.mat33d(exx, exy, exz, exy, eyy, eyz, exz, eyz, ezz)
            if not (norm_bound(strain) < real(LARGEST_STRAIN)):  # NaN is too large
                wp.atomic_max(broken, 0, CELL_BROKE + s)
                moved[0] = 1
                strain = wp.mat33d()
            grow = exponential(strain)
            growth[s] = grow
            shrinkage[s] = exponential(-strain)
            h = h * grow
            a = on_grid(wp.vec3d(h[0, 0], h[0, 1], h[0, 2]))
            b = on_grid(wp.vec3d(h[1, 0], h[1, 1], h[1, 2]))
            c = on_grid(wp.vec3d(h[2, 0], h[2, 1], h[2, 2]))
            h = wp.mat33d(a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2])
            lattice[s] = h
            # |r A| >= (1 - |A - 1|) |r|: what is left of the skin when the cell has changed.
            affine = built_dual[s] * h
            stretch[s] = affine
            spread = norm_bound(affine - wp.identity(3, dtype=wp.float64))
            limit = real(0.5) * ((real(1.0) - spread) * (cutoff + skin) - cutoff)
            limit_squared[s] = limit * limit
            if limit < real(0.0):
                limit_squared[s] = real(-1.0)

    @kernel
    def advance(
        first: int,
        halt: wp.array(dtype=int),
        step: wp.array(dtype=wp.int64),
        seeds: wp.array(dtype=wp.uint64),
        time_step: wp.float64,
        kept: wp.float64,  # exp(-friction * time step)
        thermal: wp.array(dtype=wp.float64),
        factor: wp.array(dtype=wp.float64),
        growth: wp.array(dtype=wp.mat33d),
        shrinkage: wp.array(dtype=wp.mat33d),
        largest_squared: wp.float64,
        system_idx: wp.array(dtype=int),
        first_atom: wp.array(dtype=int),
        inverse_masses: wp.array(dtype=wp.float64),
        forces: wp.array(dtype=wp.vec3d),
        positions: wp.array(dtype=wp.vec3d),
        velocities: wp.array(dtype=wp.vec3d),
        lattice: wp.array(dtype=wp.mat33d),
        stretch: wp.array(dtype=wp.mat33d),
        limit_squared: wp.array(dtype=wp.float64),
        laps: wp.array(dtype=wp.vec3d),
        built: wp.array(dtype=wp.vec3d),
        inside: wp.array(dtype=wp.vec3d),
        moved: wp.array(dtype=int),
        broken: wp.array(dtype=int),
    ):
        i = first + wp.tid()
        if halt[0] != 0:
            return
        s = system_idx[i]
        half = real(0.5) * time_step
        w = inverse_masses[i]
        x = positions[i]
        v = velocities[i]
        if wp.static(coupled):
            v = factor[s] * v
        v = v + half * w * forces[i]
        if wp.static(coupled):
            x = x * growth[s]
            v = v * shrinkage[s]
        if wp.static(langevin):
            travelled = half * v
            z = normals(seeds[s], step[0], i - first_atom[s], OF_ATOM)
            spread = wp.sqrt((real(1.0) - kept * kept) * thermal[s] * w)
            v = kept * v + spread * wp.vec3d(z[0], z[1], z[2])
            travelled = travelled + half * v
        else:
            travelled = time_step * v
        x = x + travelled
        positions[i] = x
        velocities[i] = v
        if not (wp.dot(travelled, travelled) <= largest_squared):
            wp.atomic_max(broken, 0, i + 1)
            moved[0] = 1
        inside[i] = on_grid(x) - laps[i] * lattice[s]
        if has_left(inside[i], built[i], stretch[s], limit_squared[s]):
            moved[0] = 1

    @kernel
    def kick(
        first: int,
        time_step: wp.float64,
        inverse_masses: wp.array(dtype=wp.float64),
        forces: wp.array(dtype=wp.vec3d),
        velocities: wp.array(dtype=wp.vec3d),
        moved: wp.array(dtype=int),
        halt: wp.array(dtype=int),
        step: wp.array(dtype=wp.int64),
    ):
        i = first + wp.tid()
        if halt[0] == 0:  # read by every thread, raised by one: only once moved is set
            if moved[0] == 0:
                velocities[i] = (
                    velocities[i] + real(0.5) * time_step * inverse_masses[i] * forces[i]
                )
                if i == 0:
                    step[0] = step[0] + wp.int64(1)
            elif i == 0:
                halt[0] = 1

    return Kernels(module, kinetic, couple, advance, kick)
