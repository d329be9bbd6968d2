"""Neighbour lists on the CPU, in one convention: ``r_ij = r_j - r_i + S @ cell``.

Every ordered pair within the cutoff appears once for each periodic image, so both (i, j, S) and
(j, i, -S) are listed, and an atom neighbours its own images. Correct for any mixture of periodic
directions, cells smaller than the cutoff, skewed and left-handed cells, and unwrapped positions.
The search itself is vesin's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.geometry import complete_cell
from torch import Tensor
from vesin import NeighborList

from mlff_distiller.batch import Batch


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

    def to(self, device: torch.device | str) -> Neighbors:
        return Neighbors(self.i.to(device), self.j.to(device), self.shifts.to(device))


def find_pairs(
    positions: np.ndarray,  # (n_atoms, 3) Å
    cell: np.ndarray,  # (3, 3) Å
    pbc: np.ndarray,  # (3,) bool
    cutoff: float,  # Å
    n_threads: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``i`` ascending (n_edges,), ``j`` (n_edges,), ``S`` (n_edges, 3) of one structure.

    ``n_threads`` 0: as many as ``OMP_NUM_THREADS`` says, or as there are cores.
    """
    box = complete_cell(cell) if pbc.any() else np.zeros((3, 3))
    search = NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=n_threads)
    i, j, shifts = search.compute(
        points=np.ascontiguousarray(positions, dtype=np.float64),
        box=box,
        periodic=[bool(axis) for axis in pbc],
        quantities="ijS",
    )
    return i.astype(np.int64), j.astype(np.int64), shifts.astype(np.float64)


def neighbor_list(batch: Batch, cutoff: float) -> Neighbors:
    """All pairs of every system of ``batch`` within ``cutoff`` (Å). Time O(n_atoms)."""
    positions, cell, pbc = batch.positions.cpu().numpy(), batch.cell.cpu().numpy(), batch.pbc.cpu()
    sizes = batch.atoms_per_system.tolist()
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


def edge_vectors(batch: Batch, neighbors: Neighbors) -> Tensor:
    """``r_ij`` (n_edges, 3) in Å and float64; differentiable by positions and cell."""
    i, j = neighbors.i, neighbors.j
    cells = batch.cell[batch.system_idx[i]]
    offsets = (neighbors.shifts.unsqueeze(1) @ cells).squeeze(1)
    return batch.positions[j] - batch.positions[i] + offsets
