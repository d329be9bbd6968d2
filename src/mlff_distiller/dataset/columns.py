"""What a record is made of: one table of columns, and ragged records as flat arrays.

The table is that of ``properties`` plus identity: ``key`` (64 hexadecimal digits), ``group`` (what
a split must not separate) and ``info`` (provenance, compact JSON in UTF-8). All little-endian.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from mlff_distiller.properties import LABELS, STRUCTURE

Per = Literal["atom", "system", "byte"]


@dataclass(frozen=True)
class Column:
    """One flat array: a row for each atom, each system, or each byte of provenance."""

    per: Per
    shape: tuple[int, ...]
    dtype: np.dtype
    optional: bool = False
    """A per-atom column that most teachers lack: all NaN, and then not stored."""

    @cached_property
    def row_bytes(self) -> int:
        """Bytes a row takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def lacking(self, n_rows: int) -> np.ndarray:
        """NaN in ``n_rows`` rows."""
        return np.full((n_rows, *self.shape), np.nan, self.dtype)


COLUMNS: dict[str, Column] = {
    **{
        name: Column(
            row.per,
            row.shape,
            np.dtype(row.dtype).newbyteorder("<"),
            optional=row.per == "atom" and not row.required,
        )
        for name, row in (STRUCTURE | LABELS).items()
    },
    "key": Column("system", (), np.dtype("S64")),
    "group": Column("system", (), np.dtype("<i8")),
    "info": Column("byte", (), np.dtype("u1")),
}
"""In the order of the checksum, except for the rule given at ``Rows.checksums``."""

OPTIONAL = tuple(name for name, column in COLUMNS.items() if column.optional)


@dataclass(frozen=True)
class Rows:
    """Records as flat arrays. ``len(rows)`` is their number, n."""

    offsets: np.ndarray  # (n + 1,) int64: atoms before each record, from 0
    info_offsets: np.ndarray  # (n + 1,) int64: bytes of provenance before each record, from 0
    columns: Mapping[str, np.ndarray]  # name of COLUMNS -> (n_atoms, n or n_bytes, *shape)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def bounds(self, column: Column) -> np.ndarray:
        """(n + 1,) int64: rows of ``column`` before each record."""
        if column.per == "atom":
            return self.offsets
        return self.info_offsets if column.per == "byte" else np.arange(len(self) + 1)

    def take(self, order: np.ndarray) -> Rows:
        """The records numbered ``order`` (m,), in that order; repetitions are allowed."""
        pick = {
            "atom": _ragged_index(self.offsets, order),
            "byte": _ragged_index(self.info_offsets, order),
            "system": order,
        }
        return Rows(
            running_total(np.diff(self.offsets)[order]),
            running_total(np.diff(self.info_offsets)[order]),
            {name: array[pick[COLUMNS[name].per]] for name, array in self.columns.items()},
        )

    def holds(self, name: str) -> np.ndarray:
        """(n,) bool: which records have the optional column ``name``.

        One that lacks it has the very bytes of ``Column.lacking``: no other NaN passes for them.
        """
        array, lacking = self.columns[name], COLUMNS[name].lacking(1)
        bits = np.dtype(f"u{array.dtype.itemsize}")
        written = (array.view(bits) != lacking.view(bits)).reshape(len(array), -1).any(1)
        if not written.any():
            return np.zeros(len(self), bool)
        total = running_total(written)[self.offsets]
        return np.asarray(total[1:] > total[:-1])

    def checksums(self) -> np.ndarray:
        """(n,) uint64: blake2b, 8 bytes, little-endian, of each record.

        Hashed in turn: number of atoms and of provenance bytes (int64), all per-system columns,
        all per-atom columns that are not optional, the provenance; then name and values of each
        optional column that the record has. So what a schema without a column holds keeps its
        checksum in the next. Costs about 5 µs per record and 1 ns per byte.
        """
        n = len(self)
        fixed = [_bytes_of(self.columns[name], n) for name in _of("system")]
        sizes = np.stack([np.diff(self.offsets), np.diff(self.info_offsets)], 1).astype("<i8")
        per_system = np.concatenate([_bytes_of(sizes, n), *fixed], axis=1)
        ragged = [self._ragged(name) for name in (*_of("atom"), *_of("byte"))]
        optional = [
            (name.encode(), held.tolist(), *self._ragged(name))
            for name in OPTIONAL
            if (held := self.holds(name)).any()
        ]
        sums = np.empty(n, dtype="<u8")
        for record in range(n):
            digest = hashlib.blake2b(per_system[record].data, digest_size=8)
            for view, bounds in ragged:
                digest.update(view[bounds[record] : bounds[record + 1]])
            for name, held, view, bounds in optional:
                if held[record]:
                    digest.update(name)
                    digest.update(view[bounds[record] : bounds[record + 1]])
            sums[record] = struct.unpack("<Q", digest.digest())[0]
        return sums

    def _ragged(self, name: str) -> tuple[memoryview, list[int]]:
        """The bytes of a column, and before which of them each record begins."""
        bounds = self.bounds(COLUMNS[name]) * COLUMNS[name].row_bytes
        return _flat(self.columns[name]).data, bounds.tolist()

    def index_checksum(self) -> int:
        """One blake2b of 8 bytes over what finds and identifies all records."""
        return index_checksum(
            self.offsets, self.info_offsets, self.columns["key"], self.columns["group"]
        )


def index_checksum(*arrays: np.ndarray) -> int:
    """blake2b, 8 bytes, of ``offsets``, ``info_offsets``, ``key`` and ``group``."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(_flat(array).data)
    return int(struct.unpack("<Q", digest.digest())[0])


def concatenate(parts: Sequence[Rows]) -> Rows:
    """All records of ``parts``, in order; none of no parts."""
    if len(parts) == 1:
        return parts[0]
    no_sizes = np.zeros(0, np.int64)
    return Rows(
        running_total(np.concatenate([no_sizes, *(np.diff(part.offsets) for part in parts)])),
        running_total(np.concatenate([no_sizes, *(np.diff(part.info_offsets) for part in parts)])),
        {
            name: np.concatenate(
                [np.zeros((0, *column.shape), column.dtype)]
                + [part.columns[name] for part in parts]
            )
            for name, column in COLUMNS.items()
        },
    )


def running_total(sizes: np.ndarray) -> np.ndarray:
    """(n + 1,) int64, from 0 to the sum."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _ragged_index(bounds: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Row numbers of the records ``order``, whose rows lie between ``bounds``."""
    sizes = np.diff(bounds)[order]
    ends = running_total(sizes)
    return np.repeat(bounds[:-1][order] - ends[:-1], sizes) + np.arange(ends[-1])


def _of(per: str) -> tuple[str, ...]:
    return tuple(n for n, column in COLUMNS.items() if column.per == per and not column.optional)


def _bytes_of(array: np.ndarray, n: int) -> np.ndarray:
    """(n, bytes per record) uint8."""
    return _flat(array).reshape(n, -1)


def _flat(array: np.ndarray) -> np.ndarray:
    """(bytes,) uint8."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
