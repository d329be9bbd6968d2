"""Labels become a student: the split, the training, and ``mlff-distiller train``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlff_distiller import training as optimisation
from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset, Frames, Split, split_by_group
from mlff_distiller.dataset.split import FEWEST_GROUPS, in_blocks
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.durable import EventLog, claimed, read_json, sha256_of_file, write_json
from mlff_distiller.engines.loading import resolve_device
from mlff_distiller.errors import ConfigError, DatasetError
from mlff_distiller.labeling import BRANCHES_PER_SEED
from mlff_distiller.md.record import ForceField, stays_up
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.sampling.reach import out_of_reach
from mlff_distiller.students import Student, load_student, save_student, set_repulsion
from mlff_distiller.students.data import robust_fit
from mlff_distiller.students.error_model import fit_error_model
from mlff_distiller.training import ALONE, Trackers, Workers, workers_of_torchrun
from mlff_distiller.training.sources import NO_EXTRA, NO_SOURCES, Extra, Sources
from mlff_distiller.validation.accuracy import student_errors
from mlff_distiller.workflows.config import Config, to_plain
from mlff_distiller.workflows.doubts import warn_of_labels
from mlff_distiller.workflows.folder import as_begun, fix_inputs, identity_of

OnProgress = Callable[[str, int, int, str], None]
"""Called with stage, done, total and a few words of news."""


def train(
    labels: str | Path,
    out: str | Path,
    config: Config | None = None,
    *,
    init: str | Path | None = None,
    sources: Sources = NO_SOURCES,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """Train a student on the dataset ``labels``; returns its errors on the held-out groups.

    ``out`` gets ``student/``, ``errors.json``, ``log.jsonl``, the ``best/`` weights and what the
    trackers write; the same call continues an interrupted one. ``init`` is a student to begin with,
    whose architecture and sizes stay: trained on more labels of the same kind, or on few of a
    better level. ``sources`` add frames that only train. Of several processes that torchrun
    started, each learns from its share of every minibatch.

    Raises
    ------
    ConfigError
        ``out`` holds a run with other settings or labels; the difference is shown.
    StudentError
        ``init`` cannot be read.
    UnknownElementError
        ``init`` does not know an element of the labels.
    """
    dataset, out, config = Dataset(labels), Path(out), config or Config()
    init = None if init is None else Path(init)
    with (
        workers_of_torchrun(config.device) as workers,
        claimed(out) if workers.leads else nullcontext(),
    ):
        inputs = identity_of(dataset) | sources.inputs()
        start = None if init is None else load_student(init)
        if init is not None:
            file = init if init.is_file() else init / "weights.safetensors"
            inputs["init"] = sha256_of_file(file)
        config = as_begun(out, config)
        if workers.leads:
            fix_inputs(out, config, inputs)
        return train_and_test(out, dataset, config, on_progress, start, sources, workers)


def train_and_test(
    out: Path,
    labels: Dataset,
    config: Config,
    on_progress: OnProgress,
    init: Student | None = None,
    sources: Sources = NO_SOURCES,
    workers: Workers = ALONE,
) -> dict[str, Any]:
    """``out/student`` trained, and its errors on the held-out groups, as ``out/errors.json``.

    What an earlier call left there is taken as it is; the caller holds ``out`` and its inputs.
    """
    split = split_labels(labels, config)
    if workers.leads and not (out / "student").exists():
        warn_of_labels(labels, split)
    log = EventLog(out / "log.jsonl")
    student = train_stage(out, labels, split, config, log, on_progress, init, sources, workers)
    path, errors = out / "errors.json", {}
    if workers.leads:
        with suppress(ConfigError):  # damaged: made again
            errors = read_json(path)
        if not errors:
            write_json(path, student_errors(student, labels.read(split.test).systems()))
    workers.wait()
    return read_json(path)


def split_labels(labels: Dataset, config: Config) -> Split:
    """Whole trees to each part; the seeds themselves train, and labels in dispute do not.

    Unless ``config.held_out`` is all, structures `out_of_reach` of the temperatures sampled neither
    validate nor test, and a group that is mostly of these trains. So does an element that is in no
    other group. Where that leaves fewer than three groups, each is cut into blocks, see
    `in_blocks`.
    """
    rest = 1.0 - config.test_fraction - config.validation_fraction
    fractions = rest, config.validation_fraction, config.test_fraction
    groups, are_cut = labels.groups, False
    names = {int(group) for group in groups}
    train = {name for name in names if name % BRANCHES_PER_SEED == 0}
    far = np.zeros(len(labels), dtype=bool) if config.held_out == "all" else out_of_reach(labels)
    train |= _mostly(far, groups)
    if len(names - train) < FEWEST_GROUPS:
        train = set()
    while True:
        if len({*groups.tolist()} - train) < FEWEST_GROUPS and not are_cut:
            groups, train, are_cut = in_blocks(groups), set(), True
        split = split_by_group(groups, fractions, config.seed, always_train=frozenset(train))
        rare = _of_elements_held_out(labels, groups, split)
        if not rare:
            break
        train |= rare
    limit = config.max_disagreement_eV_per_A
    disputed = labels.disagreement > limit
    validation, test = _near(split.validation, far), _near(split.test, far)
    agreed = Split(split.train[~disputed[split.train]], validation[~disputed[validation]], test)
    if not len(agreed.train) or not len(agreed.validation):
        raise DatasetError(
            "the committee agrees on too few structures to train on",
            expected=f"forces on which its members differ by at most {limit:g} eV/Å",
            found=f"{disputed.sum()} of {len(labels)} structures with others",
            remedy="take another teacher, or raise max_disagreement_eV_per_A",
        )
    return agreed


def _near(part: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Those of ``part`` that are not ``far``, or all where all are."""
    near: np.ndarray = part[~far[part]]
    return near if len(near) else part


