"""Cell lists as Warp kernels: one source for CPU and GPU, one thread per atom, no float atomics.

Atoms are put into bins between lattice planes. With one bin per axis the search tries all pairs in
all images: small systems and large ones take the same path. Several systems have bins and images
of their own, numbered through.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

GRID = 2.0**40
"""Points an Å. Positions and lattice vectors are rounded to it (10^-12 Å): differences are then
exact in float64, and do not depend on the images that happen to be stored."""


@wp.struct
class Grid:
    """Bins of one system, and the images that its search may reach."""

    dual: wp.mat33d  # columns
    origin: wp.vec3d  # fractional
    scale: wp.vec3d  # bins for each unit of the fractional coordinate
    pbc: wp.vec3i
    n_bins: wp.vec3i
    reach: wp.vec3i  # bins to look at on either side
    image_reach: wp.vec3i  # images on either side
    first_bin: int
    first_image: int


@wp.func
def on_grid(position: wp.vec3d) -> wp.vec3d:
    """The nearest point of the grid."""
    return wp.vec3d(
        wp.round(position[0] * wp.float64(GRID)) / wp.float64(GRID),
        wp.round(position[1] * wp.float64(GRID)) / wp.float64(GRID),
        wp.round(position[2] * wp.float64(GRID)) / wp.float64(GRID),
    )


@wp.func
def has_left(
    inside: wp.vec3d, built: wp.vec3d, stretch: wp.mat33d, limit_squared: wp.float64
) -> bool:
    """Whether an atom is beyond its part of the skin; NaN is."""
    step = inside - built * stretch
    return not (wp.dot(step, step) <= limit_squared)


@dataclass(frozen=True)
class Kernels:
    """In the order of their use."""

    module: wp.Module
    wrap: wp.Kernel
    shift: wp.Kernel
    follow: wp.Kernel
    bounds: wp.Kernel
    assign: wp.Kernel
    bin_ranges: wp.Kernel
    fill: wp.Kernel
    most: wp.Kernel
    match: wp.Kernel
    threads_a_match: int


@cache
def build(device: str) -> Kernels:
    """Kernels for ``device``, "cpu" or "cuda"; compiled when first loaded."""
    module = wp.Module(f"mlff_distiller_neighbors_{device}", None)
    module.options.update(
        enable_backward=False,
        block_dim=1 if device == "cpu" else 128,
        default_grid_stride=False,
    )
    func, kernel = wp.func(module=module), wp.kernel(module=module)

    @func
    def floor_div(a: int, b: int) -> int:
        q = a // b
        if q * b > a:  # Warp divides towards zero
            q -= 1
        return q

    @func
    def number(image: wp.vec3i, reach: wp.vec3i) -> int:
        n = wp.vec3i(2 * reach[0] + 1, 2 * reach[1] + 1, 2 * reach[2] + 1)
        return ((image[0] + reach[0]) * n[1] + image[1] + reach[1]) * n[2] + image[2] + reach[2]

    @func
    def is_periodic(image: wp.vec3i, pbc: wp.vec3i) -> bool:
        for k in range(3):
            if image[k] != 0 and pbc[k] == 0:
                return False
        return True

    @kernel
    def wrap(
        first: int,
        positions: wp.array(dtype=wp.vec3d),
        system_idx: wp.array(dtype=int),
        lattice: wp.array(dtype=wp.mat33d),  # rows
        grids: wp.array(dtype=Grid),
        laps: wp.array(dtype=wp.vec3d),
        inside: wp.array(dtype=wp.vec3d),
        built: wp.array(dtype=wp.vec3d),
    ):
        """Whole lattice vectors that bring each atom into the cell, and where it then is."""
        i = first + wp.tid()
        system = system_idx[i]
        grid = grids[system]
        fractional = positions[i] * grid.dual
        lap = wp.vec3d()
        for k in range(3):
            if grid.pbc[k] != 0:
                lap[k] = wp.floor(fractional[k])
        laps[i] = lap
        inside[i] = on_grid(positions[i]) - lap * lattice[system]
        built[i] = inside[i]

    @kernel
    def shift(
        first: int,
        whole: wp.array(dtype=wp.vec3d),
        system_of_image: wp.array(dtype=int),
        lattice: wp.array(dtype=wp.mat33d),
        skip: wp.array(dtype=int),
        shifts: wp.array(dtype=wp.vec3d),
    ):
        m = first + wp.tid()
        if skip[0] == 0:
            shifts[m] = whole[m] * lattice[system_of_image[m]]

    @kernel
    def follow(
        first: int,
        positions: wp.array(dtype=wp.vec3d),
        system_idx: wp.array(dtype=int),
        lattice: wp.array(dtype=wp.mat33d),
        stretch: wp.array(dtype=wp.mat33d),
        limit_squared: wp.array(dtype=wp.float64),
        laps: wp.array(dtype=wp.vec3d),
        built: wp.array(dtype=wp.vec3d),
        inside: wp.array(dtype=wp.vec3d),
        moved: wp.array(dtype=int),
    ):
        """Follow the atoms without wrapping them again; say whether one has left its skin."""
        i = first + wp.tid()
        system = system_idx[i]
        inside[i] = on_grid(positions[i]) - laps[i] * lattice[system]
        if has_left(inside[i], built[i], stretch[system], limit_squared[system]):
            moved[0] = 1

    @kernel
    def bounds(
        first: int,
        inside: wp.array(dtype=wp.vec3d),
        grids: wp.array(dtype=Grid),
        chunks: wp.array(dtype=wp.vec3i),  # system, first atom, last atom + 1
        lower: wp.array2d(dtype=wp.float64),
        upper: wp.array2d(dtype=wp.float64),
    ):
        """Range of the fractional coordinates of each chunk of atoms."""
        t = first + wp.tid()
        chunk = chunks[t]
        dual = grids[chunk[0]].dual
        low = inside[chunk[1]] * dual
        high = inside[chunk[1]] * dual
        for i in range(chunk[1], chunk[2]):
            f = inside[i] * dual
            low = wp.min(low, f)
            high = wp.max(high, f)
        for k in range(3):
            lower[t, k] = low[k]
            upper[t, k] = high[k]

    @func
    def bin_of(f: wp.vec3d, grid: Grid) -> wp.vec3i:
        b = wp.vec3i()
        for k in range(3):
            place = wp.floor((f[k] - grid.origin[k]) * grid.scale[k])
            b[k] = wp.clamp(int(place), 0, grid.n_bins[k] - 1)
        return b

    @kernel
    def assign(
        first: int,
        inside: wp.array(dtype=wp.vec3d),
        system_idx: wp.array(dtype=int),
        grids: wp.array(dtype=Grid),
        bins: wp.array(dtype=int),
        members: wp.array(dtype=int),
    ):
        i = first + wp.tid()
        grid = grids[system_idx[i]]
        b = bin_of(inside[i] * grid.dual, grid)
        bins[i] = grid.first_bin + (b[0] * grid.n_bins[1] + b[1]) * grid.n_bins[2] + b[2]
        members[i] = i

    @kernel
    def bin_ranges(
        first: int,
        n_atoms: int,
        bins: wp.array(dtype=int),
        starts: wp.array(dtype=int),
        stops: wp.array(dtype=int),
    ):
        """``bins`` are sorted; those of no atom keep start = stop = 0."""
        # Warp evaluates both sides of an "or".
        k = first + wp.tid()
        b = bins[k]
        if k == 0:
            starts[b] = k
        elif bins[k - 1] != b:
            starts[b] = k
        if k == n_atoms - 1:
            stops[b] = n_atoms
        elif bins[k + 1] != b:
            stops[b] = k + 1

    @func
    def insert(
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        i: int,
        count: int,
        j: int,
        image: int,
    ) -> int:
        """Move what belongs behind (j, image) up by one slot, and say which is free."""
        slot = int(count)
        while slot > 0:
            other, of = neighbors[i, slot - 1], images[i, slot - 1]
            if other < j or (other == j and of < image):
                break
            neighbors[i, slot] = other
            images[i, slot] = of
            slot -= 1
        return slot

    @kernel
    def fill(
        first: int,
        inside: wp.array(dtype=wp.vec3d),
        system_idx: wp.array(dtype=int),
        grids: wp.array(dtype=Grid),
        range_squared: wp.float64,
        starts: wp.array(dtype=int),
        stops: wp.array(dtype=int),
        members: wp.array(dtype=int),
        shifts: wp.array(dtype=wp.vec3d),
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
    ):
        """Neighbours of each atom in the order of (j, image); counts go on beyond the table."""
        i = first + wp.tid()
        capacity = neighbors.shape[1]
        grid = grids[system_idx[i]]
        own = inside[i]
        b = bin_of(own * grid.dual, grid)
        n_bins = grid.n_bins
        reach = grid.reach
        home = grid.first_image + number(wp.vec3i(), grid.image_reach)
        count = int(0)
        for x in range(b[0] - reach[0], b[0] + reach[0] + 1):
            for y in range(b[1] - reach[1], b[1] + reach[1] + 1):
                for z in range(b[2] - reach[2], b[2] + reach[2] + 1):
                    s = wp.vec3i(
                        floor_div(x, n_bins[0]), floor_div(y, n_bins[1]), floor_div(z, n_bins[2])
                    )
                    if is_periodic(s, grid.pbc):
                        cell = (
                            grid.first_bin
                            + ((x - s[0] * n_bins[0]) * n_bins[1] + (y - s[1] * n_bins[1]))
                            * n_bins[2]
                            + (z - s[2] * n_bins[2])
                        )
                        image = grid.first_image + number(s, grid.image_reach)
                        offset = shifts[image] - own
                        for m in range(starts[cell], stops[cell]):
                            j = members[m]
                            d = inside[j] + offset
                            if wp.dot(d, d) < range_squared and (j != i or image != home):
                                if count < capacity:
                                    slot = insert(neighbors, images, i, count, j, image)
                                    neighbors[i, slot] = j
                                    images[i, slot] = image
                                count += 1
        counts[i] = count

    @kernel
    def most(
        first: int,
        n_atoms: int,
        counts: wp.array(dtype=int),
        stride: int,
        largest: wp.array(dtype=int),
    ):
        t = first + wp.tid()
        value = int(0)
        for i in range(t, n_atoms, stride):
            value = wp.max(value, counts[i])
        wp.atomic_max(largest, 0, value)

    threads = 1 if device == "cpu" else 32

    @kernel
    def match(
        first: int,
        system_idx: wp.array(dtype=int),
        grids: wp.array(dtype=Grid),
        counts: wp.array(dtype=int),
        neighbors: wp.array2d(dtype=int),
        images: wp.array2d(dtype=int),
        reverse: wp.array2d(dtype=int),
    ):
        """The slots of a pair in the lists of both ends, found once; ``reverse`` begins as -1."""
        thread = wp.tid()
        i = first + thread / threads
        grid = grids[system_idx[i]]
        twice_home = 2 * (grid.first_image + number(wp.vec3i(), grid.image_reach))
        for slot in range(thread % threads, counts[i], threads):
            j = neighbors[i, slot]
            if j >= i:
                image = twice_home - images[i, slot]
                low = int(0)
                high = counts[j]
                while low < high:
                    middle = (low + high) / 2
                    other = neighbors[j, middle]
                    if other < i or (other == i and images[j, middle] < image):
                        low = middle + 1
                    else:
                        high = middle
                if low < counts[j]:
                    if neighbors[j, low] == i and images[j, low] == image:
                        reverse[i, slot] = low
                        reverse[j, low] = slot

    kernels = (wrap, shift, follow, bounds, assign, bin_ranges, fill, most, match)
    return Kernels(module, *kernels, threads)
