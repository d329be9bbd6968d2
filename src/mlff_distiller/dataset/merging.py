"""Datasets made of the records of other datasets: merged, divided, selected."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlff_distiller.dataset.record import Record
from mlff_distiller.dataset.split import FEWEST_GROUPS, in_blocks, split_by_group
from mlff_distiller.dataset.store import Dataset
from mlff_distiller.dataset.writer import DatasetWriter
from mlff_distiller.durable import new_path, replacing
from mlff_distiller.errors import ConfigError, DatasetError

_AT_ONCE = 1024
_NOISE = {"energy": (1e-5, "eV/atom"), "forces": (1e-3, "eV/Å"), "stress": (1e-5, "eV/Å³")}
"""What two labels of one structure by one teacher may differ by, with a unit."""


@dataclass
class Contradictions:
    """Labels of structures that are there already, and differ by more than noise."""

    n: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    """Differences in eV per atom, eV/Å and eV/Å³, by the label's name."""

    def see(self, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> str:
        """Count two labels of one structure; how they differ, '' if they do not."""
        found = {}
        for name, (noise, _) in _NOISE.items():
            if name in first and name in second:
                apart = np.abs(np.asarray(first[name], np.float64) - second[name]).max()
                apart /= len(first["forces"]) if name == "energy" else 1
                if apart > noise:
                    found[name] = float(apart)
        self.n += bool(found)
        for name, apart in found.items():
            self.largest[name] = max(apart, self.largest.get(name, 0.0))
        return _words(found)

    def __str__(self) -> str:
        return f"{self.n} labels of the same structures: {_words(self.largest)}"


def _words(differences: Mapping[str, float]) -> str:
    listed = [f"{name} differs by {x:.3g} {_NOISE[name][1]}" for name, x in differences.items()]
    return ", ".join(listed)


def merge(
    paths: Sequence[Path],
    out: Path,
    *,
    allow_mixed: bool = False,
    left_out: Contradictions | None = None,
) -> tuple[int, int]:
    """Write the labels of all datasets ``paths`` to the new dataset ``out``, each key once.

    Groups of different datasets stay apart, whatever their numbers. Where labels of one structure
    contradict each other, and ``left_out`` is there to count them, the first is kept. Returns how
    many labels ``out`` has and how many were repetitions.

    Raises
    ------
    ConfigError
        The teachers differ, unless ``allow_mixed``; or ``out`` exists.
    DatasetError
        Labels contradict each other, without ``left_out``.
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
    return write_dataset(out, {"teacher": teacher}, _renumbered(parts), left_out)


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
    `split_by_group`, unless there are one or two, which are cut into blocks.
    """
    dataset = Dataset(path)
    groups = dataset.groups
    if len(np.unique(groups)) < FEWEST_GROUPS:
        groups = in_blocks(groups)
    parts = split_by_group(groups, (1.0 - validation - test, validation, test), seed)
    made = {}
    for name in ("train", "validation", "test"):
        records = dataset.iterate(getattr(parts, name))
        write_dataset(out / name, dataset.metadata, records)
        made[name] = Dataset(out / name)
    return made


def write_dataset(
    out: Path,
    metadata: dict[str, Any],
    records: Iterable[Record],
    left_out: Contradictions | None = None,
) -> tuple[int, int]:
    """A new dataset of ``records``, each key once; numbers of records and of repetitions.

    `ConfigError` if ``out`` exists; `DatasetError` if labels of one key contradict each other and
    ``left_out`` is not there to count them.
    """
    found = Contradictions() if left_out is None else left_out
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
                known = waiting.get(record.key)
                first = writer.labels(record.key) if known is None else known.labels
                found.see(first, record.labels)
                continue
            waiting[record.key] = record
            if len(waiting) == _AT_ONCE:
                writer.append(list(waiting.values()))
                waiting.clear()
        writer.append(list(waiting.values()))
        if found.n and left_out is None:
            raise DatasetError(
                "the datasets contradict each other",
                expected="equal labels of equal structures by one teacher",
                found=found,
                remedy="find out which are right (units, a corrected import?), and merge these; "
                "--keep-first keeps those of the dataset named first",
            )
        return len(writer), repeated
