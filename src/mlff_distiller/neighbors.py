"""Neighbour lists, in one convention: ``r_ij = r_j - r_i + S @ cell``.

Every ordered pair within the cutoff appears once for each periodic image, so both (i, j, S) and
(j, i, -S) are listed, and an atom neighbours its own images. Correct for any mixture of periodic
directions, cells smaller than the cutoff, skewed and left-handed cells, and unwrapped positions.
On the CPU the search is vesin's; small systems on a GPU are searched there, all images tried.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from torch import Tensor
from vesin import NeighborList

from mlff_distiller.batch import Batch, refuse_density

LARGEST_BY_IMAGES = 1024
"""Atoms of a system up to which a GPU, trying all pairs and images, beats cell lists on a CPU."""
_CANDIDATES_AT_ONCE = 2**22
"""Some 200 bytes each."""
_FEW_ATOMS = 256
"""So few are not counted in cubes of 1 Å, as their pairs are few."""
PADDING_ATOMS = 16
"""At least this many systems share the edges of ``padding``."""
_EDGES_ROUND = 256


@dataclass(frozen=True)
class Neighbors:
    """Pairs of a batch, sorted by ``i``."""

    i: Tensor  # (n_edges,) int64, ascending
    j: Tensor  # (n_edges,) int64
    shifts: Tensor  # (n_edges, 3) float64, whole numbers of lattice vectors

    @classmethod
    def concatenate(cls, parts: Sequence[Neighbors], n_atoms: Sequence[int]) -> Neighbors:
        """Pairs of ``Batch.concatenate`` from those of its parts, which have ``n_atoms`` each."""
        starts = np.cumsum([0, *n_atoms[:-1]]).tolist()
        return cls(
            torch.cat([part.i + start for part, start in zip(parts, starts, strict=True)]),
            torch.cat([part.j + start for part, start in zip(parts, starts, strict=True)]),
            torch.cat([part.shifts for part in parts]),
        )

    def reverse(self) -> Tensor:
        """(n_edges,) int64: where (j, i, -S) stands; of an edge without one its own place."""
        shifts = self.shifts.long()
        reach = int(shifts.abs().max()) if len(shifts) else 0
        width, n_atoms = 2 * reach + 1, int(self.i[-1]) + 1 if len(shifts) else 0

        def keys(i: Tensor, j: Tensor, shifts: Tensor) -> Tensor:
            x, y, z = (shifts + reach).unbind(1)
            return (((i * n_atoms + j) * width + x) * width + y) * width + z

        ordered, order = keys(self.i, self.j, shifts).sort()
        wanted = keys(self.j, self.i, -shifts)
        place = torch.searchsorted(ordered, wanted).clamp(max=len(ordered) - 1)
        own = torch.arange(len(ordered), device=ordered.device)
        return torch.where(ordered[place] == wanted, order[place], own)

    def to(self, device: torch.device | str) -> Neighbors:
        return Neighbors(self.i.to(device), self.j.to(device), self.shifts.to(device))


class _Searches:
    """Searches under way in any thread. A fork waits for them.

    The library locks something meanwhile, which a child would find locked for ever.
    """

    def __init__(self) -> None:
        self._changed, self._n = threading.Condition(), 0
        os.register_at_fork(
            before=self._wait,
            after_in_parent=self._changed.release,
            after_in_child=self._changed.release,
        )

    def _wait(self) -> None:
        self._changed.acquire()
        while self._n:
            self._changed.wait()

    def __enter__(self) -> None:
        with self._changed:
            self._n += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._n -= 1
            self._changed.notify_all()


_searches = _Searches()


def find_pairs(
    positions: np.ndarray,  # (n_atoms, 3) Å
    cell: np.ndarray,  # (3, 3) Å
    pbc: np.ndarray,  # (3,) bool
    cutoff: float,  # Å
    n_threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``i`` ascending (n_edges,), ``j`` (n_edges,), ``S`` (n_edges, 3) of one structure.

    Atoms far away along a direction that is not periodic cost nothing. ``n_threads`` 0: as many
    as ``OMP_NUM_THREADS`` says, or as there are cores.

    Raises
    ------
    StructureError
        Atoms are so dense that their pairs would fill the memory.
    """
    points = np.ascontiguousarray(positions, dtype=np.float64)
    laps = np.zeros((len(points), 3))
    if pbc.all():
        box = cell
    else:
        points, box, laps = _boxed(points, cell, pbc, cutoff)
    _check_density(points, box, pbc)
    with _searches:
        search = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=n_threads)
        i, j, shifts = search.compute(points=points, box=box, periodic=True, quantities="ijS")
        del search
    i, j = i.astype(np.int64), j.astype(np.int64)
    return i, j, shifts.astype(np.float64) + laps[i] - laps[j]


