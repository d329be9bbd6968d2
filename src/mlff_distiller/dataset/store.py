"""Reading a dataset: a folder of immutable shards and a manifest."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlff_distiller.batch import Batch
from mlff_distiller.dataset.columns import Rows
from mlff_distiller.dataset.manifest import dataset_folder, read_manifest
from mlff_distiller.dataset.record import Record, provenance_of, to_batch, to_records
from mlff_distiller.dataset.shards import ShardSequence
from mlff_distiller.errors import DatasetError

_Answer = TypeVar("_Answer")
_AT_ONCE = 1024  # records held in memory


class Dataset:
    """The records a folder held when it was opened; later appends need a new ``Dataset``.

    A run's folder will do.

    A writer may append and merge meanwhile. May be pickled and used in threads and forks.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = dataset_folder(folder)
        manifest = read_manifest(self.folder)
        self._metadata, self._n = manifest.metadata, manifest.n_records
        self._shards = ShardSequence(self.folder, manifest.shards)

    def __len__(self) -> int:
        return self._n

    @property
    def metadata(self) -> dict[str, Any]:
        """What the writer was given, as JSON holds it."""
        return copy.deepcopy(self._metadata)

    @cached_property
    def keys(self) -> list[str]:
        """(n,) of 64 hexadecimal digits; ``key_column`` takes a third of the memory."""
        return [key.decode("ascii") for key in self.key_column.tolist()]

    @cached_property
    def key_column(self) -> np.ndarray:
        """(n,) S64, read-only: the keys as bytes."""
        return self._column(ShardSequence.keys)

    @cached_property
    def key_hash(self) -> str:
        """SHA-256 of the keys in their order: which labels these are, without reading them."""
        return hashlib.sha256(self.key_column.tobytes()).hexdigest()

    @cached_property
    def groups(self) -> np.ndarray:
        """(n,) int64, read-only."""
        return self._column(ShardSequence.groups)

    @cached_property
    def n_atoms(self) -> np.ndarray:
        """(n,) int64, read-only: atoms of each record."""
        return self._column(ShardSequence.sizes)

    @cached_property
    def disagreement(self) -> np.ndarray:
        """(n,) eV/Å, read-only: the largest ``forces_spread`` of each record, NaN without one."""
        largest = [
            np.fmax.reduceat(rows.columns["forces_spread"], rows.offsets[:-1])
            for rows in self._chunks(None)
        ]
        column = np.concatenate([np.zeros(0, np.float32), *largest])
        column.flags.writeable = False
        return column

    def read(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Records ``indices`` (m,) in that order, repetitions allowed; missing labels are NaN.

        Every record's checksum is verified. Cost: some 35 µs per record at random, 4 in runs.
        """
        return to_batch(self._rows(indices))

    def records(self, indices: Sequence[int] | np.ndarray) -> list[Record]:
        """The same with key, group, provenance, charge and spin; missing labels are absent."""
        return to_records(self._rows(indices))

    def provenance(self, index: int) -> dict[str, Any]:
        """Where record ``index`` comes from."""
        return provenance_of(self._rows([index]), 0)

    def provenances(
        self, indices: Sequence[int] | np.ndarray | None = None
    ) -> list[dict[str, Any]]:
        """The same for ``indices`` (m,), or for every record; some 10 µs each in runs."""
        return [
            provenance_of(rows, row) for rows in self._chunks(indices) for row in range(len(rows))
        ]

    def iterate(self, indices: Sequence[int] | np.ndarray | None = None) -> Iterator[Record]:
        """``records(indices)``, or every record, one by one; a thousand at most are in memory."""
        for rows in self._chunks(indices):
            yield from to_records(rows)

    def label_set_hash(self) -> str:
        """SHA-256 of the set of (key, labels): equal whatever order, shards and provenance are.

        Some 20 µs per record.
        """
        digests = []
        for record in self.iterate():
            digest = hashlib.sha256(record.key.encode())
            for name in sorted(record.labels):
                digest.update(name.encode() + record.labels[name].astype("<f8").tobytes())
            digests.append(digest.digest())
        return hashlib.sha256(b"".join(sorted(digests))).hexdigest()

    def _chunks(self, indices: Sequence[int] | np.ndarray | None) -> Iterator[Rows]:
        wanted = np.arange(self._n) if indices is None else np.asarray(indices)
        for start in range(0, len(wanted), _AT_ONCE):
            yield self._rows(wanted[start : start + _AT_ONCE])

    def numbers(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """``indices`` as (m,) int64 from 0 on; ``TypeError`` or ``IndexError`` names a bad one."""
        wanted = np.asarray(indices)
        if wanted.size and (wanted.ndim != 1 or wanted.dtype.kind not in "iu"):
            raise TypeError(f"indices must be a list of whole numbers, not {indices!r}")
        wanted = wanted.reshape(-1).astype(np.int64)
        wanted = np.where(wanted < 0, wanted + self._n, wanted)
        outside = (wanted < 0) | (wanted >= self._n)
        if outside.any():
            wrong = np.asarray(indices)[outside][0]
            raise IndexError(f"no record {wrong} in dataset {self.folder} of {self._n} records")
        return wanted

    def _rows(self, indices: Sequence[int] | np.ndarray) -> Rows:
        wanted = self.numbers(indices)
        return self._ask(lambda shards: shards.read(wanted))

    def _column(self, question: Callable[[ShardSequence], np.ndarray]) -> np.ndarray:
        column = self._ask(question)[: self._n]
        column.flags.writeable = False
        return column

    def _ask(self, question: Callable[[ShardSequence], _Answer]) -> _Answer:
        while True:
            shards = self._shards
            try:
                return question(shards)
            except FileNotFoundError as error:
                self._follow(error, shards)

    def _follow(self, gone: FileNotFoundError, shards: ShardSequence) -> None:
        """Adopt a newer manifest, in which a shard that is gone was merged into another."""
        manifest = read_manifest(self.folder)
        if manifest.metadata != self._metadata or manifest.n_records < self._n:
            raise DatasetError(
                f"dataset {self.folder} was replaced by another one while open",
                remedy="open it again",
            ) from gone
        if manifest.shards == shards.entries:
            raise DatasetError(
                f"shard {gone.filename or self.folder} is missing",
                expected="every shard that the manifest lists",
                remedy="`mlff-distiller data verify` lists the losses; restore it from a copy",
            ) from gone
        self._shards = shards.replaced_by(manifest.shards)
