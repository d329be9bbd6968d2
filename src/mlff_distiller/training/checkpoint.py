"""Training checkpoints: one safetensors file, written durably; the rest is JSON in its header."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mlff_distiller.durable import write_bytes
from mlff_distiller.errors import TrainingError
from mlff_distiller.training.update import Updater

_SCHEMA = "2"


@dataclass
class Progress:
    """Everything about a run that is not a tensor; goes into the checkpoint as it is.

    ``batch`` minibatches of ``epoch`` are done; ``loss_sum`` is that since the last validation.
    """

    epoch: int = 0
    batch: int = 0
    updates: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    best_updates: int = -1
    best_forces_mae: float = math.inf
    curvature_dropped: bool = False
    stopped: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path, updater: Updater, progress: Progress, best: Mapping[str, Tensor]
) -> None:
    """Everything a bit-exact continuation needs. A crash leaves the previous checkpoint."""
    student, average = updater.student.state_dict(), updater.average.state_dict()
    tensors = {f"student.{name}": value for name, value in student.items()}
    tensors |= {f"average.{name}": value for name, value in average.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, state in updater.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    copies, header = _copies(tensors), {"schema": _SCHEMA, "progress": json.dumps(asdict(progress))}
    write_bytes(path, save(copies, metadata={**header, "sha256": _digest(header, copies)}))


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header["progress"].encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_the_best(folder: Path, best: Mapping[str, Tensor], progress: Progress, most: int) -> None:
    """Write the weights that were just the best so far; of such files ``most`` stay."""
    if most == 0:
        return
    folder = folder / "best"
    folder.mkdir(exist_ok=True)
    write_bytes(folder / f"update-{progress.updates:08d}.safetensors", save(_copies(best)))
    for old in sorted(folder.glob("update-*.safetensors"))[:-most]:
        old.unlink()


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def load_checkpoint(path: Path, updater: Updater) -> tuple[Progress, dict[str, Tensor]]:
    """Restore the updater in place; returns the progress and the best weights so far."""
    remedy = "delete it; training starts again from the same labels"
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        if header["schema"] != _SCHEMA:
            raise TrainingError(
                f"the checkpoint {path} was written by another version",
                expected=f"schema {_SCHEMA}",
                found=header["schema"],
                remedy=remedy,
            )
        if header.get("sha256") not in (None, _digest(header, tensors)):  # earlier ones have none
            raise ValueError("its checksum is wrong")
        return _restore(header, tensors, updater)
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError,
            RecursionError, RuntimeError) as damage:  # fmt: skip
        if isinstance(damage, TrainingError | torch.OutOfMemoryError):
            raise
        raise TrainingError(
            f"the checkpoint {path} is damaged",
            found=f"{type(damage).__name__}: {damage}",
            remedy=remedy,
        ) from damage


def _restore(
    header: Mapping[str, str], tensors: Mapping[str, Tensor], updater: Updater
) -> tuple[Progress, dict[str, Tensor]]:
    def part(prefix: str) -> dict[str, Tensor]:
        start = len(prefix) + 1
        return {
            name[start:]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")
        }

    progress = Progress(**json.loads(header["progress"]))
    updater.student.load_state_dict(part("student"))
    updater.average.load_state_dict(part("average"))
    state: dict[int, dict[str, Any]] = {}
    for name, value in part("optimizer").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = updater.optimizer.state_dict()["param_groups"]
    updater.optimizer.load_state_dict({"state": state, "param_groups": groups})
    return progress, part("best")
