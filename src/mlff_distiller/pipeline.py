"""The whole line: structures -> labels -> student -> evaluation -> report, resumable.

Each stage reads files and writes one artefact durably. Running the same command again replays
what is there, which costs next to nothing, and continues where it stopped.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.io import read as ase_read

from mlff_distiller.batch import Batch, check_structure
from mlff_distiller.config import Config, differences, read_yaml, to_plain
from mlff_distiller.dataset import (
    Dataset,
    DatasetWriter,
    Record,
    Split,
    label_key,
    split_by_group,
    structure_hash,
)
from mlff_distiller.deploy import StudentCalculator, resolve_device
from mlff_distiller.durable import EventLog, write_json, write_text
from mlff_distiller.errors import ConfigError, StructureError, TeacherError
from mlff_distiller.evaluate.assess import Assessment, assess
from mlff_distiller.evaluate.card import model_card
from mlff_distiller.evaluate.report import write_report
from mlff_distiller.neighbors import edge_vectors, neighbor_list
from mlff_distiller.sampling import enlarge, grow
from mlff_distiller.students import NEP, Student, load_student, nep_for, read_config, save_student
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.training import train

SCHEMA = 1

OnProgress = Callable[[str, int, int, str], None]
"""Called with stage, done, total and a few words of news."""

_BRANCHES_PER_SEED = 1_000_000


def distill(
    structures: Sequence[str | Path | Atoms],
    teacher: str,
    out: str | Path,
    config: Config | None = None,
    *,
    teacher_python: str | None = None,
    allow_download: bool = False,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """Distil ``teacher`` on ``structures`` into ``out``; returns the content of report.json.

    Continues an interrupted run in the same folder; refuses one begun with other inputs.

    Parameters
    ----------
    structures
        Files that ASE reads (every frame in them), or ``Atoms``.
    teacher
        A registered name, ``FAMILY:PATH`` or ``ase:package.module:factory``.

    Raises
    ------
    ConfigError
        ``out`` holds a run with other settings, structures or teacher; the difference is shown.
    """
    config = config or Config()
    out = Path(out)
    seeds = read_structures(structures)
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        _fix_inputs(out, config, seeds, teacher)
        if (out / "report.json").exists():
            report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
            if (out / "report.html").exists():
                on_progress("report", 1, 1, "finished earlier; nothing to do")
                return report
        log = EventLog(out / "log.jsonl")
        smallest = config.sampling.min_atoms
        seeds = [enlarge(atoms, smallest) if atoms.pbc.any() else atoms for atoms in seeds]
        with TeacherCalculator(
            teacher, device=config.device, python=teacher_python, allow_download=allow_download
        ) as source:
            on_progress("teacher", 0, 1, f"starting {teacher}")
            on_progress("teacher", 1, 1, source.identity.name)
            labels = label_stage(out, seeds, source, config, log, on_progress)
            split = split_labels(labels, config)
            student = train_stage(out, labels, split, source, config, log, on_progress)
            done = assess_stage(out, seeds, labels, split, student, source, config, on_progress)
        config_of_student = read_config(out / "student")
        write_text(
            out / "student" / "README.md", model_card(done.report, config_of_student["about"])
        )
        write_report(out / "report.html", done.report, done.evidence(log.rows("train")))
        write_json(out / "report.json", done.report)
        log.write("report", status=done.report["verdict"]["status"])
        on_progress("report", 1, 1, done.report["verdict"]["status"])
        return done.report


def read_structures(sources: Sequence[str | Path | Atoms]) -> list[Atoms]:
    """Every frame of every source, checked; exact repeats are dropped."""
    frames: dict[str, Atoms] = {}
    for source in sources:
        if isinstance(source, Atoms):
            found = [source]
        else:
            try:
                found = list(ase_read(source, index=":"))
            except (OSError, ValueError, KeyError, IndexError, ase_errors()) as error:
                raise StructureError(
                    f"cannot read structures from {source}",
                    expected="a file that ASE reads (extxyz, cif, POSCAR, ...)",
                    found=f"{type(error).__name__}: {error}",
                ) from error
        for index, atoms in enumerate(found):
            check_structure(atoms, f"structure {index} of {source}")
            bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            frames.setdefault(structure_hash(bare), bare)
    if not frames:
        raise StructureError("no structures were given", expected="at least one")
    return list(frames.values())


def ase_errors() -> type[Exception]:
    """What ASE raises for a format it does not know."""
    from ase.io.formats import UnknownFileTypeError

    return UnknownFileTypeError


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold ``out`` for this process; another ``distill`` there is refused at once."""
    with (out / ".lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            raise ConfigError(
                f"{out} is in use",
                found=f"process {stream.read().strip() or '?'}",
                remedy="wait for it, or choose another --out",
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _fix_inputs(out: Path, config: Config, seeds: Sequence[Atoms], teacher: str) -> None:
    """Write config.yaml, or check that the one there says the same."""
    now = {
        "schema": SCHEMA,
        "inputs": {"teacher": teacher, "structures": [structure_hash(atoms) for atoms in seeds]},
        "config": to_plain(config),
    }
    path = out / "config.yaml"
    if path.exists():
        before = read_yaml(path)
        before.pop("versions", None)
        changed = differences(before, now)
        if changed:
            raise ConfigError(
                f"{out} holds a run with other inputs:\n    " + "\n    ".join(changed),
                remedy="give the same inputs to continue it, or another --out to begin anew",
            )
        return
    versions = {name: version(name) for name in ("mlff-distiller", "torch", "numpy", "ase")}
    write_text(path, yaml.safe_dump({**now, "versions": versions}, sort_keys=False))


def label_stage(
    out: Path,
    seeds: Sequence[Atoms],
    teacher: TeacherCalculator,
    config: Config,
    log: EventLog,
    on_progress: OnProgress,
) -> Dataset:
    """Grow the trees until ``config.labels`` structures are labelled in ``out/dataset``."""
    with open_labels(out / "dataset", teacher) as writer:
        label = Labeler(writer, teacher, log, {row["key"] for row in log.rows("label_failed")})
        grow(
            seeds,
            label,
            config.labels,
            config.sampling,
            config.seed,
            on_label=lambda n: on_progress("label", n, config.labels, label.news),
        )
    return Dataset(out / "dataset")


def open_labels(folder: Path, teacher: TeacherCalculator) -> DatasetWriter:
    """A writer of labels by ``teacher``; a folder with another teacher's labels is refused."""
    identity = dataclasses.asdict(teacher.identity)
    identity.pop("device")
    return DatasetWriter(folder, {"teacher": identity})


class Labeler:
    """The sampler's ``label``: looks a structure up, or asks the teacher and stores the answer."""

    def __init__(
        self, writer: DatasetWriter, teacher: TeacherCalculator, log: EventLog, failed: set[str]
    ) -> None:
        self.writer, self.teacher, self.log, self.failed = writer, teacher, log, failed
        self.fingerprint = teacher.identity.fingerprint()
        self.news = ""

    def __call__(self, atoms: Atoms, provenance: dict[str, Any]) -> dict[str, np.ndarray] | None:
        key = label_key(atoms, self.fingerprint)
        if key in self.failed:
            return None
        if key not in self.writer:
            [answer] = self.teacher.label([atoms])
            if answer.labels is None:
                self.failed.add(key)
                self.log.write("label_failed", key=key, error=answer.error, **provenance)
                self.news = f"{len(self.failed)} failed: {answer.error}"
                return None
            group = provenance["seed"] * _BRANCHES_PER_SEED + provenance.get("branch", 0)
            provenance = {**provenance, "seconds": round(answer.seconds, 4)}
            self.writer.append([Record(atoms, answer.labels, key, group, provenance)])
        return self.writer.labels(key)


def split_labels(labels: Dataset, config: Config) -> Split:
    """Whole trees to each part; the seeds themselves train."""
    rest = 1.0 - config.test_fraction - config.validation_fraction
    alone = frozenset(int(group) for group in labels.groups if group % _BRANCHES_PER_SEED == 0)
    return split_by_group(
        labels.groups,
        (rest, config.validation_fraction, config.test_fraction),
        config.seed,
        always_train=alone,
    )


def train_stage(
    out: Path,
    labels: Dataset,
    split: Split,
    teacher: TeacherCalculator,
    config: Config,
    log: EventLog,
    on_progress: OnProgress,
) -> Student:
    """Train, or load what an earlier call trained, as ``out/student``."""
    folder = out / "student"
    if not (folder / "config.json").exists():
        training = labels.read(split.train).systems()
        validation = labels.read(split.validation).systems()
        student = nep_for(training, config.nep, config.seed).to(resolve_device(config.device))
        shown = {row["epoch"] for row in log.rows("train")}

        def on_epoch(row: dict[str, float], epochs: int) -> None:
            if row["epoch"] not in shown:
                log.write("train", **row)
            news = (
                f"fidelity {row['validation_forces_fidelity']:.4f}, "
                f"{row['validation_forces_mae_meV_per_A']:.1f} meV/Å"
            )
            on_progress("train", int(row["epoch"]) + 1, epochs, news)

        train(
            student,
            training,
            validation,
            config.training,
            seed=config.seed,
            checkpoint=out / "checkpoint.safetensors",
            on_epoch=on_epoch,
        )
        about = {
            "teacher": dataclasses.asdict(teacher.identity),
            "n_labels": len(labels),
            "n_train": len(training),
            "temperature_K": list(config.sampling.temperature_K),
            "config": to_plain(config),
            "versions": {name: version(name) for name in ("mlff-distiller", "torch", "numpy")},
        }
        card = "# A student, not yet evaluated\n\nThe run that made it has not finished.\n"
        most = most_neighbors(training, student)
        save_student(student, folder, about=about, card=card, max_neighbors=most)
    return load_student(folder).to(resolve_device(config.device))


def most_neighbors(frames: Sequence[Batch], student: NEP) -> tuple[int, int]:
    """The most neighbours any atom has within the radial and the angular cutoff."""
    radial = angular = 0
    largest = max(pair[1] for pair in student.cutoffs)
    for frame in frames:
        pairs = neighbor_list(frame, student.cutoff)
        counts = torch.bincount(pairs.i, minlength=frame.n_atoms)
        radial = max(radial, int(counts.max()))
        inside = edge_vectors(frame, pairs).norm(dim=1) < largest
        angular = max(angular, int(torch.bincount(pairs.i[inside], minlength=frame.n_atoms).max()))
    return radial, angular


def assess_stage(
    out: Path,
    seeds: Sequence[Atoms],
    labels: Dataset,
    split: Split,
    student: Student,
    teacher: TeacherCalculator,
    config: Config,
    on_progress: OnProgress,
) -> Assessment:
    """Measure the student; its own MD frames are labelled into ``out/student_md``."""
    log = EventLog(out / "log.jsonl")
    settings = config.evaluation
    temperature = settings.temperature_K or max(config.sampling.temperature_K)
    calculator = StudentCalculator(student, device=config.device)
    with open_labels(out / "student_md", teacher) as writer:
        label = Labeler(writer, teacher, log, {row["key"] for row in log.rows("label_failed")})

        def score(frames: Sequence[Atoms]) -> list[Batch]:
            scored = []
            for index, atoms in enumerate(frames):
                answer = label(atoms, {"source": "student_md", "seed": 0, "frame": index})
                on_progress("re-score", index + 1, len(frames), label.news)
                if answer is not None:
                    scored.append(_labelled(atoms, answer))
            if not scored and frames:
                raise TeacherError("the teacher gave no label for any frame of the student's MD")
            return scored

        return assess(
            seeds,
            labels,
            split,
            student,
            calculator,
            teacher,
            score,
            settings,
            temperature,
            config.seed,
            on_progress,
        )


def _labelled(atoms: Atoms, labels: dict[str, np.ndarray]) -> Batch:
    batch = Batch.from_atoms([atoms])
    tensors = {
        "energy": torch.tensor([float(labels["energy"])], dtype=torch.float64),
        "forces": torch.as_tensor(labels["forces"]),
        "stress": torch.as_tensor(
            labels.get("stress", np.full((3, 3), math.nan)), dtype=torch.float64
        ).reshape(1, 3, 3),
    }
    return dataclasses.replace(batch, labels=tensors)
