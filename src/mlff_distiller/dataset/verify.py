"""What of a dataset is intact; never raises, whatever it is given."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlff_distiller.dataset.manifest import (
    MANIFEST,
    SHARD_NAME,
    Manifest,
    ShardEntry,
    dataset_folder,
    read_manifest,
)
from mlff_distiller.dataset.record import provenance_of
from mlff_distiller.dataset.shard import Shard
from mlff_distiller.durable import sha256_of_file
from mlff_distiller.errors import DatasetError

_AT_ONCE = 4096  # records held in memory
_ATTEMPTS = 5


@dataclass
class VerifyReport:
    """``problems`` are losses, one per line; ``notes`` are leftovers that cost nothing."""

    path: Path
    n_records: int = 0
    """intact ones"""
    n_damaged: int = 0
    """listed, but damaged or missing"""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(path: Path | str) -> VerifyReport:
    """Check a dataset's folder, a run's, or one shard to the last byte, in one pass over it."""
    path = dataset_folder(path)
    if path.is_dir():
        for _ in range(_ATTEMPTS):  # a writer may merge shards meanwhile
            report, settled = _verify_folder(path)
            if settled:
                break
        return report
    if path.name == MANIFEST:
        report = VerifyReport(path)
        _read_manifest(path.parent, report)
        return report
    report = VerifyReport(path)
    _verify_shard(path, report, {})
    return report


def _verify_folder(folder: Path) -> tuple[VerifyReport, bool]:
    """The report, and whether the manifest stayed the same meanwhile."""
    report = VerifyReport(folder)
    manifest = _read_manifest(folder, report)
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        report.problems.append(f"folder {folder} cannot be read: {error}")
        return report, True
    shards = [name for name in names if name.endswith(".h5")]
    owners: dict[bytes, str] = {}
    if manifest is None:
        for name in shards:
            _verify_shard(folder / name, report, owners)
        return report, True
    for entry in manifest.shards:
        _verify_shard(folder / entry.name, report, owners, entry)
    listed = {entry.name for entry in manifest.shards}
    report.notes += [
        f"orphaned shard {name}: the manifest does not list it"
        + (" (the next writer removes it)" if SHARD_NAME.fullmatch(name) else "")
        for name in shards
        if name not in listed
    ]
    report.notes += [
        f"{name}: left by a writer that was killed (the next one removes it), or being written"
        for name in names
        if name.endswith(".partial")
    ]
    return report, _read_manifest(folder, VerifyReport(folder)) == manifest


def _read_manifest(folder: Path, report: VerifyReport) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DatasetError as error:
        report.problems.append(str(error))
        return None


def _verify_shard(
    path: Path, report: VerifyReport, owners: dict[bytes, str], entry: ShardEntry | None = None
) -> None:
    """Check one shard; ``owners`` maps the keys seen so far to where they are."""
    declared = entry.n_records if entry else 0
    try:
        shard = Shard(path)
        digest = sha256_of_file(path)
        damaged = _damaged_records(shard)
    except FileNotFoundError:
        report.problems.append(f"missing shard {path.name} ({declared} records)")
        report.n_damaged += declared
        return
    except (DatasetError, OSError) as error:
        report.problems.append(f"damaged shard {path.name} ({declared} records): {error}")
        report.n_damaged += declared
        return
    before = len(report.problems)
    report.problems += [f"shard {path.name}: record {n}: {why}" for n, why in damaged.items()]
    report.n_records += len(shard) - len(damaged)
    report.n_damaged += len(damaged)
    for number, key in enumerate(shard.keys().tolist()):
        place = f"{path.name} record {number}"
        if key in owners:
            report.problems.append(
                f"duplicate key {key.decode('ascii', 'replace')}: {owners[key]} and {place}"
            )
        owners.setdefault(key, place)
    if entry and (entry.n_records, entry.n_atoms) != (len(shard), shard.n_atoms):
        report.problems.append(f"shard {path.name} is not the one the manifest lists")
    named = re.fullmatch(r"\d+-([0-9a-f]{16})\.h5", path.name)
    expected = entry.sha256 if entry else named[1] if named else ""
    if not digest.startswith(expected) and len(report.problems) == before:
        report.problems.append(
            f"shard {path.name}: bytes outside its records have changed (SHA-256 mismatch)"
        )


def _damaged_records(shard: Shard) -> dict[int, str]:
    """Number -> what is wrong with it."""
    wrong: dict[int, str] = {}
    for start in range(0, len(shard), _AT_ONCE):
        numbers = np.arange(start, min(start + _AT_ONCE, len(shard)))
        rows, damaged = shard.inspect(numbers)
        wrong |= {int(number): "damaged (checksum mismatch)" for number in damaged}
        for row, number in enumerate(numbers.tolist()):
            if number not in wrong:
                try:
                    provenance_of(rows, row)
                except DatasetError as error:
                    wrong[number] = error.problem
    return wrong
