"""One immutable HDF5 file of records, read at random and never trusted.

HDF5 finds the columns once; reading is ``pread``: no lock of the HDF5 library, safe in threads and
after a fork, and a file cut short while open is an error instead of a dead process. The index
(offsets, keys, groups) has a checksum verified on opening, each record one verified on reading.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import h5py
import numpy as np

from mlff_distiller.dataset.columns import COLUMNS, Rows, index_checksum, running_total
from mlff_distiller.dataset.layout import INDEX, check_attributes, find_columns, size_of_shard
from mlff_distiller.errors import DatasetError

_TABLE = COLUMNS | INDEX
_REMEDY = "`mlff-distiller data verify` lists the losses; restore the file from a copy"
_MOST_READ = 1 << 30  # bytes one system call is asked for; Linux gives 2 GiB at most


class Shard:
    """A shard open for reading; ``DatasetError`` names it if it is not one of ours or damaged.

    Raises ``FileNotFoundError`` if it is gone. Memory: 16 bytes a record.
    """

    offsets: np.ndarray  # (n + 1,) int64: atoms before each record
    info_offsets: np.ndarray  # (n + 1,) int64: bytes of provenance before each record

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._size = size_of_shard(self._descriptor)
            # HDF5's own locks fail on some cluster file systems; an immutable file needs none.
            with h5py.File(path, "r", locking=False) as file:
                declared = check_attributes(file)
                self._places, n, n_atoms, n_bytes = find_columns(file, self._size)
            self._load_index(n, n_atoms, n_bytes, declared)
        except FileNotFoundError:
            raise
        except DatasetError as error:
            raise DatasetError(
                f"shard {path}: {error.problem}",
                expected=error.expected,
                found=error.found,
                remedy=error.remedy or _REMEDY,
            ) from error
        except Exception as error:  # on garbage HDF5 and h5py raise anything
            raise DatasetError(
                f"shard {path} cannot be opened: truncated, damaged or not HDF5",
                found=error,
                remedy=_REMEDY,
            ) from error

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)

    def __reduce__(self) -> tuple[type[Shard], tuple[Path]]:
        return Shard, (self.path,)  # a descriptor means nothing in another process

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_atoms(self) -> int:
        return int(self.offsets[-1])

    def keys(self) -> np.ndarray:
        """(n,) S64."""
        return self._rows_of("key", [(0, len(self))])

    def groups(self) -> np.ndarray:
        """(n,) int64."""
        return self._rows_of("group", [(0, len(self))])

    def read(self, records: np.ndarray) -> Rows:
        """Strictly ascending ``records`` (m,), checksums verified.

        Cost: some 15 reads for each run of neighbouring records, whatever the shard's size.
        """
        rows, damaged = self.inspect(records)
        if len(damaged):
            raise DatasetError(
                f"shard {self.path}: record {damaged[0]} is damaged (checksum mismatch)"
                + (f", and {len(damaged) - 1} others" if len(damaged) > 1 else ""),
                remedy=_REMEDY,
            )
        return rows

    def inspect(self, records: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Strictly ascending ``records`` (m,) as stored, and which of them are damaged."""
        breaks = np.flatnonzero(np.diff(records, prepend=-2, append=-2) != 1)
        runs = list(
            zip(records[breaks[:-1]].tolist(), (records[breaks[1:] - 1] + 1).tolist(), strict=True)
        )
        rows = Rows(
            running_total(self.offsets[records + 1] - self.offsets[records]),
            running_total(self.info_offsets[records + 1] - self.info_offsets[records]),
            {name: self._rows_of(name, runs) for name in COLUMNS},
        )
        return rows, records[self._rows_of("checksum", runs) != rows.checksums()]

    def _rows_of(self, name: str, runs: list[tuple[int, int]]) -> np.ndarray:
        """What column ``name`` holds for ``runs`` of records (first, last + 1)."""
        bounds = {"atom": self.offsets, "byte": self.info_offsets}.get(_TABLE[name].per)
        if bounds is not None:
            runs = [(int(bounds[first]), int(bounds[end])) for first, end in runs]
        return self._pread(name, runs)

    def _pread(self, name: str, runs: list[tuple[int, int]]) -> np.ndarray:
        """Rows first…end of column ``name`` for each of ``runs``, one after another."""
        place, column = self._places[name], _TABLE[name]
        array = np.empty((sum(end - first for first, end in runs), *column.shape), column.dtype)
        view, filled, row_bytes = array.reshape(-1).view(np.uint8).data, 0, column.row_bytes
        for first, end in runs:
            position, stop = place + first * row_bytes, place + end * row_bytes
            while position < stop:
                piece = view[filled : filled + min(stop - position, _MOST_READ)]
                try:
                    got = os.preadv(self._descriptor, [piece], position)
                except OSError as error:
                    raise DatasetError(
                        f"shard {self.path} cannot be read", found=error, remedy=_REMEDY
                    ) from error
                if got == 0:
                    raise DatasetError(f"shard {self.path} was cut short", remedy=_REMEDY)
                position, filled = position + got, filled + got
        return array

    def _load_index(self, n: int, n_atoms: int, n_bytes: int, declared: int) -> None:
        self.offsets = self._pread("offsets", [(0, n + 1)])
        self.info_offsets = self._pread("info_offsets", [(0, n + 1)])
        for name, offsets, total in (
            ("offsets", self.offsets, n_atoms),
            ("info_offsets", self.info_offsets, n_bytes),
        ):
            if offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
                raise DatasetError(f"{name} do not ascend from 0 to {total}")
        if index_checksum(self.offsets, self.info_offsets, self.keys(), self.groups()) != declared:
            raise DatasetError("the index of records is damaged (checksum mismatch)")
