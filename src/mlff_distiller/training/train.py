"""The training loop, from top to bottom. Plain PyTorch; exact resume; nothing global is touched."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlff_distiller.batch import Batch
from mlff_distiller.errors import TrainingError
from mlff_distiller.neighbors import Neighbors, neighbor_list
from mlff_distiller.students.base import Student
from mlff_distiller.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mlff_distiller.training.loss import LossSettings, Spread, loss

Sample = tuple[Batch, Neighbors]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class TrainingSettings:
    """Settings of the loop. ``epochs`` None: as many as make some ``updates``."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    updates: Annotated[int, Field(ge=1)] = 8_000
    atoms_per_batch: Annotated[int, Field(ge=1)] = 256
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-2
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    gradient_clip: Annotated[float, Field(gt=0)] = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    patience_fraction: Annotated[float, Field(gt=0, le=1)] = 0.4
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 10.0
    loss: LossSettings = field(default_factory=LossSettings)


def train(
    student: Student,
    training: Sequence[Batch],
    validation: Sequence[Batch],
    settings: TrainingSettings,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_epoch: Callable[[dict[str, float], int], None] = lambda row, epochs: None,
) -> list[dict[str, float]]:
    """Train ``student`` in place on single-system batches; returns one row of metrics an epoch.

    What is kept are the averaged weights (EMA) of the epoch with the smallest validation force
    error. With ``checkpoint``, an interrupted call continues from that file and, on the CPU, ends
    with the same bits as an uninterrupted one: all randomness is drawn from (seed, epoch).
    """
    if not training or not validation:
        raise TrainingError(
            "nothing to train on",
            expected="at least one training and one validation structure",
            found=f"{len(training)} and {len(validation)}",
        )
    samples = with_neighbors(training, student)
    validation_set = collate(with_neighbors(validation, student))
    spread = Spread.of([batch for batch, _ in samples], student)
    mean_size = sum(batch.n_atoms for batch in training) / len(training)
    batch_size = min(len(samples), max(1, round(settings.atoms_per_batch / mean_size)))
    updates_per_epoch = math.ceil(len(samples) / batch_size)
    epochs = settings.epochs or max(10, math.ceil(settings.updates / updates_per_epoch))

    factors, groups = zip(*student.parameter_groups(), strict=True)
    optimizer = torch.optim.Adam([{"params": group} for group in groups], betas=(0.9, 0.99))
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
    best = {name: value.clone() for name, value in average.module.state_dict().items()}
    progress = Progress()
    if checkpoint is not None and checkpoint.exists():
        progress, best = load_checkpoint(checkpoint, student, average, optimizer)
    saved = time.monotonic()

    for epoch in range(progress.epoch, epochs):
        if epoch - progress.best_epoch > max(5.0, settings.patience_fraction * epochs):
            break
        started = time.monotonic()
        order = np.random.default_rng([seed, epoch]).permutation(len(samples))
        total = 0.0
        student.train()
        for start in range(0, len(order), batch_size):
            batch, neighbors = collate([samples[k] for k in order[start : start + batch_size]])
            fraction = progress.updates / (epochs * updates_per_epoch)
            rate = settings.learning_rate * schedule(fraction, settings.warmup_fraction)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = factor * rate
            with torch.enable_grad():
                error = loss(student(batch, neighbors), batch, spread, settings.loss)
                optimizer.zero_grad()
                error.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), settings.gradient_clip)
            optimizer.step()
            average.update_parameters(student)
            progress.updates += 1
            total += float(error.detach())
        train_loss = total / updates_per_epoch
        if not math.isfinite(train_loss):
            raise TrainingError(
                f"training diverged in epoch {epoch}: the loss is {train_loss}",
                remedy="lower training.learning_rate, or look for outliers among the labels",
            )
        average.eval()
        metrics = validate(average.module, *validation_set)
        progress.epoch = epoch + 1
        progress.seconds += time.monotonic() - started
        row = {
            "epoch": epoch,
            "seconds": round(progress.seconds, 3),
            "learning_rate": rate,
            "train_loss": train_loss,
            **metrics,
        }
        progress.history.append(row)
        if metrics["validation_forces_mae_meV_per_A"] < progress.best_forces_mae:
            progress.best_forces_mae = metrics["validation_forces_mae_meV_per_A"]
            progress.best_epoch = epoch
            best = {name: value.clone() for name, value in average.module.state_dict().items()}
        if checkpoint is not None and time.monotonic() - saved >= settings.checkpoint_seconds:
            save_checkpoint(checkpoint, student, average, optimizer, progress, best)
            saved = time.monotonic()
        on_epoch(row, epochs)

    student.load_state_dict(best)
    student.eval()
    return progress.history


def schedule(fraction: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to zero; ``fraction`` of all updates done."""
    rise = 1.0 if fraction >= warmup else (fraction + 1e-3) / (warmup + 1e-3)
    return rise * (0.5 + 0.5 * math.cos(math.pi * fraction))


def collate(samples: Sequence[Sample]) -> Sample:
    """One batch of all ``samples``."""
    batches = [batch for batch, _ in samples]
    sizes = [batch.n_atoms for batch in batches]
    pairs = Neighbors.concatenate([neighbors for _, neighbors in samples], sizes)
    return Batch.concatenate(batches), pairs


def with_neighbors(frames: Sequence[Batch], student: Student) -> list[Sample]:
    """Each frame and its pairs, on the student's device."""
    device = student.device
    return [(frame.to(device), neighbor_list(frame, student.cutoff).to(device)) for frame in frames]


@torch.no_grad()
def validate(student: torch.nn.Module, batch: Batch, neighbors: Neighbors) -> dict[str, float]:
    """Errors on one batch; names carry their units."""
    prediction = student(batch, neighbors)
    error = (prediction.forces - batch.labels["forces"]).double().abs()
    scale = batch.labels["forces"].double().abs().sum().clamp(min=1e-12)
    energy: Tensor = (prediction.energy - batch.labels["energy"]) / batch.atoms_per_system
    return {
        "validation_forces_mae_meV_per_A": 1e3 * float(error.mean()),
        "validation_forces_fidelity": 1.0 - float(error.sum() / scale),
        "validation_energy_mae_meV_per_atom": 1e3 * float(energy.abs().mean()),
    }