def _mostly(far: np.ndarray, groups: np.ndarray) -> set[int]:
    """Groups of which more than half is ``far``."""
    names, of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return set(names[2 * np.bincount(of, weights=far) > sizes].tolist())


def _of_elements_held_out(labels: Dataset, groups: np.ndarray, split: Split) -> set[int]:
    """Groups to validate or test on that hold an element which no training structure has."""
    held_out = np.concatenate([split.validation, split.test])
    elements = [set(frame.atomic_numbers.tolist()) for frame in Frames(labels, held_out)]
    missing = set().union(*elements)
    for frame in Frames(labels, split.train):
        missing -= set(frame.atomic_numbers.tolist())
        if not missing:
            break
    rare = np.array([not own.isdisjoint(missing) for own in elements], dtype=bool)
    return set(groups[held_out[rare]].tolist())


def train_stage(
    out: Path,
    labels: Dataset,
    split: Split,
    config: Config,
    log: EventLog,
    on_progress: OnProgress,
    init: Student | None = None,
    sources: Sources = NO_SOURCES,
    workers: Workers = ALONE,
    temperature_K: Sequence[float] | None = None,
) -> Student:
    """Train, or load what an earlier call trained, as ``out/student``.

    From ``init``, if given, whose reference energies are fitted again. The student keeps the
    temperatures of its labels, None where they are not known.
    """
    folder = out / "student"
    if not (folder / "config.json").exists():
        training, validation = Frames(labels, split.train), Frames(labels, split.validation)
        if init is None:
            student = config.new_student(training)
        else:
            set_repulsion(init, config.repulsion_A)
            student = rebased(init, training)
        held_out = Frames(labels, np.concatenate([split.validation, split.test]))
        extra = sources.read(student, held_out)
        shown = {row["updates"] for row in log.rows("train", "updates")}
        trackers = Trackers(
            config.training.trackers if workers.leads else (), out, to_plain(config)
        )

        def on_validation(row: dict[str, float], updates: int) -> None:
            if not workers.leads:
                return
            if row["updates"] not in shown:
                log.write("train", **row)
                trackers(row)
            news = (
                f"loss {row['train_loss']:.3g}, "
                f"{row['validation_forces_mae_meV_per_A']:.1f} meV/Å, "
                f"fidelity {row['validation_forces_fidelity']:.4f}"
            )
            on_progress("train", int(row["updates"]), updates, news)

        try:
            student, _ = train_student(
                training,
                validation,
                config,
                student=student,
                extra=extra,
                checkpoint=out / "checkpoint.safetensors",
                workers=workers,
                check=lambda own: _short_md(own, validation, config),
                on_validation=on_validation,
            )
        finally:
            trackers.close()
        about = {
            "teacher": labels.metadata.get("teacher"),
            "n_labels": len(labels),
            "n_train": len(training),
            "n_probes": len(extra.probes),
            "n_other_labels": len(extra.frames) - 2 * len(extra.probes),
            "temperature_K": temperature_K and list(temperature_K),
            "config": to_plain(config),
            "versions": {name: version(name) for name in ("mlff-distiller", "torch", "numpy")},
        }
        card = "# A student, not yet evaluated\n\nIts run only trained, or has not finished.\n"
        if workers.leads:
            trained = training.beside(extra.frames)
            student.error_model = fit_error_model(student, trained, validation)
            save_student(student, folder, about=about, card=card, frames=training)
        workers.wait()
    return load_student(folder).to(workers.device(resolve_device(config.device)))


