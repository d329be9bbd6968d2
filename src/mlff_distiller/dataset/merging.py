"""Datasets made of the records of other datasets: merged, divided, selected."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlff_distiller.dataset.record import Record
from mlff_distiller.dataset.split import split_by_group
from mlff_distiller.dataset.store import Dataset
from mlff_distiller.dataset.writer import DatasetWriter
from mlff_distiller.durable import new_path, replacing
from mlff_distiller.errors import ConfigError

_AT_ONCE = 1024


def merge(paths: Sequence[Path], out: Path, *, allow_mixed: bool = False) -> tuple[int, int]:
    """Write the labels of all datasets ``paths`` to the new dataset ``out``, each key once.

    Groups of different datasets stay apart, whatever their numbers. Returns how many labels
    ``out`` has and how many were repetitions.

    Raises
    ------
    ConfigError
        The teachers differ, unless ``allow_mixed``; or ``out`` exists.
    """
    parts = [Dataset(path) for path in paths]
    teachers = [part.metadata.get("teacher") for part in parts]
    others = [number for number, teacher in enumerate(teachers) if teacher != teachers[0]]
    if others and not allow_mixed:
        raise ConfigError(
            f"{paths[others[0]]} and {paths[0]} have different teachers",
            expected=json.dumps(teachers[0], sort_keys=True),
            found=json.dumps(teachers[others[0]], sort_keys=True),
            remedy="--allow-mixed merges them all the same",
        )
    teacher = {"name": "mixed", "of": teachers} if others else teachers[0]
    return write_dataset(out, {"teacher": teacher}, _renumbered(parts))


def _renumbered(parts: Iterable[Dataset]) -> Iterator[Record]:
    """All records; groups of different datasets, which may use the same numbers, differ."""
    numbers: dict[tuple[int, int], int] = {}
    for part, dataset in enumerate(parts):
        for record in dataset.iterate():
            group = numbers.setdefault((part, record.group), len(numbers))
            yield replace(record, group=group)


def divide(
    path: Path, out: Path, *, validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> dict[str, Dataset]:
    """Write the new datasets ``out/train``, ``out/validation`` and ``out/test``.

    ``validation`` and ``test`` are fractions of the labels; groups stay whole, see
    `split_by_group`.
    """
    dataset = Dataset(path)
    parts = split_by_group(dataset.groups, (1.0 - validation - test, validation, test), seed)
    made = {}
    for name in ("train", "validation", "test"):
        records = dataset.iterate(getattr(parts, name))
        write_dataset(out / name, dataset.metadata, records)
        made[name] = Dataset(out / name)
    return made


def write_dataset(
    out: Path, metadata: dict[str, Any], records: Iterable[Record]
) -> tuple[int, int]:
    """A new dataset of ``records``, each key once; numbers of records and of repetitions.

    `ConfigError` if ``out`` exists.
    """
    waiting: dict[str, Record] = {}
    repeated = 0
    with (
        new_path(out),
        replacing(out) as partial,
        DatasetWriter(partial, metadata) as writer,
    ):
        for record in records:
            if record.key in waiting or record.key in writer:
                repeated += 1
                continue
            waiting[record.key] = record
            if len(waiting) == _AT_ONCE:
                writer.append(list(waiting.values()))
                waiting.clear()
        writer.append(list(waiting.values()))
        return len(writer), repeated
