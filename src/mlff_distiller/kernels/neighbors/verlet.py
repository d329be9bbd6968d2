"""A neighbour list with a skin, kept on the device: rebuilt only when an atom has left its skin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import warp as wp
from numpy.typing import NDArray

from mlff_distiller.batch import refuse_density
from mlff_distiller.kernels.compiling import Launch, load
from mlff_distiller.kernels.neighbors.warp import GRID, Grid, build
from mlff_distiller.kernels.systems import Systems

ATOMS_PER_BIN = 0.25
"""Bins are made wider than the cutoff rather than emptier than this on average."""
LARGEST_BY_PAIRS = 128
"""Atoms up to which all pairs are tried."""
MARGIN = 1.15
"""Slots allocated for each slot needed."""
MOST_EXPECTED = 1024
DENSE = 5.0
"""Atoms in 1 Å³ of the sphere around an atom that has more neighbours than expected. It has a
thousand times the volume of a bond, so this is as far from matter as ``DENSEST`` in one place."""
SAMPLES = 1024
SECTOR = 8
"""Slots that a GPU reads at once."""

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class VerletList:
    """Neighbours within ``cutoff``, and up to ``cutoff + skin``, of every atom of some systems.

    ``r_ij = inside[j] + shifts[image] - inside[i]`` for the neighbours ``j = neighbors[i, slot]``,
    ``image = images[i, slot]``, ``slot < counts[i]``, in the order of (j, image). ``reverse[i,
    slot]`` is the slot of the same pair in the list of j, or -1 if rounding has left it out there.
    ``inside`` are the positions less whole lattice vectors. Every pair within ``cutoff`` is there
    until an atom has moved by more than half the skin since the list was built; then it is built
    again. All mixtures of periodic directions, skewed and left-handed cells, and cells smaller than
    the cutoff. Slots are added when needed, and none are ever left out.

    ``update`` does all that. Dynamics that stays on the device writes ``inside`` and ``moved``
    itself and calls ``rebuild``; where the cell follows as well, it writes ``lattice``,
    ``stretch`` (from where atoms were when the list was built to where the cell alone would have
    brought them; ``dual`` is the inverse of the lattice then) and ``limit_squared``, and launches
    ``shifting``.

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
        self.capacity = self.n_builds = self.version = 0
        self.systems: Systems
        self._cell, self._pbc = np.zeros((0, 3, 3)), np.zeros((0, 3), dtype=bool)
        self._positions: wp.array = None
        self._is_complete = False  # also after a failure half-way, such as lack of memory
        with wp.ScopedDevice(device):
            self.moved = wp.zeros(1, dtype=int)
            self._largest = wp.zeros(1, dtype=int)
            self._never = wp.zeros(1, dtype=int)
            self.shifts: wp.array = None
            self._set_images(np.zeros((1, 3)), np.zeros(1, dtype=np.int64))

    def update(
        self,
        positions: wp.array,
        cell: Floats,
        pbc: NDArray[np.bool_],
        systems: Systems | None = None,
    ) -> bool:
        """Follow ``positions`` (n_atoms, vec3d, Å); True if the list was rebuilt.

        ``cell`` and ``pbc`` are (3, 3) and (3,), or of each of ``systems``. ``version`` counts the
        times that arrays were replaced by others. Waits for the device.
        """
        if self.is_current(positions, cell, pbc):
            self.moved.zero_()
            self.follow()
            if not self.moved.numpy()[0]:
                return False
        self.set(positions, cell, pbc, systems)
        self.rebuild()
        return True

    def is_current(self, positions: wp.array, cell: Floats, pbc: NDArray[np.bool_]) -> bool:
        """Whether the list is one of these atoms in this box."""
        same = self._is_complete and positions is self._positions
        return same and self._is_same_box(cell, pbc)

    def set(
        self,
        positions: wp.array,
        cell: Floats,
        pbc: NDArray[np.bool_],
        systems: Systems | None = None,
    ) -> None:
        """The atoms and boxes that ``rebuild`` is to find neighbours for."""
        self._is_complete = False
        if positions is not self._positions:
            self._allocate(
                positions, systems or Systems.of_sizes(np.array([len(positions)]), self.device)
            )
        if not self._is_same_box(cell, pbc):
            self._set_box(cell, pbc)

    def follow(self) -> None:
        """Let ``inside`` follow the positions; set ``moved`` if an atom has left its skin."""
        self._follow()

    def shifting(self, skip: wp.array | None = None) -> Launch:
        """What lets ``shifts`` follow ``lattice``, unless ``skip`` [0] is set."""
        skip = self._never if skip is None else skip
        arguments = (self.whole, self._system_of_image, self.lattice, skip, self.shifts)
        return Launch([(self._kernels.shift, arguments)], len(self.shifts), self.device)

    # -- memory -------------------------------------------------------------------------------

    def _allocate(self, positions: wp.array, systems: Systems) -> None:
        n = systems.n_atoms
        self._positions, self.systems = None, systems
        self._cell, self._pbc = np.zeros((0, 3, 3)), np.zeros((0, 3), dtype=bool)
        with wp.ScopedDevice(self.device):
            self.inside, self.laps, self.built = (wp.zeros(n, dtype=wp.vec3d) for _ in range(3))
            self.counts = wp.zeros(n, dtype=int)
            self._bins, self._members = (wp.zeros(2 * n, dtype=int) for _ in range(2))
            self._starts, self._stops = (wp.zeros(0, dtype=int) for _ in range(2))
            self.lattice, self.dual, self.stretch = (
                wp.zeros(systems.n_systems, dtype=wp.mat33d) for _ in range(3)
            )
            self.limit_squared = wp.zeros(systems.n_systems, dtype=wp.float64)
            self._grids = wp.zeros(systems.n_systems, dtype=Grid)
            shape = (systems.n_chunks, 3)
            self._lower, self._upper = (wp.zeros(shape, dtype=wp.float64) for _ in range(2))
        self._set_capacity(self.capacity)
        self._positions = positions
        where = (positions, systems.system_idx, self.lattice)
        limits = (self.stretch, self.limit_squared, self.laps, self.built)
        self._follow = self._record(
            self._kernels.follow, n, *where, *limits, self.inside, self.moved
        )
        places = (self._grids, self.laps, self.inside, self.built)
        self._wrap = self._record(self._kernels.wrap, n, *where, *places)
        arguments = (self.inside, systems.system_idx, self._grids, self._bins, self._members)
        self._assign = self._record(self._kernels.assign, n, *arguments)

    def _record(self, kernel: wp.Kernel, size: int, *arguments: object) -> Launch:
        return Launch([(kernel, arguments)], size, self.device, self.n_threads)

    def _set_capacity(self, capacity: int) -> None:
        shape = (self.systems.n_atoms, capacity)
        # The old ones first: two tables of a large system may not fit.
        self.neighbors = self.images = None
        self.reverse: wp.array = None
        self.capacity = 0
        with wp.ScopedDevice(self.device):
            tables = [wp.zeros(shape, dtype=int) for _ in range(3)]
        self.neighbors, self.images, self.reverse = tables
        self.capacity = capacity
        self.version += 1

    # -- boxes --------------------------------------------------------------------------------

    def _is_same_box(self, cell: Floats, pbc: NDArray[np.bool_]) -> bool:
        return cell.tobytes() == self._cell.tobytes() and pbc.tobytes() == self._pbc.tobytes()

    def _set_box(self, cell: Floats, pbc: NDArray[np.bool_]) -> None:
        self._cell, self._pbc = np.reshape(cell, (-1, 3, 3)).copy(), np.reshape(pbc, (-1, 3)).copy()
        rows = np.stack(
            [complete_lattice(c, p) for c, p in zip(self._cell, self._pbc, strict=True)]
        )
        crowds = self.systems.sizes / np.maximum(np.abs(np.linalg.det(rows)), 1e-300)
        refuse_density(float(crowds[self._pbc.all(1)].max(initial=0.0)))
        self._rows = np.round(rows * GRID) / GRID
        self._columns = np.linalg.inv(self._rows)
        self.lattice.assign(self._rows)
        self.dual.assign(self._columns)
        self._set_grid(np.zeros((len(rows), 3)), np.ones((len(rows), 3)))

    def _set_grid(self, origin: Floats, extent: Floats) -> None:
        """Bins for atoms between ``origin`` and ``origin + extent``, fractional."""
        n_bins, reach, image_reach = self._sizes(extent)
        n_images = (2 * image_reach + 1).prod(1)
        dtype: Any = Grid.numpy_dtype()  # type: ignore[attr-defined]
        grids: NDArray[Any] = np.zeros(len(extent), dtype=dtype)
        fields = {
            "dual": self._columns,
            "origin": origin,
            "scale": n_bins / np.maximum(extent, 1e-9),
            "pbc": self._pbc,
            "n_bins": n_bins,
            "reach": reach,
            "image_reach": image_reach,
            "first_bin": np.cumsum(n_bins.prod(1)) - n_bins.prod(1),
            "first_image": np.cumsum(n_images) - n_images,
        }
        for name, values in fields.items():
            grids[name] = values
        self._grids.assign(grids)
        self._n_bins = int(n_bins.prod(1).sum())
        self._is_sorted = bool((n_bins == 1).all())  # one bin a system, and atoms by system
        if len(self._starts) < self._n_bins:
            with wp.ScopedDevice(self.device):
                self._starts, self._stops = (wp.zeros(self._n_bins, dtype=int) for _ in range(2))
        whole: dict[tuple[int, ...], Floats] = {}
        for reaches in map(tuple, image_reach.tolist()):
            if reaches not in whole:
                ranges = [np.arange(-r, r + 1) for r in reaches]
                grid = np.meshgrid(*ranges, indexing="ij")
                whole[reaches] = np.stack(grid, -1).reshape(-1, 3).astype(np.float64)
        self._set_images(
            np.concatenate([whole[reaches] for reaches in map(tuple, image_reach.tolist())]),
            np.repeat(np.arange(len(n_images)), n_images),
        )

    def _sizes(self, extent: Floats) -> tuple[Whole, Whole, Whole]:
        """Bins an axis, bins to look at on either side, images on either side; (n_systems, 3)."""
        reaches, sizes = self.cutoff + self.skin, self.systems.sizes[:, None]
        heights = extent / np.linalg.norm(self._columns, axis=1)
        bins = np.maximum(heights // reaches, 1.0)
        crowd = bins.prod(1, keepdims=True) / (sizes / ATOMS_PER_BIN)
        bins = np.where(
            crowd > 1.0, np.maximum(bins // np.maximum(crowd, 1.0) ** (1 / 3), 1.0), bins
        )
        n_bins = np.where(sizes > LARGEST_BY_PAIRS, bins, 1.0).astype(np.int64)
        reach = np.ceil(reaches / (np.maximum(heights, 1e-9) / n_bins)).astype(np.int64)
        reach = np.where(self._pbc, reach, np.minimum(reach, n_bins - 1))
        image_reach = np.where(self._pbc, -(-reach // n_bins), 0)
        return n_bins, reach, image_reach

    def _set_images(self, whole: Floats, system: Whole) -> None:
        with wp.ScopedDevice(self.device):
            if self.shifts is None or len(self.shifts) != len(whole):
                self.version += 1
                self.shifts, self.whole = (wp.zeros(len(whole), dtype=wp.vec3d) for _ in range(2))
                self._system_of_image = wp.zeros(len(whole), dtype=int)
            self.whole.assign(whole)
            self._system_of_image.assign(system.astype(np.int32))

    # -- the search ---------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Find the neighbours of the atoms as they are, in the boxes given to ``set``."""
        n = self.systems.n_atoms
        k, system_idx = self._kernels, self.systems.system_idx
        self._is_complete = False
        self.stretch.assign(np.broadcast_to(np.eye(3), self._rows.shape).copy())
        self.limit_squared.fill_((0.5 * self.skin) ** 2)
        self._wrap()
        if not self._pbc.all():
            self._set_grid(*self._extents())
        self.shifting()()
        self._starts.zero_()
        self._stops.zero_()
        self._assign()
        if not self._is_sorted:
            with wp.ScopedDevice(self.device):
                wp.utils.radix_sort_pairs(self._bins, self._members, n)
        bins = (self._bins, self._starts, self._stops)
        Launch([(k.bin_ranges, (n, *bins))], n, self.device)()
        reaches = wp.float64((self.cutoff + self.skin) ** 2)
        where = (self.inside, system_idx, self._grids, reaches)
        lists = (self._starts, self._stops, self._members, self.shifts, self.counts)
        while True:
            self._record(k.fill, n, *where, *lists, self.neighbors, self.images)()
            self._largest.zero_()
            stride = min(n, SAMPLES)
            largest_of = (n, self.counts, stride, self._largest)
            Launch([(k.most, largest_of)], stride, self.device)()
            largest = int(self._largest.numpy()[0])
            if largest <= self.capacity:
                break
            if largest > MOST_EXPECTED:
                refuse_density(largest / (4.19 * (self.cutoff + self.skin) ** 3), DENSE)
            self._set_capacity(SECTOR * math.ceil(MARGIN * largest / SECTOR))
        self.reverse.fill_(-1)
        tables = (self.counts, self.neighbors, self.images, self.reverse)
        match = [(k.match, (system_idx, self._grids, *tables))]
        Launch(match, n, self.device, self.n_threads, k.threads_a_match)()
        self.moved.zero_()
        self.n_builds += 1
        self._is_complete = True

    def _extents(self) -> tuple[Floats, Floats]:
        """Least fractional coordinate and extent (n_systems, 3): 0 and 1 where periodic."""
        sampled = (self.inside, self._grids, self.systems.chunks, self._lower, self._upper)
        self._record(self._kernels.bounds, self.systems.n_chunks, *sampled)()
        firsts = self.systems.first_chunk.numpy()[:-1]
        low = np.minimum.reduceat(self._lower.numpy(), firsts)
        high = np.maximum.reduceat(self._upper.numpy(), firsts)
        return np.where(self._pbc, 0.0, low), np.where(self._pbc, 1.0, high - low)


def complete_lattice(cell: Floats, pbc: NDArray[np.bool_]) -> Floats:
    """Periodic vectors (rows, Å) as they are; for others, unit vectors normal to all of them."""
    rows = np.zeros((3, 3))
    rows[pbc] = cell[pbc]
    if not pbc.all():
        _, _, right = np.linalg.svd(rows)
        rows[~pbc] = right[int(pbc.sum()) :]
    return rows
