"""One immutable HDF5 file of records, read at random and never trusted.

HDF5 finds the columns once; reading is ``pread``: no lock of the HDF5 library, safe in threads and
after a fork, and a file cut short while open is an error instead of a dead process. The index
(offsets, keys, groups) has a checksum verified on opening, each record one verified on reading.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from mlff_distiller.dataset.columns import (
    COLUMNS,
    OPTIONAL,
    Rows,
    concatenate,
    index_checksum,
    running_total,
)
from mlff_distiller.dataset.layout import (
    INDEX,
    Table,
    check_attributes,
    find_places,
    size_of_shard,
    tables_of,
    unpack,
)
from mlff_distiller.errors import DatasetError

_REMEDY = "`mlff-distiller data verify` lists the losses; restore the file from a copy"
_MOST_READ = 1 << 30  # bytes one system call is asked for; Linux gives 2 GiB at most


class Shard:
    """A shard open for reading; ``DatasetError`` names it if it is not one of ours or damaged.

    Raises ``FileNotFoundError`` if it is gone. Memory: 16 bytes per record.
    """

    tables: dict[str, Table]  # those it has of its schema
    places: dict[str, int]  # byte position of each table
    bounds: np.ndarray  # (n + 1, 2) int64: atoms and bytes of provenance before each record

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._size = size_of_shard(self._descriptor)
            # HDF5's own locks fail on some cluster file systems; an immutable file needs none.
            with h5py.File(path, "r", locking=False) as file:
                schema, declared = check_attributes(file)
                self.tables = tables_of(file, schema)
                self.places, n, n_atoms, n_bytes = find_places(file, self.tables, self._size)
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
        return len(self.bounds) - 1

    @property
    def n_atoms(self) -> int:
        return int(self.bounds[-1, 0])

    def sizes(self) -> np.ndarray:
        """(n,) int64: atoms of each record."""
        return np.diff(self.bounds[:, 0])

    def keys(self) -> np.ndarray:
        """(n,) S64."""
        return self._column("key")

    def groups(self) -> np.ndarray:
        """(n,) int64."""
        return self._column("group")

    def read(self, records: np.ndarray) -> Rows:
        """Strictly ascending ``records`` (m,), checksums verified."""
        return read([(self, records)])

    def inspect(self, records: np.ndarray) -> tuple[Rows, np.ndarray]:
        """Strictly ascending ``records`` (m,) as stored, and which of them are damaged."""
        rows, damaged = inspect([(self, records)])
        return rows, records[damaged]

    def fill(self, view: memoryview, position: int) -> None:
        """Read as many bytes as ``view`` takes from ``position`` of the file on."""
        while view:
            try:
                got = os.preadv(self._descriptor, [view[:_MOST_READ]], position)
            except OSError as error:
                raise DatasetError(
                    f"shard {self.path} cannot be read", found=error, remedy=_REMEDY
                ) from error
            if got == 0:
                raise DatasetError(f"shard {self.path} was cut short", remedy=_REMEDY)
            view, position = view[got:], position + got

    def _column(self, name: str) -> np.ndarray:
        """(n, …) of one per-system column."""
        home, table = next((k, own) for k, own in self.tables.items() if name in own.columns)
        return unpack(table, self._whole(home, table.dtype, len(self)))[name]

    def _whole(self, name: str, row: np.dtype, n_rows: int) -> np.ndarray:
        array = np.empty((n_rows, *row.shape), row.base)
        self.fill(_bytes_of(array), self.places[name])
        return array

    def _load_index(self, n: int, n_atoms: int, n_bytes: int, declared: int) -> None:
        index = [self._whole(name, np.dtype("<i8"), n + 1) for name in INDEX]
        self.bounds = np.stack(index, axis=1)
        for name, offsets, total in zip(INDEX, index, (n_atoms, n_bytes), strict=True):
            if offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
                raise DatasetError(f"{name} do not ascend from 0 to {total}")
        if index_checksum(*index, self.keys(), self.groups()) != declared:
            raise DatasetError("the index of records is damaged (checksum mismatch)")


def read(parts: Sequence[tuple[Shard, np.ndarray]]) -> Rows:
    """Strictly ascending records of each shard, one part after another, checksums verified.

    Cost: a system call for each table and run of neighbouring records, and 5 µs per record.
    """
    rows, damaged = inspect(parts)
    if len(damaged):
        homes = [(shard, record) for shard, records in parts for record in records.tolist()]
        shard, record = homes[damaged[0]]
        raise DatasetError(
            f"shard {shard.path}: record {record} is damaged (checksum mismatch)"
            + (f", and {len(damaged) - 1} others" if len(damaged) > 1 else ""),
            remedy=_REMEDY,
        )
    return rows


def inspect(parts: Sequence[tuple[Shard, np.ndarray]]) -> tuple[Rows, np.ndarray]:
    """The same as stored, and which of the rows, counted through all parts, are damaged."""
    rows, stored = [], []
    for _, own in itertools.groupby(parts, lambda part: part[0].tables):
        some, checksums = _stored(list(own))
        rows.append(some)
        stored.append(checksums)
    together = concatenate(rows)
    return together, np.flatnonzero(np.concatenate(stored) != together.checksums())


def _stored(parts: Sequence[tuple[Shard, np.ndarray]]) -> tuple[Rows, np.ndarray]:
    """Records of shards of the same tables, and the checksums stored with them."""
    shards, home, runs, offsets, info_offsets = _runs(parts)
    n_rows = {"system": len(offsets) - 1, "atom": offsets[-1], "byte": info_offsets[-1]}
    columns: dict[str, np.ndarray] = {}
    for name, table in shards[0].tables.items():
        row_bytes, (first, end) = table.dtype.itemsize, runs[table.per]
        array = np.empty((n_rows[table.per], *table.dtype.shape), table.dtype.base)
        view, filled = _bytes_of(array), 0
        places = np.array([shard.places[name] for shard in shards])[home]
        positions = (places + first * row_bytes).tolist()
        lengths = ((end - first) * row_bytes).tolist()
        for shard, position, length in zip(home.tolist(), positions, lengths, strict=True):
            shards[shard].fill(view[filled : filled + length], position)
            filled += length
        columns |= unpack(table, array)
    checksums = columns.pop("checksum")
    columns |= {
        name: COLUMNS[name].lacking(n_rows["atom"]) for name in OPTIONAL if name not in columns
    }
    return Rows(offsets, info_offsets, {name: columns[name] for name in COLUMNS}), checksums


def _runs(
    parts: Sequence[tuple[Shard, np.ndarray]],
) -> tuple[
    list[Shard], np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray, np.ndarray
]:
    """Runs of neighbouring records: their part, and for each kind of column first and last + 1.

    Then the offsets of all rows. Little is done shard by shard: a batch may touch them all.
    """
    shards, homes, starts, ends, records = [], [], [], [], []
    for part, (shard, own) in enumerate(parts):
        shards.append(shard)
        homes.append([part] * len(own))
        starts.append(shard.bounds[own])
        ends.append(shard.bounds[own + 1])
        records.append(own)
    home, record = np.concatenate(homes), np.concatenate(records)
    start, end = np.concatenate(starts), np.concatenate(ends)
    offsets, info_offsets = (running_total(sizes) for sizes in (end - start).T)
    fresh = np.diff(record, prepend=-2) != 1
    fresh |= np.diff(home, prepend=-1) != 0
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(record)) - 1
    runs = {
        "system": (record[first], record[last] + 1),
        "atom": (start[first, 0], end[last, 0]),
        "byte": (start[first, 1], end[last, 1]),
    }
    return shards, home[first], runs, offsets, info_offsets


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
