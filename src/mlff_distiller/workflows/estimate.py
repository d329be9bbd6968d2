"""What a distillation will cost on this machine, before anything is labelled for good."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ase import Atoms

from mlff_distiller.dataset import Dataset, Frames
from mlff_distiller.errors import TeacherError
from mlff_distiller.labeling import Labeler, open_labels
from mlff_distiller.structure import enlarge
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.validation.price import time_in_words
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.plan import lower_budget
from mlff_distiller.workflows.seeds import read_seeds
from mlff_distiller.workflows.train import train_student

_PROBES = 8
_UPDATES = (20, 20, 120)
"""The first training compiles its kernels, and is not timed."""
_MOVED_A = 0.03


def estimate(
    structures: Sequence[str | Path | Atoms],
    teacher: str,
    config: Config | None = None,
    *,
    teacher_python: str | None = None,
    allow_download: bool = False,
    teacher_timeout_s: float | None = None,
) -> dict[str, Any]:
    """Cost of the first turn, and of the whole budget, from eight labels and a few updates.

    Times are seconds; nothing is written. How many turns it takes is not known before the first
    has ended: ``most_label_seconds`` is what all labels of the budget would take.

    Raises
    ------
    TeacherError
        The teacher cannot be started, or fails on every probe.
    """
    config = config or Config()
    config = dataclasses.replace(config, student=config.ladder[0])
    smallest = config.sampling.min_atoms
    seeds = [
        enlarge(atoms, smallest) if atoms.pbc.any() else atoms for atoms in read_seeds(structures)
    ]
    probes = [seeds[k % len(seeds)].copy() for k in range(_PROBES)]
    for k, atoms in enumerate(probes):
        atoms.rattle(_MOVED_A, seed=config.seed + k)
    source = TeacherCalculator(
        teacher,
        device=config.device,
        python=teacher_python,
        allow_download=allow_download,
        timeout_s=teacher_timeout_s,
    )
    with source, TemporaryDirectory() as folder:
        with open_labels(Path(folder) / "dataset", source.identity) as writer:
            label = Labeler(writer, source)
            origins = [{"source": "estimate", "seed": 0, "branch": k} for k in range(_PROBES)]
            label(probes[:1], origins[:1])  # it warms up
            began = time.monotonic()
            label(probes[1:], origins[1:])
            per_label = (time.monotonic() - began) / (_PROBES - 1)
        known = Dataset(Path(folder) / "dataset")
        if not len(known):
            raise TeacherError("the teacher gave no label for any probe", found=label.news)
        frames = Frames.of(known.read(range(len(known))).systems())
        took = []
        for updates in _UPDATES:
            began = time.monotonic()
            train_student(frames, frames, lower_budget(config, updates))
            took.append(time.monotonic() - began)
    per_update = (took[2] - took[1]) / (_UPDATES[2] - _UPDATES[1])
    if per_update <= 0:  # a machine that others use: at most this
        per_update = took[2] / _UPDATES[2]
    n_labels = min(config.labels, config.goal.max_labels)
    found: dict[str, Any] = {
        "n_atoms": [len(atoms) for atoms in seeds],
        "student": config.student,
        "seconds_per_label": per_label,
        "seconds_per_update": per_update,
        "first_turn_labels": n_labels,
        "first_turn_label_seconds": per_label * n_labels,
        "first_turn_updates": config.training.updates,
        "first_turn_training_seconds": per_update * config.training.updates,
        "most_labels": config.goal.max_labels,
        "most_label_seconds": per_label * config.goal.max_labels,
        "most_hours": config.goal.max_hours,
    }
    return {
        name: float(f"{value:.3g}") if isinstance(value, float) else value
        for name, value in found.items()
    }


def in_words(found: Mapping[str, Any]) -> list[str]:
    """What `estimate` found, in lines for people."""
    time_of = {name: time_in_words(own) for name, own in found.items() if "seconds" in name}
    atoms = ", ".join(map(str, found["n_atoms"]))
    return [
        f"structures of {atoms} atoms; the student to begin with: {found['student']}",
        f"first turn: {found['first_turn_labels']:,} labels of {time_of['seconds_per_label']}, "
        f"{time_of['first_turn_label_seconds']} in all; {found['first_turn_updates']:,} updates of "
        f"{time_of['seconds_per_update']}, {time_of['first_turn_training_seconds']} in all; "
        "then its checks",
        f"further turns, until every check passes: up to {found['most_labels']:,} labels "
        f"({time_of['most_label_seconds']} of the teacher) and {found['most_hours']:g} h",
        "--labels, --max-labels and --max-hours bound it",
    ]
