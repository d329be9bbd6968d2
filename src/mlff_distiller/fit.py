"""Labels become a student: the split, the training, and ``mlff-distiller train``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff_distiller.batch import Batch
from mlff_distiller.config import Config, to_plain
from mlff_distiller.dataset import Dataset, Split, split_by_group
from mlff_distiller.deploy import resolve_device
from mlff_distiller.durable import EventLog, sha256_of_file, write_json
from mlff_distiller.evaluate.accuracy import compare
from mlff_distiller.labeling import BRANCHES_PER_SEED
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.run_folder import fix_inputs, only_one
from mlff_distiller.students import Student, load_student, save_student
from mlff_distiller.training import train

OnProgress = Callable[[str, int, int, str], None]
"""Called with stage, done, total and a few words of news."""


def fit(
    labels: Path,
    out: Path,
    config: Config,
    *,
    init: Path | None = None,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """Train a student on the dataset ``labels``; returns its errors on the held-out groups.

    ``out`` gets ``student/``, ``errors.json`` and ``log.jsonl``; the same call continues an
    interrupted one. ``init`` is a student to begin with, whose architecture and sizes stay: trained
    on more labels of the same kind, or on few of a better level.

    Raises
    ------
    ConfigError
        ``out`` holds a run with other settings or labels; the difference is shown.
    StudentError
        ``init`` cannot be read.
    UnknownElementError
        ``init`` does not know an element of the labels.
    """
    dataset = Dataset(labels)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        inputs = {"labels": sha256(dataset.key_column.tobytes()).hexdigest()}
        start = None if init is None else load_student(init)
        if init is not None:
            file = init if init.is_file() else init / "weights.safetensors"
            inputs["init"] = sha256_of_file(file)
        fix_inputs(out, config, inputs)
        return train_and_test(out, dataset, config, on_progress, start)


def train_and_test(
    out: Path,
    labels: Dataset,
    config: Config,
    on_progress: OnProgress,
    init: Student | None = None,
) -> dict[str, Any]:
    """``out/student`` trained, and its errors on the held-out groups, as ``out/errors.json``.

    What an earlier call left there is taken as it is; the caller holds ``out`` and its inputs.
    """
    split = split_labels(labels, config)
    student = train_stage(
        out, labels, split, config, EventLog(out / "log.jsonl"), on_progress, init
    )
    if not (out / "errors.json").exists():
        held_out = compare(student, labels.read(split.test).systems())
        write_json(out / "errors.json", held_out.errors)
    errors: dict[str, Any] = json.loads((out / "errors.json").read_text(encoding="utf-8"))
    return errors


def split_labels(labels: Dataset, config: Config) -> Split:
    """Whole trees to each part; the seeds themselves train."""
    rest = 1.0 - config.test_fraction - config.validation_fraction
    alone = frozenset(int(group) for group in labels.groups if group % BRANCHES_PER_SEED == 0)
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
    config: Config,
    log: EventLog,
    on_progress: OnProgress,
    init: Student | None = None,
) -> Student:
    """Train, or load what an earlier call trained, as ``out/student``.

    From ``init``, if given, whose reference energies are fitted anew.
    """
    folder = out / "student"
    if not (folder / "config.json").exists():
        training = labels.read(split.train).systems()
        validation = labels.read(split.validation).systems()
        student = config.new_student(training) if init is None else rebased(init, training)
        student = student.to(resolve_device(config.device))
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
            "teacher": labels.metadata.get("teacher"),
            "n_labels": len(labels),
            "n_train": len(training),
            "temperature_K": list(config.sampling.temperature_K),
            "config": to_plain(config),
            "versions": {name: version(name) for name in ("mlff-distiller", "torch", "numpy")},
        }
        card = "# A student, not yet evaluated\n\nIts run only trained, or has not finished.\n"
        save_student(student, folder, about=about, card=card, frames=training)
    return load_student(folder).to(resolve_device(config.device))


@torch.no_grad()
def rebased(student: Student, frames: Sequence[Batch]) -> Student:
    """``student`` in float32, its reference energies moved to what ``frames`` are relative to.

    Least squares of what it leaves of their energies on composition; levels of theory differ by
    energies of the elements above all. An element that no frame holds keeps its own.
    """
    student = student.cpu().float().eval()
    left, composition = [], []
    for frame in frames:
        types = student.types(frame.atomic_numbers)
        prediction = student(frame, neighbor_list(frame, student.cutoff))
        left.append(float(frame.labels["energy"] - prediction.energy))
        composition.append(torch.bincount(types, minlength=len(student.elements)))
    shift = np.linalg.lstsq(torch.stack(composition).double().numpy(), np.array(left), rcond=None)
    student.reference_energies += torch.from_numpy(shift[0])
    return student
