"""Several shards read as one sequence of records."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlff_distiller.dataset.columns import Rows, concatenate, running_total
from mlff_distiller.dataset.manifest import ShardEntry
from mlff_distiller.dataset.shard import Shard, read
from mlff_distiller.errors import DatasetError

_MOST_OPEN = 256  # shards, and so file descriptors, held open


class ShardSequence:
    """Shards of ``folder`` in order. Each is opened when first needed.

    Every method raises ``FileNotFoundError`` if a shard is gone and ``DatasetError`` if one is
    damaged or not what the manifest says.
    """

    def __init__(self, folder: Path, entries: Sequence[ShardEntry]) -> None:
        self.folder = folder
        self.entries = tuple(entries)
        self.starts = running_total(np.array([entry.n_records for entry in entries], np.int64))
        self._open: dict[str, Shard] = {}

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def replaced_by(self, entries: Sequence[ShardEntry]) -> ShardSequence:
        """Another sequence in the same folder; shards common to both stay open."""
        other = ShardSequence(self.folder, entries)
        kept = {entry.name for entry in entries}
        other._open = {name: shard for name, shard in self._open.items() if name in kept}
        return other

    def shard(self, entry: ShardEntry) -> Shard:
        """Open ``entry`` and compare it with the manifest, or return it if it is open."""
        shard = self._open.get(entry.name)
        if shard is None:
            shard = Shard(self.folder / entry.name)
            found = (len(shard), shard.n_atoms)
            if found != (entry.n_records, entry.n_atoms):
                raise DatasetError(
                    f"shard {shard.path} is not the one the manifest lists",
                    expected=f"{entry.n_records} records of {entry.n_atoms} atoms",
                    found=f"{found[0]} records of {found[1]} atoms",
                    remedy="restore the file from a copy",
                )
            for name in list(self._open)[: max(0, len(self._open) - _MOST_OPEN + 1)]:
                self._open.pop(name, None)  # another thread may have been quicker
            self._open[entry.name] = shard
        return shard

    def read(self, records: np.ndarray) -> Rows:
        """Records numbered ``records`` (m,), in that order, checksums verified."""
        wanted, order = np.unique(records, return_inverse=True)
        homes = np.searchsorted(self.starts, wanted, side="right") - 1
        if not len(wanted):
            return concatenate([])
        breaks = np.flatnonzero(np.diff(homes, prepend=-1, append=-1)).tolist()
        rows = read(
            [
                (self.shard(self.entries[homes[own]]), wanted[own:end] - self.starts[homes[own]])
                for own, end in itertools.pairwise(breaks)
            ]
        )
        return rows if np.array_equal(wanted, records) else rows.take(order)

    def sizes(self) -> np.ndarray:
        """(n,) int64: atoms of each record."""
        return self._gather([self.shard(entry).sizes() for entry in self.entries])

    def groups(self) -> np.ndarray:
        """(n,) int64."""
        return self._gather([self.shard(entry).groups() for entry in self.entries])

    def keys(self) -> np.ndarray:
        """(n,) S64."""
        return self._gather([np.zeros(0, "S64"), *(self.shard(e).keys() for e in self.entries)])

    @staticmethod
    def _gather(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)
