"""Minibatches joined on the device from a training set that lies there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from mlff_distiller.kernels import warp_gather
from mlff_distiller.kernels.compiling import OnTensors
from mlff_distiller.training.minibatch import BY_EDGE, BY_SYSTEM, Minibatch, Size


class Resident:
    """A minibatch of a fixed size in ``part``, made of the units that were chosen last.

    The host sends the numbers of the units; no other work of it depends on what they hold.

    Parameters
    ----------
    table, sizes
        `Minibatches.table`, on the device.
    size
        Of ``part``, with room for padding.
    """

    def __init__(self, table: Minibatch, sizes: np.ndarray, size: Size) -> None:
        self._all, self._sizes = table, sizes
        self._firsts = np.cumsum(self._sizes, 0) - self._sizes
        device = table.types.device
        self._starts = torch.zeros(size.n_systems + 2, 6, dtype=torch.int32, device=device)
        columns = {}
        for field in fields(Minibatch):
            own = getattr(table, field.name)
            length = size.n_systems if field.name in BY_SYSTEM else size.n_atoms
            length = size.n_edges if field.name in BY_EDGE else length
            columns[field.name] = own.new_zeros(length, *own.shape[1:])
        self.part = Minibatch(**columns)
        self._kernels = warp_gather.build(
            float64=table.forces.dtype == torch.float64, device=device.type
        )
        self.choose([])

    def choose(self, units: Sequence[int]) -> None:
        """Those that the next `fill` joins."""
        chosen = list(units)
        rows = np.zeros((len(chosen) + 2, 6), dtype=np.int32)
        rows[0, 0] = len(chosen)
        rows[1:-1, :3] = self._firsts[chosen]
        rows[2:, 3:] = np.cumsum(self._sizes[chosen], 0)
        self._starts[: len(rows)].copy_(torch.from_numpy(rows), non_blocking=True)

    def fill(self) -> Minibatch:
        """``part``, made again; part of a CUDA graph, if one is being captured."""
        k, part, run = (
            self._kernels,
            self.part,
            OnTensors(self._kernels.module, self._starts.device),
        )
        n, starts = self._starts[0, :1], self._starts[1:]

        def columns(names: Sequence[str], of: Minibatch) -> list[Tensor]:
            return [getattr(of, name) for name in names]

        by_atom = [field.name for field in fields(part) if field.name not in (*BY_SYSTEM, *BY_EDGE)]
        for kernel, names in ((k.systems, BY_SYSTEM), (k.atoms, by_atom)):
            source = columns(names, self._all)
            made = columns(names, part)
            run(kernel, len(made[0]), n, starts, len(source[0]), *source, *made)
        source, made = columns(BY_EDGE, self._all), columns(BY_EDGE, part)
        sizes = (len(part.types), len(part.i))
        run(k.pairs, len(part.i), n, starts, len(self._all.i), *source, *sizes, *made)
        return part
