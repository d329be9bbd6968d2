"""Which atoms belong to which system, on a device, and portions of them to sum in parallel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import warp as wp
from numpy.typing import NDArray

SMALLEST_CHUNK = 8


@dataclass(frozen=True)
class Systems:
    """Atoms of several systems, one system after another.

    One thread sums a chunk, and one the chunks of a system: with about as many chunks as atoms in
    each neither takes long. A system's chunks depend on its size alone, and so do its sums.
    """

    n_atoms: int
    sizes: NDArray[np.int64]  # (n_systems,)
    system_idx: wp.array  # (n_atoms,) ascending
    first_atom: wp.array  # (n_systems,)
    chunks: wp.array  # (n_chunks,) vec3i: system, first atom, last atom + 1
    first_chunk: wp.array  # (n_systems + 1,)

    @property
    def n_systems(self) -> int:
        return len(self.sizes)

    @property
    def n_chunks(self) -> int:
        return len(self.chunks)

    @classmethod
    def of_sizes(cls, sizes: NDArray[np.int64], device: wp.Device) -> Systems:
        """Systems with the given numbers of atoms, none empty."""
        sizes = np.asarray(sizes, dtype=np.int64)
        ends = np.cumsum(sizes)
        starts = ends - sizes
        rows, first_chunk = [], [0]
        for system, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            chunk = max(SMALLEST_CHUNK, math.isqrt(end - start))
            begins = np.arange(start, end, chunk)
            stops = np.minimum(begins + chunk, end)
            rows.append(np.stack([np.full(len(begins), system), begins, stops], 1))
            first_chunk.append(first_chunk[-1] + len(begins))

        def integers(values: NDArray[np.int64], dtype: type = int) -> wp.array:
            return wp.array(values.astype(np.int32), dtype=dtype, device=device)

        return cls(
            int(ends[-1]),
            sizes,
            integers(np.repeat(np.arange(len(sizes)), sizes)),
            integers(starts),
            integers(np.concatenate(rows), wp.vec3i),
            integers(np.array(first_chunk)),
        )
