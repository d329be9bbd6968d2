"""The sampler's ``label``: looks structures up, or asks the teacher and stores the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import DatasetWriter, Record, label_key
from mlff_distiller.durable import EventLog
from mlff_distiller.teachers import TeacherCalculator

BRANCHES_PER_SEED = 1_000_000


def open_labels(folder: Path, teacher: TeacherCalculator) -> DatasetWriter:
    """A writer of labels by ``teacher``; a folder with another teacher's labels is refused."""
    identity = dataclasses.asdict(teacher.identity)
    identity.pop("device")
    return DatasetWriter(folder, {"teacher": identity})


class Labeler:
    """Labels each structure once, whatever happens; what the teacher failed on is quarantined."""

    def __init__(
        self, writer: DatasetWriter, teacher: TeacherCalculator, failures: EventLog | None = None
    ) -> None:
        self.writer, self.teacher = writer, teacher
        self.failures = failures or EventLog(writer.folder / "quarantine.jsonl")
        self.failed = {row["key"] for row in self.failures.rows("label_failed")}
        self.fingerprint = teacher.identity.fingerprint()
        self.news = ""

    def __call__(
        self, frames: Sequence[Atoms], provenance: Sequence[dict[str, Any]]
    ) -> list[dict[str, np.ndarray] | None]:
        """Labels of ``frames``, asked for in one call of the teacher; None where it failed."""
        keys = [label_key(atoms, self.fingerprint) for atoms in frames]
        new = {
            key: k
            for k, key in enumerate(keys)
            if key not in self.failed and key not in self.writer
        }
        records = []
        answers = self.teacher.label([frames[k] for k in new.values()]) if new else []
        for (key, k), answer in zip(new.items(), answers, strict=True):
            origin = provenance[k]
            if answer.labels is None:
                self.failed.add(key)
                self.failures.write("label_failed", key=key, error=answer.error, **origin)
                self.news = f"{len(self.failed)} failed: {answer.error}"
                continue
            group = origin["seed"] * BRANCHES_PER_SEED + origin.get("branch", 0)
            origin = {**origin, "seconds": round(answer.seconds, 4)}
            records.append(Record(frames[k], answer.labels, key, group, origin))
        if records:
            self.writer.append(records)
        return [None if key in self.failed else self.writer.labels(key) for key in keys]
