"""A section of ``md_gpu.py``: what part of the device's arithmetic and bandwidth a step uses."""

import numpy as np
import torch
import warp as wp
from md_bench import crystal, rate, timed

CHAINS = 8
"""Independent multiplications and additions of a thread, more than an addition takes in cycles."""
vec_chains = wp.types.vector(CHAINS, wp.float32)


@wp.kernel(enable_backward=False)
def fused_chains(n: int, a: float, b: float, out: wp.array(dtype=float)):
    """16 n times x = a x + b in each of the thread's chains."""
    x = vec_chains(float(wp.tid()))
    y = vec_chains(b)
    for _k in range(n):
        for _m in range(16):
            x = a * x + y
    out[wp.tid()] = wp.dot(x, y)


def operations_a_second(bench):
    """float32, of fused multiply-adds alone, each counted as two."""
    n_threads, n = (256, 16) if bench.tiny else (2**21, 256)
    out = wp.zeros(n_threads, dtype=wp.float32, device=bench.device)
    arguments = [n, 0.999, 0.001, out]

    def launch():
        wp.launch(fused_chains, n_threads, arguments, device=bench.device, block_dim=256)

    return 2 * 16 * n * CHAINS * n_threads / (1e-6 * timed(bench, launch))


def bytes_a_second(bench):
    """Read and written by a large copy on the device."""
    n_bytes = 2**24 if bench.tiny else 2**32
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.zeros_like(source)
    seconds = 1e-6 * timed(bench, lambda: target.copy_(source), repeats=10)
    return 2 * n_bytes / seconds


def operations(shape, near_radial, near_angular):
    """float32 operations an atom and step of the algorithm, not of the hardware.

    A multiplication, an addition, a division, a root and a transcendental function are one each.
    The algorithm goes over the neighbours twice, for the descriptors and for their gradient, and
    evaluates the basis each time; formulas are in ``kernels/nep/README.md``. Neighbours in the
    skin, sums in float64 and repulsion, which no pair of a crystal feels, are not counted.
    """
    n_r, n_a = shape.n_max_radial + 1, shape.n_max_angular + 1
    k_r, k_a = shape.basis_size_radial + 1, shape.basis_size_angular + 1
    harmonics, descriptors = shape.n_harmonics, shape.n_descriptors
    separation = 6 + 6 + 3  # r_j + shift - r_i, its length, its direction

    def basis(k):  # the switch and x; for each k, T_k = 2x T_{k-1} - T_{k-2} and f_k
        return 8 + 4 * k

    def slopes(k):  # for each k, U_k = 2 (T_k + x U_{k-1}) - U_{k-2} and df_k/dr
        return 5 + 7 * k

    # Descriptors: q_n += sum_k c_nk f_k; s_nlm += (sum_k c_nk f_k) b_lm.
    radial = separation + basis(k_r) + 2 * n_r * k_r + n_r
    angular = basis(k_a) + 2 * n_a * k_a + 2 * harmonics + 2 * n_a * harmonics
    # Gradient: sum_n dU/dq_n dg_n/dr; then g_n and dg_n/dr, each with dU/ds_nlm, then with b_lm
    # and its derivative, and the direction's part put together.
    radial += separation + basis(k_r) + slopes(k_r) + 2 * n_r * k_r + 2 * n_r
    angular += basis(k_a) + slopes(k_a) + 2 * 2 * n_a * k_a + 2 * 2 * n_a * harmonics
    angular += 2 * harmonics + 2 * harmonics + 4 * harmonics + 20
    radial += 9 + 12  # g_ij to its grid, and the virial
    # Of the atom itself: invariants and their slopes; forward and gradient of the network.
    own = n_a * (6 * harmonics + 65 * shape.has_q222 + 25 * shape.has_q1111)
    own += 2 * 2 * descriptors * shape.neurons + 6 * shape.neurons
    return near_radial * radial + near_angular * angular + own


def bytes_moved(slots):
    """Bytes an atom and NVE step, of the algorithm: each array once for each kernel that needs it.

    A slot: neighbour and image for the gradients, which write g_ij; neighbour, reverse, g_ij and
    g_ji for the forces. What neighbours share of positions comes from the cache.
    """
    slot = 4 + 4 + 12 + 4 + 4 + 12 + 12
    evaluation = 24 + 4 + 8 + 48 + 4 + 24  # position, count, energy, virial; count, force
    # Masses, forces, velocities (read, written), positions (both), laps, built, inside, system;
    # then masses, forces, velocities for the other half of the kick.
    dynamics = (8 + 24 + 48 + 48 + 24 + 24 + 24 + 4) + (8 + 24 + 48)
    return slot * slots + evaluation + dynamics


def mean_neighbors(forces):
    """Within the radial and the angular cutoff, of a thousand atoms; and slots in use, of all."""
    near, sample = forces.neighbors, min(1000, forces.systems.n_atoms)
    counts, inside = near.counts.numpy(), near.inside.numpy()
    table, images = near.neighbors[:sample].numpy(), near.images[:sample].numpy()
    used = np.arange(near.capacity) < counts[:sample, None]
    j, image = np.where(used, table, 0), np.where(used, images, 0)
    vectors = inside[j] + near.shifts.numpy()[image] - inside[:sample, None]
    distances = np.where(used, np.linalg.norm(vectors, axis=-1), np.inf)
    cutoffs = forces._model["cutoffs"].numpy().max(0)
    radial, angular = ((distances < cutoff).sum(1).mean() for cutoff in cutoffs)
    return float(radial), float(angular), float(counts.mean())


def limits(bench):
    """At 10^6 atoms: operations and bytes that a step needs, over what its time would allow.

    Both are counts of the algorithm (``operations``, ``bytes_moved``), not the hardware's: what
    caches, spills and idle lanes add is not in them. For GPUs: on a CPU the arithmetic is that of
    one core without vectors.
    """
    arithmetic, bandwidth = operations_a_second(bench), bytes_a_second(bench)
    torch.cuda.empty_cache()
    bench.note("limits", {"TFLOP_per_s": 1e-12 * arithmetic, "GB_per_s": 1e-9 * bandwidth})
    for element in ("Si", "Cu"):
        simulation = bench.simulation(element, crystal(element, 500 if bench.tiny else 1_000_000))
        seconds, _, _ = rate(bench, simulation, 0.2 if bench.tiny else 2.0, 10)
        forces, n_atoms = simulation.engine, simulation.engine.systems.n_atoms
        radial, angular, slots = mean_neighbors(forces)
        shape = forces.student.shape
        n_operations, n_bytes = operations(shape, radial, angular), bytes_moved(slots)
        row = {"element": element, "n_atoms": n_atoms, "ms": 1e3 * seconds}
        row |= {"near_radial": radial, "near_angular": angular, "slots": slots}
        row |= {"kFLOP_an_atom": 1e-3 * n_operations, "bytes_an_atom": n_bytes}
        row |= {"of_arithmetic": n_operations * n_atoms / (seconds * arithmetic)}
        bench.note("limits", row | {"of_bandwidth": n_bytes * n_atoms / (seconds * bandwidth)})
        del simulation
