"""Training checkpoints: one safetensors file, written durably; the rest is JSON in its header."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mlff_distiller.durable import write_bytes
from mlff_distiller.errors import TrainingError

_SCHEMA = "1"


@dataclass
class Progress:
    """Everything about a run that is not a tensor; goes into the checkpoint as it is."""

    epoch: int = 0
    updates: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_forces_mae: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    student: torch.nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: dict[str, Tensor],
) -> None:
    """Everything a bit-exact continuation needs. A crash leaves the previous checkpoint."""
    tensors = {f"student.{name}": value for name, value in student.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    header = {"schema": _SCHEMA, "progress": json.dumps(asdict(progress))}
    copies = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    write_bytes(path, save(copies, metadata=header))


def load_checkpoint(
    path: Path,
    student: torch.nn.Module,
    average: AveragedModel,
    optimizer: torch.optim.Optimizer,
) -> tuple[Progress, dict[str, Tensor]]:
    """Restore the four objects in place; returns the progress and the best weights so far."""
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingError(
            f"the checkpoint {path} is damaged",
            found=error,
            remedy="delete it; training starts anew from the same labels",
        ) from error
    if header.get("schema") != _SCHEMA:
        raise TrainingError(
            f"the checkpoint {path} is of another version",
            expected=f"schema {_SCHEMA}",
            found=header.get("schema"),
            remedy="delete it; training starts anew from the same labels",
        )

    def part(prefix: str) -> dict[str, Tensor]:
        start = len(prefix) + 1
        return {
            name[start:]: value for name, value in tensors.items() if name.startswith(f"{prefix}.")
        }

    student.load_state_dict(part("student"))
    average.load_state_dict(part("average"))
    state: dict[int, dict[str, Any]] = {}
    for name, value in part("optimizer").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return Progress(**json.loads(header["progress"])), part("best")
