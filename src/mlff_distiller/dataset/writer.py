"""The one writer of a dataset.

An append writes one new shard, then replaces the manifest, each durably; a crash at any
instant costs at most the batch in flight. When the last thirty-two shards are of one tier, as many
of them as give at most 128 MiB are merged into one of the next. So the files are some 31 for each
of about four tiers and one for each 64 to 128 MiB, and each record is rewritten once per tier.
Record numbers never change.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller import durable
from mlff_distiller.dataset.columns import Rows, concatenate, running_total
from mlff_distiller.dataset.flatten import to_rows
from mlff_distiller.dataset.keys import KeyIndex
from mlff_distiller.dataset.layout import image
from mlff_distiller.dataset.manifest import (
    MANIFEST,
    SHARD_NAME,
    Manifest,
    ShardEntry,
    plain_metadata,
    read_manifest,
    refuse_other_metadata,
    shard_name,
    write_manifest,
)
from mlff_distiller.dataset.record import Record, labels_of, provenance_of
from mlff_distiller.dataset.shards import ShardSequence
from mlff_distiller.errors import DatasetError, DatasetInUseError, DistillerError

MERGED_AT_ONCE = 32
LARGEST_MERGED = 128 * 2**20
"""Bytes. Larger files save nothing; merging holds about three times this in memory."""


class DatasetWriter:
    """The one writer of ``folder``, which is made if need be. Use as a context manager.

    ``metadata`` is kept in the manifest; opening again needs equal metadata. Opening takes the
    lock, reads every shard's index and removes what killed writers left. ``DatasetError`` if
    another process writes, metadata differ, or anything the manifest lists is missing or damaged.
    """

    def __init__(self, folder: Path | str, metadata: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._metadata = plain_metadata(metadata)
        self._shards = ShardSequence(self.folder, ())
        self._index = KeyIndex(self._shards.keys())
        self._is_current = False
        with self._explaining():
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = durable.Lock(
            self.folder, f"dataset {folder}", in_use=DatasetInUseError, refused=DatasetError
        )
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the lock; a second call does nothing. Everything appended is already safe."""
        self._lock.release()

    def __len__(self) -> int:
        return len(self._current())

    def __contains__(self, key: object) -> bool:
        self._current()
        return isinstance(key, str) and self._index.number(key.encode()) is not None

    def labels(self, key: str) -> dict[str, np.ndarray]:
        """Labels of a record exactly as any later read gives them; missing ones are absent.

        ``KeyError`` if there is no such record.
        """
        return labels_of(self._row(key), 0)

    def provenance(self, key: str) -> dict[str, Any]:
        """Where a record comes from; ``KeyError`` if there is no such record."""
        return provenance_of(self._row(key), 0)

    def _row(self, key: str) -> Rows:
        shards = self._current()
        number = self._index.number(key.encode())
        if number is None:
            raise KeyError(key)
        with self._explaining():
            return shards.read(np.array([number]))

    def append(self, records: Sequence[Record]) -> None:
        """Add ``records``, all or none; on return they are on the disk. Takes some 5 ms.

        ``DatasetError`` names a wrong label, a key that is already there, or what the disk
        refused; the writer can be used again. Nothing has changed then, unless the disk failed
        in the very last step: ``key in writer`` tells.
        """
        self._current()
        if not records:
            return
        rows = to_rows(records)
        self._refuse_duplicates(rows)
        with self._all_or_nothing():
            self._merge()
            entry = self._write_shard(rows, tier=0)
            self._commit((*self._shards.entries, entry))
            self._index.append(rows.columns["key"])

    def _explaining(self) -> contextlib.AbstractContextManager[None]:
        return durable.explaining(f"dataset {self.folder}", DatasetError)

    def _current(self) -> ShardSequence:
        if not self._lock.held:
            raise DatasetError(
                f"the writer of dataset {self.folder} is closed", remedy="open a new DatasetWriter"
            )
        if not self._is_current:
            self._load()
        return self._shards

    def _load(self) -> None:
        """Take the state from the disk, and remove what the manifest does not list."""
        with self._explaining():
            if not (self.folder / MANIFEST).exists():
                self._begin()
            manifest = read_manifest(self.folder)
            refuse_other_metadata(self.folder, self._metadata, manifest.metadata)
            shards = self._shards.replaced_by(manifest.shards)
            index = KeyIndex(shards.keys())
            durable.remove_partials(self.folder)
            listed = {entry.name for entry in manifest.shards}
            for path in self.folder.glob("*.h5"):
                if path.name not in listed and SHARD_NAME.fullmatch(path.name):
                    path.unlink()
        self._shards, self._index = shards, index
        self._is_current = True

    def _begin(self) -> None:
        """Write the first manifest, unless there are shards that a lost one has listed."""
        shards = [path.name for path in self.folder.glob("*.h5")]
        if shards:
            raise DatasetError(
                f"dataset {self.folder} has lost its {MANIFEST}",
                found=f"{len(shards)} *.h5 files without it",
                remedy=f"restore {MANIFEST} from a copy, or choose another folder",
            )
        write_manifest(self.folder, Manifest(self._metadata, ()))

    def _refuse_duplicates(self, rows: Rows) -> None:
        seen = set()
        for number, key in enumerate(rows.columns["key"].tolist()):
            owner = self._index.number(key)
            if key in seen or owner is not None:
                where = "this batch" if owner is None else f"record {owner}"
                raise DatasetError(
                    f"record {number} of the batch has a key that {where} already has",
                    found=key.decode(),
                    remedy="ask `key in writer` first, and take its labels from writer.labels(key)",
                )
            seen.add(key)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """After any failure, whatever the disk now holds is the state."""
        try:
            with self._explaining():
                yield
        except BaseException:
            self._is_current = False
            with contextlib.suppress(DistillerError, OSError):
                self._load()
            raise

    def _merge(self) -> None:
        """Replace shards of one tier by one, as long as the last ``MERGED_AT_ONCE`` are of one."""
        while True:
            entries = self._shards.entries
            start = len(entries) - MERGED_AT_ONCE
            if start < 0 or len({entry.tier for entry in entries[start:]}) > 1:
                return
            totals = running_total(np.array([entry.n_bytes for entry in entries[start:]]))
            n_merged = int(np.searchsorted(totals[1:], LARGEST_MERGED, side="right"))
            if n_merged < 2:
                return
            merged = entries[start : start + n_merged]
            shards = [self._shards.shard(entry) for entry in merged]
            rows = concatenate([shard.read(np.arange(len(shard))) for shard in shards])
            entry = self._write_shard(rows, merged[0].tier + 1)
            self._commit((*entries[:start], entry, *entries[start + n_merged :]))
            for entry in merged:  # a reader that meets the gap looks into the manifest again
                with contextlib.suppress(OSError):
                    (self.folder / entry.name).unlink()

    def _write_shard(self, rows: Rows, tier: int) -> ShardEntry:
        content = image(rows)
        sha256 = hashlib.sha256(content).hexdigest()
        number = max((entry.number for entry in self._shards.entries), default=-1) + 1
        name = shard_name(number, sha256)
        durable.write_bytes(self.folder / name, content)
        return ShardEntry(name, len(rows), int(rows.offsets[-1]), len(content), sha256, tier)

    def _commit(self, entries: tuple[ShardEntry, ...]) -> None:
        write_manifest(self.folder, Manifest(self._metadata, entries))
        self._shards = self._shards.replaced_by(entries)
