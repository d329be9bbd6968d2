"""The sampler's ``label``: looks structures up, or asks the teacher and stores the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import DatasetWriter, Record, label_key
from mlff_distiller.durable import EventLog
from mlff_distiller.labeling.checks import LARGEST_FORCE
from mlff_distiller.teachers import Labelled, TeacherCalculator, TeacherGaveUp, TeacherIdentity

BRANCHES_PER_SEED = 1_000_000

Origins = Sequence[Mapping[str, Any]]
"""For each structure, JSON of where it is from; ``seed`` and ``branch`` say who is kin of whom."""


def open_labels(
    folder: Path, teacher: TeacherIdentity, inputs: Mapping[str, Any] | None = None
) -> DatasetWriter:
    """A writer of labels by ``teacher``; a folder with other labels is refused, and how it differs.

    ``inputs`` is what else must not change from one run to the next.
    """
    return DatasetWriter(folder, metadata_of_labels(teacher, inputs))


def metadata_of_labels(
    teacher: TeacherIdentity, inputs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a dataset of labels by ``teacher`` says about them."""
    identity = dataclasses.asdict(teacher)
    identity.pop("device")
    return {"teacher": identity, **(inputs or {})}


class LabelStore:
    """Labels by one teacher, each kept once; what it failed on goes to quarantine."""

    def __init__(self, writer: DatasetWriter, teacher: TeacherIdentity) -> None:
        self.writer, self.fingerprint = writer, teacher.fingerprint()
        self.quarantine = EventLog(writer.folder / "quarantine.jsonl")
        rows = self.quarantine.rows("label_failed", "key", "error")
        self.failed: dict[str, str] = {row["key"]: row["error"] for row in rows}

    @property
    def news(self) -> str:
        """How many failed, and why the last one did; '' if none did."""
        why = next(reversed(self.failed.values()), "")
        return f"{len(self.failed)} failed: {why}" if self.failed else ""

    def keys(self, frames: Sequence[Atoms]) -> list[str]:
        """Keys of the labels of ``frames``."""
        return [label_key(atoms, self.fingerprint) for atoms in frames]

    def unknown(self, keys: Sequence[str]) -> list[int]:
        """Which of ``keys`` have neither label nor failure; of repeated ones the first."""
        first = {key: k for k, key in reversed(list(enumerate(keys)))}
        return sorted(
            k for key, k in first.items() if key not in self.failed and key not in self.writer
        )

    def add_answers(
        self, keys: Sequence[str], answers: Callable[[], Sequence[Labelled]], origins: Origins
    ) -> Sequence[Labelled]:
        """Store what ``answers`` returns; where the teacher gives up, what it has said."""
        try:
            found = answers()
        except TeacherGaveUp as end:
            known = sorted(end.answered)
            told = [end.answered[k] for k in known]
            self.add([keys[k] for k in known], told, [origins[k] for k in known])
            raise
        self.add(keys, found, origins)
        return found

    def add(self, keys: Sequence[str], answers: Sequence[Labelled], origins: Origins) -> None:
        """Store labels, all in one append, and then failures."""
        records, failures = [], []
        for key, answer, origin in zip(keys, answers, origins, strict=True):
            error = answer.error if answer.labels is None else _outlier(answer.labels)
            if answer.labels is None or error:
                failures.append((key, error, origin))
                continue
            provenance = {**origin, "seconds": round(answer.seconds, 4)}
            group = origin["seed"] * BRANCHES_PER_SEED + origin.get("branch", 0)
            records.append(Record(answer.atoms, answer.labels, key, group, provenance))
        if records:
            self.writer.append(records)
        for key, error, origin in failures:
            self.failed[key] = str(error)
            self.quarantine.write("label_failed", key=key, error=error, **origin)


def _outlier(labels: Mapping[str, np.ndarray]) -> str | None:
    largest = float(np.abs(labels["forces"]).max())
    return f"a force of {largest:.3g} eV/Å" if largest > LARGEST_FORCE else None


class Labeler:
    """Labels each structure once, whatever happens."""

    def __init__(self, writer: DatasetWriter, teacher: TeacherCalculator) -> None:
        self.writer, self.teacher = writer, teacher
        self.store = LabelStore(writer, teacher.identity)

    @property
    def news(self) -> str:
        """What failed last, '' if nothing did."""
        return self.store.news

    def __call__(
        self, frames: Sequence[Atoms], provenance: Sequence[dict[str, Any]]
    ) -> list[dict[str, np.ndarray] | None]:
        """Labels of ``frames``, asked for in one call of the teacher; None where it failed."""
        keys = self.store.keys(frames)
        new = self.store.unknown(keys)
        if new:
            asked, origins = [frames[k] for k in new], [provenance[k] for k in new]
            self.store.add_answers(
                [keys[k] for k in new], lambda: self.teacher.label(asked), origins
            )
        return [None if key in self.store.failed else self.writer.labels(key) for key in keys]
