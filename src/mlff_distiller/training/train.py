"""The training loop, from top to bottom. Plain PyTorch; exact resume; nothing global is touched."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from mlff_distiller.batch import Batch
from mlff_distiller.errors import TrainingError
from mlff_distiller.students.base import Student
from mlff_distiller.training.cache import room_on
from mlff_distiller.training.checkpoint import (
    Progress,
    keep_the_best,
    load_checkpoint,
    save_checkpoint,
)
from mlff_distiller.training.loss import Spread
from mlff_distiller.training.metrics import Samples, validate
from mlff_distiller.training.minibatch import Minibatches
from mlff_distiller.training.settings import TrainingSettings
from mlff_distiller.training.update import Updater
from mlff_distiller.training.workers import ALONE, Workers

_FEWEST_VALIDATIONS = 5
"""Without improvement, before training stops early."""


def train(
    student: Student,
    training: Sequence[Batch],
    validation: Sequence[Batch],
    settings: TrainingSettings,
    *,
    seed: int = 0,
    probes: Sequence[tuple[int, int]] = (),
    frame_weights: Sequence[float] | None = None,
    checkpoint: Path | None = None,
    workers: Workers = ALONE,
    check: Callable[[Student], dict[str, float]] = lambda student: {},
    on_validation: Callable[[dict[str, float], int], None] = lambda row, updates: None,
) -> list[dict[str, float]]:
    """Train ``student`` in place on single-system batches; returns one row per validation.

    Either set may be a `Frames`, which is read as it is needed: of what training makes of frames,
    as much stays in memory as ``settings.memory_GB`` allows, and that changes no bit of the result.

    What is kept are the averaged weights (EMA) at the smallest validation force error. With
    ``checkpoint``, an interrupted call continues from that file, in the middle of an epoch too, and
    on the CPU ends with the same bits as an uninterrupted one: all randomness is drawn from (seed,
    epoch). ``probes`` are pairs of frames for the curvature error; ``frame_weights`` multiply all
    errors of a frame (see `Minibatches`). ``check`` measures the averaged student now and then.
    """
    if not len(training) or not len(validation):
        raise TrainingError(
            "nothing to train on",
            expected="at least one training and one validation structure",
            found=f"{len(training)} and {len(validation)}",
        )
    room = room_on(student.device, settings.memory_GB, workers.world_size)
    validation_set = Samples(validation, student, room)
    for _ in validation_set:  # read the most often, it has the first claim to the room
        pass
    minibatches = Minibatches(
        training,
        student,
        settings.atoms_in_batch(student.device.type),
        seed=seed,
        probes=probes,
        frame_weights=frame_weights,
        disagreement=settings.loss.disagreement,
        room=room,
    )
    spread = Spread.of(training, student, probes)
    with closing(minibatches):
        return _learn(
            student,
            minibatches,
            spread,
            validation_set,
            settings,
            checkpoint,
            workers,
            check,
            on_validation,
        )


def _learn(
    student: Student,
    minibatches: Minibatches,
    spread: Spread,
    validation_set: Samples,
    settings: TrainingSettings,
    checkpoint: Path | None,
    workers: Workers,
    check: Callable[[Student], dict[str, float]],
    on_validation: Callable[[dict[str, float], int], None],
) -> list[dict[str, float]]:
    updates = settings.updates
    if settings.epochs:
        updates = sum(len(minibatches.plan(epoch)) for epoch in range(settings.epochs))
    every = max(1, updates // settings.validations)
    checks = [updates * (k + 1) // settings.md_checks for k in range(settings.md_checks)]

    has_kernels = student.trains_by_kernels
    compiles = settings.compiles(student.device.type, updates, has_kernels=has_kernels)
    updater = Updater(student, minibatches, spread, settings, workers, compiles=compiles)
    best = {name: value.clone() for name, value in updater.average.state_dict().items()}
    progress = Progress()
    if checkpoint is not None and checkpoint.exists():
        progress, best = load_checkpoint(checkpoint, updater)
    saved = time.monotonic()
    student.train()
    total = torch.tensor(progress.loss_sum, dtype=torch.float64, device=student.device)

    while progress.updates < updates and not progress.stopped:
        plan = minibatches.plan(progress.epoch)
        for number, units in enumerate(plan[progress.batch :], progress.batch + 1):
            following = plan[number] if number < len(plan) else ()
            started = time.monotonic()
            fraction = progress.updates / updates
            rate = settings.learning_rate * rate_factor(fraction, settings)
            weights = settings.loss.weights(fraction, curvature=not progress.curvature_dropped)
            total += updater.update(units, rate, weights, following)
            progress.updates += 1
            progress.batch += 1
            if progress.updates % every == 0 or progress.updates == updates:
                before = int(progress.history[-1]["updates"]) if progress.history else 0
                metrics = workers.agree(validate(updater.average, validation_set))
                row = {
                    "updates": progress.updates,
                    "epoch": round(progress.epoch + progress.batch / len(plan), 3),
                    "seconds": round(progress.seconds + time.monotonic() - started, 3),
                    "learning_rate": rate,
                    "train_loss": float(total) / (progress.updates - before),
                    **metrics,
                }
                if not math.isfinite(row["train_loss"]):
                    raise TrainingError(
                        f"training diverged by update {progress.updates}",
                        found=f"a loss of {row['train_loss']}",
                        remedy="lower training.learning_rate, or look for outliers in the labels",
                    )
                if workers.leads and any(before < k <= progress.updates for k in checks):
                    row |= check(updater.average)
                if metrics["validation_forces_mae_meV_per_A"] < progress.best_forces_mae:
                    progress.best_forces_mae = metrics["validation_forces_mae_meV_per_A"]
                    progress.best_updates = progress.updates
                    best = {name: own.clone() for name, own in updater.average.state_dict().items()}
                    if checkpoint is not None and workers.leads:
                        keep_the_best(checkpoint.parent, best, progress, settings.keep_best)
                without = progress.updates - progress.best_updates
                progress.stopped = without > max(
                    _FEWEST_VALIDATIONS * every, settings.patience_fraction * updates
                )
                if without > settings.loss.curvature_patience * updates:
                    progress.curvature_dropped = True
                progress.history.append(row)
                total.zero_()
            progress.seconds += time.monotonic() - started
            if progress.history and progress.history[-1]["updates"] == progress.updates:
                on_validation(progress.history[-1], updates)
            due = time.monotonic() - saved >= settings.checkpoint_seconds
            if checkpoint is not None and due and workers.leads:
                progress.loss_sum = float(total)
                save_checkpoint(checkpoint, updater, progress, best)
                saved = time.monotonic()
            if progress.updates >= updates or progress.stopped:
                break
        else:
            progress.epoch, progress.batch = progress.epoch + 1, 0

    student.load_state_dict(best)
    student.error_model = None  # that of the weights before
    student.eval()
    return progress.history


def rate_factor(fraction: float, settings: TrainingSettings) -> float:
    """Factor of the learning rate after ``fraction`` of all updates; rises, ends at zero."""
    warmup = settings.warmup_fraction
    rise = 1.0 if fraction >= warmup else (fraction + 1e-3) / (warmup + 1e-3)
    if settings.schedule == "cosine":
        return rise * (0.5 + 0.5 * math.cos(math.pi * fraction))
    return rise * min(1.0, (1.0 - fraction) / max(settings.decay_fraction, 1e-9))
