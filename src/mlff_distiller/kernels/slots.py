"""Neighbours as a table, so that sums over them are batched matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """Neighbours as a table: row = atom, column = slot. Empty slots lie beyond every cutoff."""

    vectors: Tensor  # (n_atoms, n_slots, 3) Å
    neighbors: Tensor  # (n_atoms, n_slots) int64; of an empty slot the atom itself
    neighbor_types: Tensor  # (n_atoms, n_slots) int64
    rows: Tensor  # (n_edges,) where edge e lies
    columns: Tensor  # (n_edges,)

    @classmethod
    def from_edges(
        cls,
        types: Tensor,
        i: Tensor,
        j: Tensor,
        vectors: Tensor,
        far: float,
        n_slots: int | None = None,
    ) -> Slots:
        """``i`` must ascend; ``far`` (Å) is any length beyond the largest cutoff.

        An atom with more than ``n_slots`` edges must have none within a cutoff.
        """
        n_atoms = len(types)
        columns = torch.arange(len(i), device=i.device) - torch.searchsorted(i, i)
        if n_slots is None:
            n_slots = int(columns.max()) + 1 if len(i) else 0
        columns = columns.clamp(max=n_slots - 1)
        table = vectors.new_zeros((n_atoms, n_slots, 3))
        table[..., 0] = far
        # Repeated, not expanded: compiled code scatters wrongly into the latter.
        own = torch.arange(n_atoms, device=i.device).unsqueeze(1).repeat(1, n_slots)
        place = (i, columns)
        neighbors = own.index_put(place, j)
        return cls(table.index_put(place, vectors), neighbors, types[neighbors], i, columns)


def one_hot(types: Tensor, n_types: int, dtype: torch.dtype) -> Tensor:
    """(...) -> (..., T). PyTorch's own looks at the values, which a compiler cannot follow."""
    if n_types == 1:
        return torch.ones((*types.shape, 1), dtype=dtype, device=types.device)
    return (types.unsqueeze(-1) == torch.arange(n_types, device=types.device)).to(dtype)


def by_type(values: Tensor, neighbor_types: Tensor, n_types: int) -> Tensor:
    """(N, J, K) -> (N, J, T*K): values in the columns of the neighbour's type, 0 elsewhere."""
    if n_types == 1:
        return values
    own = one_hot(neighbor_types, n_types, values.dtype)
    return (own.unsqueeze(-1) * values.unsqueeze(-2)).flatten(2)