def train_student(
    training: Sequence[Batch],
    validation: Sequence[Batch],
    config: Config,
    *,
    student: Student | None = None,
    seed: int | None = None,
    extra: Extra = NO_EXTRA,
    checkpoint: Path | None = None,
    workers: Workers = ALONE,
    check: Callable[[Student], dict[str, float]] = lambda student: {},
    on_validation: Callable[[dict[str, float], int], None] = lambda row, updates: None,
) -> tuple[Student, list[dict[str, float]]]:
    """The student, trained on ``config.device``, and a row per validation; see `training.train`.

    ``student`` is the one to begin with, by default a new one for ``training``; ``seed`` that of
    the order of frames, by default ``config.seed``; ``extra`` frames train only.
    """
    own = Frames.of(training)
    student = student or config.new_student(own)
    student = student.to(workers.device(resolve_device(config.device)))
    n_own = len(own)
    history = optimisation.train(
        student,
        own.beside(extra.frames),
        validation,
        config.training,
        seed=config.seed if seed is None else seed,
        probes=[(n_own + a, n_own + b) for a, b in extra.probes],
        frame_weights=[*(1.0 for _ in range(n_own)), *extra.weights] if extra.weights else None,
        checkpoint=checkpoint,
        workers=workers,
        check=check,
        on_validation=on_validation,
    )
    return student, history


def fidelity_to(on_progress: OnProgress, stage: str) -> Callable[[dict[str, float], int], None]:
    """For `train_student`: tells how good the student is, as progress of ``stage``."""

    def on_validation(row: dict[str, float], updates: int) -> None:
        news = f"fidelity {row['validation_forces_fidelity']:.4f}"
        on_progress(stage, int(row["updates"]), updates, news)

    return on_validation


def _short_md(student: Student, frames: Frames, config: Config) -> dict[str, float]:
    """Whether the student in training holds a smallest frame together, at the highest T.

    Nothing is said where every frame is a single atom, which does not move.
    """
    several = np.flatnonzero(frames.n_atoms > 1)
    if not len(several):
        return {}
    atoms = frames[int(several[frames.n_atoms[several].argmin()])].to_atoms()[0]
    calculator = StudentCalculator(copy.deepcopy(student).eval(), device=str(student.device))
    temperature = max(config.sampling.temperature_K)
    field = ForceField(student.architecture, calculator)
    return stays_up(field, atoms, temperature, config.training.md_steps, config.seed)


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
    shift = robust_fit(torch.stack(composition).double().numpy(), np.array(left))
    student.reference_energies += torch.from_numpy(shift)
    return student
