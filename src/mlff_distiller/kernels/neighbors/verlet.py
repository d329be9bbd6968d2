"""A neighbour list with a skin, kept on the device: rebuilt only when an atom has left its skin."""

from __future__ import annotations

import math

import numpy as np
import warp as wp

from mlff_distiller.kernels.compiling import Launch, load
from mlff_distiller.kernels.neighbors.warp import GRID, build

ATOMS_PER_BIN = 0.25
"""Bins are made wider than the cutoff rather than emptier than this on average."""
LARGEST_BY_PAIRS = 128
"""Atoms up to which all pairs are tried."""
MARGIN = 1.15
"""Slots allocated for each slot needed."""
SAMPLES = 1024
CACHE_LINE = 16
"""Of 4 bytes."""


class VerletList:
    """Neighbours within ``cutoff``, and up to ``cutoff + skin``, of every atom of one structure.

    ``r_ij = inside[j] + shifts[image] - inside[i]`` for the neighbours ``j = neighbors[slot, i]``,
    ``image = images[slot, i]``, ``slot < counts[i]``, in the order of (j, image). ``inside`` are
    the positions less whole lattice vectors. Every pair within ``cutoff`` is there until an atom
    has moved by more than half the skin since the list was built; then it is built anew. All
    mixtures of periodic directions, skewed and left-handed cells, and cells smaller than the
    cutoff. Slots are added when needed, and none are ever left out.

    Parameters
    ----------
    cutoff, skin
        In Å.
    n_threads
        CPU cores to use.
    """

    def __init__(self, cutoff: float, skin: float, device: wp.Device, n_threads: int = 1) -> None:
        self.cutoff, self.skin, self.device, self.n_threads = cutoff, skin, device, n_threads
        self._kernels = build("cpu" if device.is_cpu else "cuda")
        load(self._kernels.module, device)
        self.n_atoms = self.capacity = self.n_builds = self.version = 0
        self._cell, self._pbc = np.full((3, 3), np.nan), np.zeros(3, dtype=bool)
        self._positions: wp.array = None
        self._is_complete = False  # also after a failure half-way, such as lack of memory
        with wp.ScopedDevice(device):
            self._lattice = wp.zeros(1, dtype=wp.mat33d)
            self._dual = wp.zeros(1, dtype=wp.mat33d)
            self._moved = wp.zeros(1, dtype=int)
            self._largest = wp.zeros(1, dtype=int)
            self.shifts = wp.zeros(1, dtype=wp.vec3d)

    def update(self, positions: wp.array, cell: np.ndarray, pbc: np.ndarray) -> bool:
        """Follow ``positions`` (n_atoms, vec3d, Å); True if the list was built anew.

        ``version`` counts the times that arrays were replaced by larger ones. Waits for the
        device.
        """
        same_box = (
            self._is_complete
            and np.array_equal(cell, self._cell)
            and np.array_equal(pbc, self._pbc)
        )
        if same_box and positions is self._positions:
            self._moved.zero_()
            self._follow()
            if not self._moved.numpy()[0]:
                return False
        self._is_complete = False
        if positions is not self._positions:
            self._allocate(positions)
        if not same_box:
            self._set_box(cell, pbc)
        self._build()
        self._is_complete = True
        return True

    # -- memory -------------------------------------------------------------------------------

    def _allocate(self, positions: wp.array) -> None:
        n = self.n_atoms = len(positions)
        self._positions = None
        with wp.ScopedDevice(self.device):
            self.inside, self._laps, self._built = (wp.zeros(n, dtype=wp.vec3d) for _ in range(3))
            self.counts = wp.zeros(n, dtype=int)
            self._bins, self._members = (wp.zeros(2 * n, dtype=int) for _ in range(2))
            self._starts, self._stops = (wp.zeros(0, dtype=int) for _ in range(2))
            samples = min(n, SAMPLES)
            self._lower, self._upper = (wp.zeros((samples, 3), dtype=wp.float64) for _ in range(2))
        self._set_capacity(self.capacity)
        limit = wp.float64((0.5 * self.skin) ** 2)
        arguments = (positions, self._lattice, self._laps, self._built, limit)
        step = (self._kernels.follow, (*arguments, self.inside, self._moved))
        self._follow = Launch([step], n, self.device, self.n_threads)
        self._positions = positions

    def _set_capacity(self, capacity: int) -> None:
        # Rows of an odd number of cache lines: at 4 kB apart they would share a few places in it.
        width = CACHE_LINE * (-(-self.n_atoms // CACHE_LINE) | 1)
        with wp.ScopedDevice(self.device):
            neighbors, images = (wp.zeros((capacity, width), dtype=int) for _ in range(2))
        self.neighbors, self.images, self.capacity = neighbors, images, capacity
        self.version += 1

    def _set_box(self, cell: np.ndarray, pbc: np.ndarray) -> None:
        self._cell, self._pbc = cell.copy(), pbc.copy()
        self._rows = np.round(complete_lattice(cell, pbc) * GRID) / GRID
        self._columns = np.linalg.inv(self._rows)
        self._lattice.assign(self._rows[None])
        self._dual.assign(self._columns[None])

    # -- the search ---------------------------------------------------------------------------

    def _build(self) -> None:
        n, k, reaches = self.n_atoms, self._kernels, self.cutoff + self.skin
        pbc = wp.vec3i(*(int(axis) for axis in self._pbc))

        def launch(kernel: wp.Kernel, size: int, *arguments: object, n_threads: int = 1) -> None:
            Launch([(kernel, arguments)], size, self.device, n_threads)()

        boxes = (self._positions, self._lattice, self._dual, pbc)
        launch(k.wrap, n, *boxes, self._laps, self.inside, self._built)
        origin, extent = np.zeros(3), np.ones(3)
        if not self._pbc.all():
            sampled = (self.inside, self._dual, self._lower, self._upper)
            launch(k.bounds, len(self._lower), n, *sampled)
            low, high = self._lower.numpy().min(0), self._upper.numpy().max(0)
            origin[~self._pbc], extent[~self._pbc] = low[~self._pbc], (high - low)[~self._pbc]

        n_bins, reach, image_reach = self._grid(extent)
        scale = wp.vec3d(*(n_bins / np.maximum(extent, 1e-9)))
        grid = (self._dual, wp.vec3d(*origin), scale, wp.vec3i(*n_bins.tolist()))
        total = int(n_bins.prod())
        if len(self._starts) < total:
            with wp.ScopedDevice(self.device):
                self._starts, self._stops = (wp.zeros(total, dtype=int) for _ in range(2))
        self._starts.zero_()
        self._stops.zero_()
        launch(k.assign, n, self.inside, *grid, self._bins, self._members)
        if total > 1:
            with wp.ScopedDevice(self.device):
                wp.utils.radix_sort_pairs(self._bins, self._members, n)
        launch(k.bin_ranges, n, n, self._bins, self._starts, self._stops)
        self._set_shifts(image_reach)

        reaching = (wp.vec3i(*reach.tolist()), wp.vec3i(*image_reach.tolist()))
        bins = (self._starts, self._stops, self._members, self.shifts, self.counts)
        while True:
            arguments = (*grid, pbc, *reaching, wp.float64(reaches**2), *bins)
            tables = (self.neighbors, self.images)
            launch(k.fill, n, self.inside, *arguments, *tables, n_threads=self.n_threads)
            self._largest.zero_()
            stride = min(n, SAMPLES)
            launch(k.most, stride, n, self.counts, stride, self._largest)
            largest = int(self._largest.numpy()[0])
            if largest <= self.capacity:
                break
            self._set_capacity(math.ceil(MARGIN * largest))
        self.n_builds += 1

    def _grid(self, extent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bins an axis, bins to look at on either side, images on either side; (3,) each."""
        reaches = self.cutoff + self.skin
        heights = extent / np.linalg.norm(self._columns, axis=0)
        n_bins = np.ones(3, dtype=np.int64)
        if self.n_atoms > LARGEST_BY_PAIRS:
            n_bins = np.maximum(heights // reaches, 1.0)
            crowd = n_bins.prod() / (self.n_atoms / ATOMS_PER_BIN)
            if crowd > 1.0:
                n_bins = np.maximum(n_bins // crowd ** (1 / 3), 1.0)
            n_bins = n_bins.astype(np.int64)
        reach = np.ceil(reaches / (np.maximum(heights, 1e-9) / n_bins)).astype(np.int64)
        reach = np.where(self._pbc, reach, np.minimum(reach, n_bins - 1))
        image_reach = np.where(self._pbc, -(-reach // n_bins), 0)
        return n_bins, reach, image_reach

    def _set_shifts(self, image_reach: np.ndarray) -> None:
        ranges = [np.arange(-r, r + 1) for r in image_reach]
        whole = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 3)
        if len(self.shifts) != len(whole):
            self.version += 1
            self.shifts = wp.zeros(len(whole), dtype=wp.vec3d, device=self.device)
        self.shifts.assign(whole @ self._rows)


def complete_lattice(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Periodic vectors (rows, Å) as they are; for others, unit vectors normal to all of them."""
    rows = np.zeros((3, 3))
    rows[pbc] = cell[pbc]
    if not pbc.all():
        _, _, right = np.linalg.svd(rows)
        rows[~pbc] = right[int(pbc.sum()) :]
    return rows
