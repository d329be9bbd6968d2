"""``manifest.json``: the only truth about which shards, in which order, make a dataset."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlff_distiller import durable
from mlff_distiller.dataset.flatten import dump_json
from mlff_distiller.dataset.layout import other_schema
from mlff_distiller.errors import DatasetError

MANIFEST = "manifest.json"
SCHEMA = 1
"""Version of manifests; another one is refused. Shards have one of their own."""
SHARD_NAME = re.compile(r"\d{6,12}-[0-9a-f]{16}\.h5")
"""Running number and the first 16 digits of the file's SHA-256; a name never recurs."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMAT = "mlff-distiller dataset"
_LARGEST = 2**48  # of any declared number: no disk holds more, and sums stay within int64
_REMEDY = "restore the file from a copy, or label again into another folder"


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest lists it. ``tier`` counts the merges it went through."""

    name: str
    n_records: int
    n_atoms: int
    n_bytes: int
    sha256: str
    tier: int

    @property
    def number(self) -> int:
        return int(self.name.split("-")[0])


@dataclass(frozen=True)
class Manifest:
    """What a dataset is made of."""

    metadata: dict[str, Any]
    shards: tuple[ShardEntry, ...]

    @property
    def n_records(self) -> int:
        return sum(entry.n_records for entry in self.shards)


def shard_name(number: int, sha256: str) -> str:
    """The name of a new shard."""
    return f"{number:06d}-{sha256[:16]}.h5"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Durably replace the manifest of ``folder``."""
    body = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "metadata": manifest.metadata,
        "shards": [asdict(entry) for entry in manifest.shards],
    }
    durable.write_json(folder / MANIFEST, body | {"sha256": _digest(body)})


def dataset_folder(path: str | Path) -> Path:
    """``path/dataset`` if ``path`` is a run's folder, else ``path`` itself."""
    path, own = Path(path), Path(path) / "dataset"
    return own if own.is_dir() and not (path / MANIFEST).exists() else path


def read_manifest(folder: Path) -> Manifest:
    """Read and check; ``DatasetError`` if missing, damaged or of another schema."""
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetError(
            f"{folder} holds no dataset: {MANIFEST} is missing",
            remedy="name the folder that holds manifest.json and its *.h5 files",
        ) from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read", found=error) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise _damaged(path, "JSON of another kind")
    schema = body.get("schema")
    if not isinstance(schema, int):
        raise _damaged(path, f"schema {schema!r}")
    if schema != SCHEMA:
        raise other_schema(f"manifest {path}", schema, SCHEMA)
    declared = body.pop("sha256", None)
    try:
        if declared != _digest(body):
            raise _damaged(path, "its checksum differs: it was changed by hand or by the disk")
        shards = tuple(ShardEntry(**entry) for entry in body["shards"])
        metadata = dict(body["metadata"])
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error
    for entry in shards:
        _check_entry(path, entry)
    return Manifest(metadata, shards)


def plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``metadata`` as it reads back from JSON: lists for tuples, text for keys."""
    plain: dict[str, Any] = json.loads(dump_json(metadata, "metadata"))
    return plain


def refuse_other_metadata(folder: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """`DatasetError` with the differences, unless what is written in ``folder`` says the same."""
    changes = differences(ours, theirs)
    if changes:
        raise DatasetError(
            f"dataset {folder} was made with other metadata (now != then):\n    "
            + "\n    ".join(changes),
            remedy="use the same teacher, settings and inputs, or choose another folder",
        )


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Field by field, ``name: ours != theirs``; empty if equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            line
            for key in [*ours, *(key for key in theirs if key not in ours)]
            for line in differences(
                ours.get(key, _ABSENT), theirs.get(key, _ABSENT), f"{name}.{key}" if name else key
            )
        ]
    return [] if ours == theirs else [f"{name}: {ours!r} != {theirs!r}"]


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, found: object) -> DatasetError:
    return DatasetError(f"{path} is damaged", found=found, remedy=_REMEDY)


def _check_entry(path: Path, entry: ShardEntry) -> None:
    if not isinstance(entry.name, str) or not SHARD_NAME.fullmatch(entry.name):
        raise _damaged(path, f"a shard named {entry.name!r}")
    if not isinstance(entry.sha256, str) or not _SHA256.fullmatch(entry.sha256):
        raise _damaged(path, f"a SHA-256 of {entry.sha256!r} for shard {entry.name}")
    for count in (entry.n_records, entry.n_atoms, entry.n_bytes, entry.tier):
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _LARGEST:
            raise _damaged(path, f"a count of {count!r} for shard {entry.name}")