def _boxed(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same pairs in a box that is periodic in all directions, and what wrapping took off.

    Along each direction at right angles to the periodic vectors, gaps wider than the cutoff close
    to a little more than it: no pair is lost or won.
    """
    periodic = np.flatnonzero(pbc)
    lattice = cell[periodic]
    dual = np.linalg.pinv(lattice) if len(periodic) else np.zeros((3, 0))
    laps = np.zeros((len(positions), 3))
    laps[:, periodic] = np.floor(positions @ dual)
    inside = positions - laps[:, periodic] @ lattice
    across = np.linalg.svd(lattice)[2][len(periodic) :] if len(periodic) else np.eye(3)
    box, gap = cell.copy(), 1.1 * cutoff
    for axis, direction in zip(np.flatnonzero(~pbc), across, strict=True):
        height = inside @ direction
        order = height.argsort()
        steps = np.diff(height[order])
        taken = np.cumsum(np.maximum(steps - gap, 0.0))
        lower = np.zeros(len(height))
        lower[order[1:]] = taken
        lower += height.min()
        inside -= lower[:, None] * direction
        box[axis] = (np.ptp(height - lower) + gap) * direction
    return inside, box, laps


def _check_density(points: np.ndarray, box: np.ndarray, pbc: np.ndarray) -> None:
    """`StructureError` for more than ``DENSEST`` on average, or in one place once wrapped."""
    densest, n = 0.0, len(points)
    if pbc.all():
        densest = n / max(abs(np.linalg.det(box)), 1e-300)
    if n > _FEW_ATOMS:
        if pbc.all():
            points = points - np.floor(points @ np.linalg.inv(box)) @ box
        cubes = np.floor(points).astype(np.int64) @ (1, 2**20, 2**40)
        densest = max(densest, float(np.unique(cubes, return_counts=True)[1].max()))
    refuse_density(densest)


def pair_vectors(
    atoms: Atoms,
    cutoff: float,  # Å
    positions: np.ndarray | None = None,  # (n_atoms, 3) Å, in place of those of the atoms
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``i`` ascending (n_edges,), ``j`` (n_edges,) and ``r_ij`` (n_edges, 3) in Å."""
    if positions is None:
        positions = atoms.positions
    i, j, shifts = find_pairs(positions, atoms.cell.array, atoms.pbc, cutoff)
    return i, j, positions[j] - positions[i] + shifts @ atoms.cell.array


def neighbor_list(batch: Batch, cutoff: float) -> Neighbors:
    """All pairs of every system of ``batch`` within ``cutoff`` (Å), on its device.

    Time O(n_atoms) on a CPU, and for systems above ``LARGEST_BY_IMAGES``. Waits for a GPU.

    Raises
    ------
    StructureError
        Atoms are so dense that their pairs would fill the memory.
    """
    sizes = batch.atoms_per_system.tolist()
    if batch.positions.is_cuda and max(sizes) <= LARGEST_BY_IMAGES:
        crowds = (batch.atoms_per_system / batch.volume)[batch.pbc.all(1)]
        refuse_density(float(crowds.max()) if len(crowds) else 0.0)
        return all_images(batch, cutoff)
    positions, cell, pbc = batch.positions.cpu().numpy(), batch.cell.cpu().numpy(), batch.pbc.cpu()
    parts, start = [], 0
    for system, size in enumerate(sizes):
        i, j, shifts = find_pairs(
            positions[start : start + size], cell[system], pbc[system].numpy(), cutoff
        )
        parts.append((i + start, j + start, shifts))
        start += size
    i, j, shifts = (np.concatenate(column) for column in zip(*parts, strict=True))
    pairs = Neighbors(torch.from_numpy(i), torch.from_numpy(j), torch.from_numpy(shifts))
    return pairs.to(batch.positions.device)


def all_images(batch: Batch, cutoff: float) -> Neighbors:
    """The same by trying every pair of atoms of a system in every image that can be near enough.

    With atoms wrapped into the cell, ``|r_ij| < r_c`` allows shifts ``|S_k| <= ceil(r_c / h_k)``,
    h_k the height of the cell over its other periodic vectors. Work: the sum of n_atoms² n_images.
    """
    device = batch.positions.device
    lattice = batch.cell * batch.pbc.unsqueeze(2)
    # Columns dual to the periodic vectors; rounding must not make the others periodic.
    dual = torch.linalg.pinv(lattice.cpu()) * batch.pbc.cpu().unsqueeze(1)
    reach = torch.ceil(cutoff * dual.norm(dim=1)).long()  # (n_systems, 3)
    n_images = (2 * reach + 1).prod(1)
    of_image, shift = _images(reach.to(device), n_images.to(device), int(n_images.sum()))
    offset = (shift.double().unsqueeze(1) @ lattice[of_image]).squeeze(1)
    first_image = (n_images.cumsum(0) - n_images).to(device)

    system = batch.system_idx
    laps = torch.floor((batch.positions.unsqueeze(1) @ dual.to(device)[system]).squeeze(1))
    inside = batch.positions - (laps.unsqueeze(1) @ lattice[system]).squeeze(1)
    size = batch.atoms_per_system
    first = size.cumsum(0) - size
    tries = size.cpu() * n_images  # of each atom, by system
    parts = []
    for atoms in _portions(tries.repeat_interleave(size.cpu()).numpy()):
        own = system[atoms]
        i, candidate = _flat(tries.to(device)[own], int(tries[own.cpu()].sum()))
        own, i = own[i], i + atoms.start
        image = first_image[own] + candidate // size[own]
        j = first[own] + candidate % size[own]
        near = (inside[j] - inside[i] + offset[image]).square().sum(1) < cutoff**2
        near &= (i != j) | (shift[image] != 0).any(1)
        i, j, image = i[near], j[near], image[near]
        parts.append((i, j, shift[image] - laps[j] + laps[i]))
    return Neighbors(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _images(reach: Tensor, n_images: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """System (n_images_of_all,) and shift (n_images_of_all, 3) of every image of every system."""
    system, rest = _flat(n_images, total)
    shift = torch.empty(total, 3, dtype=torch.int64, device=reach.device)
    for axis in (2, 1, 0):
        width = 2 * reach[system, axis] + 1
        shift[:, axis] = rest % width - reach[system, axis]
        rest = rest // width
    return system, shift


def _flat(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For ``counts`` (n,) of members: each member's group, and its number there (total,)."""
    groups = torch.arange(len(counts), device=counts.device)
    group = groups.repeat_interleave(counts, output_size=total)
    starts = counts.cumsum(0) - counts
    return group, torch.arange(total, device=counts.device) - starts[group]


def _portions(tries: np.ndarray) -> Iterator[slice]:
    """Runs of atoms with about ``_CANDIDATES_AT_ONCE`` together, from those of each (n_atoms,)."""
    ends, start = np.cumsum(tries), 0
    while start < len(tries):
        done = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, done + _CANDIDATES_AT_ONCE, "right")))
        yield slice(start, end)
        start = end


def padded_number(n_edges: int) -> int:
    """A round number above ``n_edges``, so that few sizes occur."""
    return _EDGES_ROUND * (n_edges // _EDGES_ROUND + 1)


def padding(n_edges: int, n_atoms: int, device: torch.device) -> Neighbors:
    """Edges that only fill room, from atoms to their own images, spread evenly over ``n_atoms``.

    In a cell of twice the cutoff, as a system of their own, they contribute nothing.
    """
    ends = torch.arange(n_edges, device=device) * n_atoms // max(n_edges, 1)
    shifts = torch.zeros(n_edges, 3, dtype=torch.float64, device=device)
    shifts[:, 0] = 1.0
    return Neighbors(ends, ends, shifts)


def edge_vectors(batch: Batch, neighbors: Neighbors) -> Tensor:
    """``r_ij`` (n_edges, 3) in Å and float64; differentiable by positions and cell."""
    i, j = neighbors.i, neighbors.j
    cells = batch.cell[batch.system_idx[i]]
    offsets = (neighbors.shifts.unsqueeze(1) @ cells).squeeze(1)
    return batch.positions[j] - batch.positions[i] + offsets
