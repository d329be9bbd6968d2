"""Labelled structures of other programs become a dataset: checked, counted, once each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.batch import check_structure
from mlff_distiller.dataset.formats import Conventions, Frame, detect, read_frames
from mlff_distiller.dataset.manifest import MANIFEST, SHARD_NAME, read_manifest
from mlff_distiller.dataset.merging import Contradictions
from mlff_distiller.dataset.record import (
    OPTIONAL_STRUCTURE,
    Record,
    charge_or_spin,
    label_key,
)
from mlff_distiller.dataset.writer import DatasetWriter
from mlff_distiller.durable import EventLog, Lock, sha256_of_file
from mlff_distiller.errors import DatasetError, DatasetInUseError, DistillerError, StructureError
from mlff_distiller.properties import LABELS

REJECTED = "rejected.jsonl"
_EVENTS = ("rejected", "contradicts")
_AT_ONCE = 512
_NEXT_FRAME = 0.1
"""Å an atom moved at most from one frame of a trajectory to the next, except decorrelated ones."""

OnProgress = Callable[[float, int], None]
"""Called with the share of the source that is read, from 0 to 1, and the frames so far."""


@dataclass
class ImportReport:
    """What became of the frames: every one is in exactly one of the last three counts."""

    n_frames: int = 0
    n_imported: int = 0
    n_repeated: int = 0
    """Structures that were there already, with the same or other labels; the first is kept."""
    contradictions: Contradictions = field(default_factory=Contradictions)
    """Those of them whose labels are others, named in ``rejected.jsonl`` too."""
    n_rejected: int = 0
    """Named in ``rejected.jsonl``, with the reason."""
    reasons: Counter[str] = field(default_factory=Counter)
    """How often each reason occurred."""


def import_frames(
    sources: Sequence[Path],
    out: Path,
    conventions: Conventions | None = None,
    *,
    format: str | None = None,
    level: str = "imported",
    on_progress: OnProgress = lambda share, n: None,
) -> ImportReport:
    """Import ``sources`` into the dataset ``out``; the same call continues an interrupted one.

    ``level`` names the level of theory; structures are the same label only if it is the same.
    Kin are the conformations of a molecule, the frames of a DeePMD system, and else consecutive
    frames of a file in which no atom moved by 0.1 Å.

    Raises
    ------
    DatasetError
        A file cannot be read or leaves its units or signs open, or ``out`` was made otherwise.
    """
    conventions = conventions or Conventions()
    report, kin = ImportReport(), Kin()
    rejected = EventLog(out / REJECTED)
    metadata = _metadata(sources, conventions, format, level)
    if out.is_dir():
        _forget_what_holds_nothing(out)
    with _leaving_nothing_if_empty(out), DatasetWriter(out, metadata) as writer:
        rows = [row for event in _EVENTS for row in rejected.rows(event, "file", "frame")]
        known = {(row["file"], row["frame"]) for row in rows}
        waiting: dict[str, Record] = {}
        for number, path in enumerate(sources):
            for frame in read_frames(path, conventions, format):
                report.n_frames += 1
                origin = {"file": str(path), "frame": frame.index}
                group = kin.group(number, frame.atoms, frame.kin)
                problem = frame.problem or _problem(frame)
                key = label_key(frame.atoms, level)
                is_new = (origin["file"], origin["frame"]) not in known
                if problem:
                    report.n_rejected += 1
                    report.reasons[problem] += 1
                    if is_new:
                        rejected.write(_EVENTS[0], **origin, problem=problem)
                elif key in waiting or (key in writer and _owner(writer, key) != origin):
                    report.n_repeated += 1
                    first = waiting[key].labels if key in waiting else writer.labels(key)
                    if (other := report.contradictions.see(first, frame.labels)) and is_new:
                        rejected.write(_EVENTS[1], **origin, problem=f"known, and {other}")
                else:
                    report.n_imported += 1
                    if key not in writer:
                        waiting[key] = Record(frame.atoms, frame.labels, key, group, origin)
                if len(waiting) >= _AT_ONCE:
                    writer.append(list(waiting.values()))
                    waiting.clear()
                on_progress((number + frame.progress) / len(sources), report.n_frames)
        writer.append(list(waiting.values()))
    return report


def _forget_what_holds_nothing(out: Path) -> None:
    """An import that kept no label does not bind a folder, however it ended."""
    with suppress(DatasetError), Lock(out, in_use=DatasetInUseError, refused=DatasetError):
        if not read_manifest(out).shards:
            unlisted = [path for path in out.glob("*.h5") if SHARD_NAME.fullmatch(path.name)]
            for path in (*unlisted, out / MANIFEST, out / REJECTED):
                path.unlink(missing_ok=True)


@contextmanager
def _leaving_nothing_if_empty(out: Path) -> Iterator[None]:
    """After a mistake, such as a unit that is not given, no folder either."""
    is_new = not out.exists()
    try:
        yield
    except DistillerError:
        _forget_what_holds_nothing(out)
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise


def _owner(writer: DatasetWriter, key: str) -> dict[str, Any]:
    return {name: writer.provenance(key)[name] for name in ("file", "frame")}


class Kin:
    """Numbers of groups, in order of appearance.

    Kin are frames of one source that name the same kin, and else consecutive frames of it in which
    no atom moved by 0.1 Å.
    """

    def __init__(self) -> None:
        self._named: dict[tuple[int, str], int] = {}
        self._number, self._source = -1, -1
        self._last = Atoms()

    def group(self, source: int, atoms: Atoms, name: str = "") -> int:
        """Group of the next frame of the ``source``-th file; frames must come in order."""
        if name:
            if (source, name) not in self._named:
                self._number += 1
                self._named[source, name] = self._number
            return self._named[source, name]
        if source != self._source or not _continues(self._last, atoms):
            self._number += 1
        self._source, self._last = source, atoms
        return self._number


def _continues(before: Atoms, now: Atoms) -> bool:
    if len(now) == 0 or not np.array_equal(before.numbers, now.numbers):
        return False
    if not np.array_equal(before.pbc, now.pbc):
        return False
    grown = (now.cell.array - before.cell.array)[now.pbc]
    if np.abs(grown).max(initial=0.0) >= _NEXT_FRAME:  # the atoms' images have moved
        return False
    moved = now.positions - before.positions
    lattice = now.cell.array * now.pbc[:, None]
    if now.pbc.any() and np.isfinite(lattice).all():  # an atom may have been wrapped meanwhile
        moved = moved - np.round(moved @ np.linalg.pinv(lattice)) @ lattice
    return bool(np.abs(moved).max() < _NEXT_FRAME)


def _problem(frame: Frame) -> str:
    try:
        check_structure(frame.atoms)
        for name in OPTIONAL_STRUCTURE:
            charge_or_spin(frame.atoms, name, "structure")
    except (StructureError, DatasetError) as error:
        return error.problem
    for name, row in LABELS.items():
        value = frame.labels.get(name)
        if value is None:
            if row.required:
                return f"no {name}"
            continue
        shape = (len(frame.atoms), *row.shape) if row.per == "atom" else row.shape
        if np.shape(value) != shape:
            return f"{name} has shape {np.shape(value)} instead of {shape}"
        with np.errstate(over="ignore"):  # as it is stored
            if not np.isfinite(np.asarray(value, np.float64).astype(row.dtype)).all():
                return f"{name} is not finite, or too large"
    return ""


def _metadata(
    sources: Sequence[Path], conventions: Conventions, format: str | None, level: str
) -> dict[str, Any]:
    given = {name: value for name, value in asdict(conventions).items() if value is not None}
    files = [
        {"name": path.name, "format": format or detect(path), "sha256": _sha256(path)}
        for path in sources
    ]
    if not files:
        raise DatasetError("nothing to import", expected="at least one file")
    teacher = {"name": level, "family": "imported", "licence": "not stated"}
    return {"teacher": teacher, "inputs": {"files": files, "conventions": given}}


def _sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of a folder's files."""
    if path.is_file():
        return sha256_of_file(path)
    listed = {
        str(file.relative_to(path)): sha256_of_file(file)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    return sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
