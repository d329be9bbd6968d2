"""Pairs of single records, compact enough to keep: 5 to 8 bytes an edge, where tensors take 40."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.neighbors import Neighbors, find_pairs


@dataclass(frozen=True)
class Pairs:
    """All pairs of one structure, sorted by ``i``."""

    counts: np.ndarray  # (n_atoms,) int32: pairs of each i
    j: np.ndarray  # (n_edges,) uint16, or int32 in structures of more than 65,536 atoms
    shifts: np.ndarray  # (n_edges, 3) int8, or int32 where a shift exceeds 127

    @property
    def n_bytes(self) -> int:
        return self.counts.nbytes + self.j.nbytes + self.shifts.nbytes


def pairs_of(batch: Batch, known: Mapping[int, Pairs], cutoff: float) -> list[Pairs]:
    """Pairs of each system within ``cutoff`` (Å), unless ``known`` has them by its place in it."""
    positions, cell, pbc = batch.positions.numpy(), batch.cell.numpy(), batch.pbc.numpy()
    found, start = [], 0
    for system, size in enumerate(batch.atoms_per_system.tolist()):
        own = positions[start : start + size]
        found.append(known.get(system) or _search(own, cell[system], pbc[system], cutoff))
        start += size
    return found


@dataclass(frozen=True)
class Packed:
    """Pairs of a batch as they travel to a GPU: 7 bytes each instead of 40."""

    counts: Tensor  # (n_atoms,) int32: pairs of each i
    j: Tensor  # (n_edges,) int32
    shifts: Tensor  # (n_edges, 3) int8, or int32 where one exceeds 127

    def unpack(self) -> Neighbors:
        """As ``neighbor_list`` gives them; on a GPU without waiting for it."""
        atoms = torch.arange(len(self.counts), device=self.j.device)
        return Neighbors(
            torch.repeat_interleave(atoms, self.counts, output_size=len(self.j)),
            self.j.long(),
            self.shifts.double(),
        )


def pack(parts: Sequence[Pairs]) -> Packed:
    """Those of the batch whose systems have ``parts``."""
    sizes = np.array([len(part.counts) for part in parts])
    starts = np.repeat(np.cumsum(sizes) - sizes, [len(part.j) for part in parts])
    j = np.concatenate([part.j for part in parts], dtype=np.int32)
    j += starts.astype(np.int32)
    return Packed(
        torch.from_numpy(np.concatenate([part.counts for part in parts])),
        torch.from_numpy(j),
        torch.from_numpy(np.concatenate([part.shifts for part in parts])),
    )


def _search(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Pairs:
    i, j, shifts = find_pairs(positions, cell, pbc, cutoff, n_threads=1)
    small = not len(shifts) or np.abs(shifts).max() <= 127
    return Pairs(
        np.bincount(i, minlength=len(positions)).astype(np.int32),
        j.astype(np.uint16 if len(positions) <= 2**16 else np.int32),
        shifts.astype(np.int8 if small else np.int32),
    )
