"""Join chosen pieces of tables that lie on a device, where they are, into tables of a fixed size.

Pieces are graphs of systems, atoms and pairs (the frames of a training set); what is joined has
the indices of the whole, and behind it padding. One launch a table.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp


@dataclass(frozen=True)
class GatherKernels:
    """One thread for each row of the table that is made."""

    module: wp.Module
    systems: wp.Kernel
    atoms: wp.Kernel
    pairs: wp.Kernel


@cache
def build(*, float64: bool, device: str) -> GatherKernels:
    """Kernels for a "cpu" or a "cuda" device; compiled when first loaded.

    Row k of ``starts`` (n_chosen + 1, 6) holds where the k-th chosen piece starts: in the source's
    systems, atoms and pairs, and in those that are made; the last row holds where they end. Rows
    beyond are padding, which the last row of each source is.
    """
    real = wp.float64 if float64 else wp.float32
    vec3 = wp.types.vector(3, real)
    vec3s = wp.types.vector(3, wp.int16)
    vec6i = wp.types.vector(6, wp.int32)
    module = wp.Module(f"mlff_distiller_gather_{'double' if float64 else 'single'}_{device}", None)
    module.options.update(
        enable_backward=False, block_dim=1 if device == "cpu" else 128, default_grid_stride=False
    )
    func, kernel = wp.func(module=module), wp.kernel(module=module)

    @func
    def piece_of(row: int, column: int, starts: wp.array(dtype=vec6i), n: int) -> int:
        """The last of n pieces that starts at or before ``row``; n where it is padding."""
        low = int(0)
        high = int(n)
        if row < starts[n][column]:
            while high - low > 1:
                middle = (low + high) / 2
                if starts[middle][column] <= row:
                    low = middle
                else:
                    high = middle
            return low
        return n

    @kernel
    def systems(
        first: int,
        n: wp.array(dtype=int),
        starts: wp.array(dtype=vec6i),
        n_source: int,
        cell: wp.array(dtype=wp.mat33d),
        energy: wp.array(dtype=wp.float64),
        stress: wp.array(dtype=wp.mat33d),
        sizes: wp.array(dtype=real),
        volume: wp.array(dtype=wp.float64),
        system_weights: wp.array(dtype=real),
        stress_weights: wp.array(dtype=real),
        to_cell: wp.array(dtype=wp.mat33d),
        to_energy: wp.array(dtype=wp.float64),
        to_stress: wp.array(dtype=wp.mat33d),
        to_sizes: wp.array(dtype=real),
        to_volume: wp.array(dtype=wp.float64),
        to_system_weights: wp.array(dtype=real),
        to_stress_weights: wp.array(dtype=real),
    ):
        row = first + wp.tid()
        k = piece_of(row, 3, starts, n[0])
        source = n_source - 1
        if k < n[0]:
            source = starts[k][0] + row - starts[k][3]
        to_cell[row] = cell[source]
        to_energy[row] = energy[source]
        to_stress[row] = stress[source]
        to_sizes[row] = sizes[source]
        to_volume[row] = volume[source]
        to_system_weights[row] = system_weights[source]
        to_stress_weights[row] = stress_weights[source]

    @kernel
    def atoms(
        first: int,
        n: wp.array(dtype=int),
        starts: wp.array(dtype=vec6i),
        n_source: int,
        types: wp.array(dtype=wp.int64),
        positions: wp.array(dtype=wp.vec3d),
        system_idx: wp.array(dtype=wp.int64),
        energies: wp.array(dtype=wp.float64),
        forces: wp.array(dtype=vec3),
        atom_weights: wp.array(dtype=real),
        site_weights: wp.array(dtype=real),
        partner: wp.array(dtype=wp.int64),
        inverse_distance: wp.array(dtype=real),
        to_types: wp.array(dtype=wp.int64),
        to_positions: wp.array(dtype=wp.vec3d),
        to_system_idx: wp.array(dtype=wp.int64),
        to_energies: wp.array(dtype=wp.float64),
        to_forces: wp.array(dtype=vec3),
        to_atom_weights: wp.array(dtype=real),
        to_site_weights: wp.array(dtype=real),
        to_partner: wp.array(dtype=wp.int64),
        to_inverse_distance: wp.array(dtype=real),
    ):
        row = first + wp.tid()
        k = piece_of(row, 4, starts, n[0])
        source = n_source - 1
        system = wp.int64(starts[n[0]][3])
        other = wp.int64(row)
        if k < n[0]:
            at = starts[k]
            source = at[1] + row - at[4]
            system = system_idx[source] - wp.int64(at[0] - at[3])
            other = partner[source] - wp.int64(at[1] - at[4])
        to_types[row] = types[source]
        to_positions[row] = positions[source]
        to_system_idx[row] = system
        to_energies[row] = energies[source]
        to_forces[row] = forces[source]
        to_atom_weights[row] = atom_weights[source]
        to_site_weights[row] = site_weights[source]
        to_partner[row] = other
        to_inverse_distance[row] = inverse_distance[source]

    @kernel
    def pairs(
        first: int,
        n: wp.array(dtype=int),
        starts: wp.array(dtype=vec6i),
        n_source: int,
        i: wp.array(dtype=int),
        j: wp.array(dtype=int),
        shifts: wp.array(dtype=vec3s),
        reverse: wp.array(dtype=int),
        n_atoms: int,
        n_pairs: int,
        to_i: wp.array(dtype=int),
        to_j: wp.array(dtype=int),
        to_shifts: wp.array(dtype=vec3s),
        to_reverse: wp.array(dtype=int),
    ):
        row = first + wp.tid()
        k = piece_of(row, 5, starts, n[0])
        at = starts[k]
        if k < n[0]:
            source = at[2] + row - at[5]
            moved = at[1] - at[4]
            to_i[row] = i[source] - moved
            to_j[row] = j[source] - moved
            to_shifts[row] = shifts[source]
            to_reverse[row] = reverse[source] - (at[2] - at[5])
        else:  # of padding atoms, in turn, to their own images
            place = wp.float64(row - at[5]) / wp.float64(n_pairs - at[5])
            own = wp.min(at[4] + int(place * wp.float64(n_atoms - at[4])), n_atoms - 1)
            to_i[row] = own
            to_j[row] = own
            to_shifts[row] = shifts[n_source - 1]
            to_reverse[row] = row

    return GatherKernels(module, systems, atoms, pairs)
