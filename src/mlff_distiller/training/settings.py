"""Every hyperparameter of the training loop, with its default."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.training.loss import LossSettings

_WORTH_COMPILING = 10_000
"""Updates on a GPU: about 6 ms are saved in each, and a minute is spent."""
Fraction = Annotated[float, Field(ge=0, le=1)]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class TrainingSettings:
    """Settings of the loop.

    ``epochs`` takes the place of ``updates``. ``atoms_per_batch``: 256 by default; 1024
    on a GPU. ``schedule``: after the warm-up half a cosine, or constant and
    in the last ``decay_fraction`` down linearly (``wsd``). Training stops once the force error has
    not improved for ``patience_fraction`` of the updates. Of ``validations`` the ``keep_best`` best
    students are kept next to the checkpoint; at ``md_checks`` of them the student runs ``md_steps``
    of MD. ``trackers``: tensorboard, wandb, mlflow; the latter two may use the network.
    ``weight_decay``: by default what suits the student's architecture.
    ``compile``: fuse the step's kernels, which takes about a minute at first; by default where it
    pays, on a GPU for 10,000 updates or more, and never for a student that has kernels to train.
    ``memory_GB``: how much of the training data is kept in memory, or in a GPU's; half of what is
    free by default. What does not fit is read again from the dataset whenever it is needed, which
    costs time and changes no result.
    """

    updates: Annotated[int, Field(ge=1)] = 8_000
    epochs: Annotated[int, Field(ge=1)] | None = None
    atoms_per_batch: Annotated[int, Field(ge=1)] | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-2
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    decay_fraction: Fraction = 0.3
    gradient_clip: Annotated[float, Field(gt=0)] = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    patience_fraction: Annotated[float, Field(gt=0, le=1)] = 0.4
    validations: Annotated[int, Field(ge=1)] = 100
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 10.0
    keep_best: Annotated[int, Field(ge=0)] = 3
    md_checks: Annotated[int, Field(ge=0)] = 4
    md_steps: Annotated[int, Field(ge=10)] = 100
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    cuda_graph: bool = True
    compile: bool | None = None
    memory_GB: Annotated[float, Field(ge=0)] | None = None
    loss: LossSettings = field(default_factory=LossSettings)

    def atoms_in_batch(self, device_type: str) -> int:
        """``atoms_per_batch``, or what suits a "cpu" or a "cuda" device."""
        return self.atoms_per_batch or (1024 if device_type == "cuda" else 256)

    def compiles(self, device_type: str, updates: int, *, has_kernels: bool) -> bool:
        """``compile``, or what pays for this many updates of a student without its own kernels."""
        if self.compile is None:
            return device_type == "cuda" and updates >= _WORTH_COMPILING and not has_kernels
        return self.compile
