"""What ``train --tune`` searches, and what it tries: settings, their ranges, one trial.

A trial is a short training. It says which of two students is likely to end ahead, not where either
will end.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from ase import Atoms
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset, Frames
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.loading import resolve_device
from mlff_distiller.errors import StudentError, TrainingError
from mlff_distiller.structure import enlarge
from mlff_distiller.students import NEP, Student
from mlff_distiller.training import TrainingSettings
from mlff_distiller.validation.benchmark import ms_per_step
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.train import split_labels, train_student

Architecture = Literal["nep", "painn"]
_LEAST_UPDATES = 100
_STILL_FS = 0.01
"""Time step (fs) at which an untrained student, whose forces mean nothing, breaks nothing."""


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class TuneSettings:
    """How to search. At most one of the limits; without one the most accurate trial is chosen.

    Time per step is measured through ASE on a labelled structure of the median size, made about
    ``speed_atoms`` large if that is given. ``minutes`` ends the search after the trial that
    exceeds it, those of earlier calls included. A trial makes ``trial_fraction`` of the updates
    of a full training.
    """

    trials: Annotated[int, Field(ge=1)] = 30
    max_us_per_atom: Annotated[float, Field(gt=0)] | None = None
    max_ms_per_step: Annotated[float, Field(gt=0)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    trial_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    speed_atoms: Annotated[int, Field(ge=1)] | None = None
    architectures: Annotated[tuple[Architecture, ...], Field(min_length=1)] = ("nep", "painn")


class Suggests(Protocol):
    """What draws a trial's settings; Optuna's trials do."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = ...) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[str], /) -> Any: ...


@dataclass(frozen=True)
class Bench:
    """What every trial is made of: the same frames, the same system to time, the same device."""

    config: Config
    training: Sequence[Batch]
    validation: Sequence[Batch]
    system: Atoms
    device: torch.device

    @classmethod
    def of(cls, labels: Dataset, config: Config, speed_atoms: int | None = None) -> Bench:
        split = split_labels(labels, config)
        training, validation = Frames(labels, split.train), Frames(labels, split.validation)
        system = _typical(training)
        if speed_atoms is not None:
            system = enlarge(system, speed_atoms)
        return cls(config, training, validation, system, resolve_device(config.device))

    def about(self) -> dict[str, Any]:
        """What was timed, and where."""
        formula, n_atoms = self.system.get_chemical_formula(), len(self.system)
        return {"system": {"formula": formula, "n_atoms": n_atoms}, "device": str(self.device)}

    def student(self, settings: Mapping[str, Any]) -> Student:
        """Untrained, as ``settings`` change the run's."""
        student = with_settings(self.config, settings).new_student(self.training)
        return student.to(self.device)

    def ms_per_step(self, student: Student, *, trained: bool) -> float:
        """Median time (ms) of an MD step through ASE, from some second of them.

        Atoms all but stand still under an untrained student, so its neighbours are never searched
        anew: its time is, if anything, too short.
        """
        calculator = StudentCalculator(copy.deepcopy(student), device=str(self.device))
        time_step = 0.5 if trained else _STILL_FS
        rough = ms_per_step(self.system, calculator, n_steps=5, warm_up=5, time_step_fs=time_step)
        n_steps = min(50, max(3, round(100.0 / rough)))
        return ms_per_step(
            self.system, calculator, n_steps=n_steps, warm_up=5, repeats=9, time_step_fs=time_step
        )

    def us_per_atom(self, ms: float) -> float:
        return 1e3 * ms / len(self.system)


def _typical(frames: Sequence[Batch]) -> Atoms:
    """Of the frames of the median size, the one of the least force."""
    size = statistics.median_low(Frames.of(frames).n_atoms.tolist())
    alike = (frame for frame in frames if frame.n_atoms == size)
    calm = min(alike, key=lambda frame: float(frame.labels["forces"].abs().max()))
    atoms = calm.to_atoms()[0]
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


# -- settings -------------------------------------------------------------------------------------


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """``config`` with dotted keys changed, as KEY=VALUE of the command line does."""
    for dotted, value in settings.items():
        config = _replaced(config, dotted.split("."), value)
    return config


def _replaced(section: Any, path: Sequence[str], value: Any) -> Any:
    head, *rest = path
    return replace(
        section, **{head: _replaced(getattr(section, head), rest, value) if rest else value}
    )


def _get(section: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        section = getattr(section, name)
    return section


@dataclass(frozen=True)
class Space:
    """The ranges for a data set. A setting that ``config`` changes from its default stays."""

    config: Config
    architectures: tuple[Architecture, ...]
    cutoffs_A: Mapping[str, tuple[float, float]]
    """Of an architecture: what the data suggest, radial and angular; painn has one."""
    has_stress: bool

    @classmethod
    def of(cls, bench: Bench, architectures: tuple[Architecture, ...]) -> Space:
        cutoffs: dict[str, tuple[float, float]] = {}
        for name in architectures:
            student = bench.student({"student": name})
            pair = student.cutoffs[0] if isinstance(student, NEP) else (student.cutoff,) * 2
            cutoffs[name] = pair
        has_stress = any(not bool(f.labels["stress"].isnan().all()) for f in bench.training)
        return cls(bench.config, architectures, cutoffs, has_stress)

    def defaults(self) -> list[dict[str, Any]]:
        """The presets, as values of ``suggest``: what any search should begin with."""
        found: list[dict[str, Any]] = []
        learning = {key: _get(self.config, key) for key in self._learning()}
        if "nep" in self.architectures:
            radial, angular = self.cutoffs_A["nep"]
            nep = {"nep.n_max_radial": 8, "nep.n_max_angular": 8, "nep.neurons": 50}
            cutoffs = {"nep.cutoff_radial_A": radial, "angular_share": angular / radial}
            found.append({"architecture": "nep", **nep, **cutoffs, **learning})
        if "painn" in self.architectures:
            same = {
                "painn.cutoff_A": self.cutoffs_A["painn"][0],
                "painn.radial_functions": self.config.painn.radial_functions,
            }
            for channels in (32, 64):
                size = {"channels": channels, "layers": 2}
                found.append({"architecture": "painn", **size, **same, **learning})
        return found

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Settings of a trial: dotted keys of the configuration, values to train with."""
        architecture = self.architectures[0]
        if len(self.architectures) > 1:
            architecture = trial.suggest_categorical("architecture", self.architectures)
        chosen = self._nep(trial) if architecture == "nep" else self._painn(trial)
        for key, (low, high) in self._learning().items():
            chosen[key] = float(f"{trial.suggest_float(key, low, high, log=True):.4g}")
        return chosen

    def _free(self, key: str) -> bool:
        return bool(_get(self.config, key) == _get(Config(), key))

    def _nep(self, trial: Suggests) -> dict[str, Any]:
        chosen: dict[str, Any] = {"student": "nep"}
        for key, low, high, step in (
            ("nep.n_max_radial", 4, 12, 2),
            ("nep.n_max_angular", 2, 8, 2),
            ("nep.neurons", 10, 90, 20),
        ):
            if self._free(key):
                chosen[key] = trial.suggest_int(key, low, high, step=step)
        radial = self._cutoff(trial, chosen, "nep.cutoff_radial_A", self.cutoffs_A["nep"][0])
        if self._free("nep.cutoff_angular_A"):
            share = trial.suggest_float("angular_share", 0.6, 1.0)
            chosen["nep.cutoff_angular_A"] = round(share * radial, 2)
        return chosen

    def _painn(self, trial: Suggests) -> dict[str, Any]:
        painn = self.config.painn
        channels = painn.channels or trial.suggest_int("channels", 16, 128, step=16)
        layers = painn.layers or trial.suggest_int("layers", 1, 3)
        chosen: dict[str, Any] = {"student": f"painn-{channels}x{layers}"}
        key = "painn.radial_functions"
        if self._free(key):
            chosen[key] = trial.suggest_int(key, 6, 16, step=2)
        self._cutoff(trial, chosen, "painn.cutoff_A", self.cutoffs_A["painn"][0])
        return chosen

    def _cutoff(self, trial: Suggests, chosen: dict[str, Any], key: str, usual: float) -> float:
        """Between 0.7 and 1.2 of what the data suggest, if free."""
        if not self._free(key):
            return usual
        value = round(trial.suggest_float(key, 0.7 * usual, min(12.0, 1.2 * usual)), 2)
        chosen[key] = value
        return value

    def _learning(self) -> dict[str, tuple[float, float]]:
        """Learning rate and loss weights: factors around the run's own. A weight of 0 stays."""
        keys = ["training.learning_rate", "training.loss.energy", "training.loss.huber_delta"]
        keys += ["training.loss.stress"] if self.has_stress else []
        ranges = {}
        for key in keys:
            own = float(_get(self.config, key))
            if self._free(key) and own > 0:
                ranges[key] = (0.3 * own, min(0.5, 3.0 * own))
        return ranges


# -- one trial ------------------------------------------------------------------------------------


def try_out(
    bench: Bench,
    settings: Mapping[str, Any],
    fraction: float,
    limit_ms: float | None,
    checkpoint: Path,
    on_validation: Callable[[dict[str, float], int], None] = lambda row, updates: None,
) -> dict[str, Any]:
    """A row of ``tune.json``, its number aside.

    Its ``status`` is ``complete``; ``too slow``, found before training and so not trained; or
    ``failed``, and ``why`` says how.
    """
    began = time.monotonic()
    student = bench.student(settings)
    row: dict[str, Any] = {
        "status": "complete",
        "settings": dict(settings),
        "forces_fidelity": None,
        "forces_mae_meV_per_A": None,
        "energy_mae_meV_per_atom": None,
        "ms_per_step": bench.ms_per_step(student, trained=False),
        "n_parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    if limit_ms is not None and row["ms_per_step"] > limit_ms:
        row["status"] = "too slow"
    else:
        try:
            row |= _trained(bench, student, settings, fraction, checkpoint, on_validation)
        except (TrainingError, StudentError) as error:
            row |= {"status": "failed", "why": error.problem}
    row["us_per_atom"] = bench.us_per_atom(row["ms_per_step"])
    row["within_limit"] = limit_ms is None or row["ms_per_step"] <= limit_ms
    row["seconds"] = round(time.monotonic() - began, 3)
    return row


def _trained(
    bench: Bench,
    student: Student,
    settings: Mapping[str, Any],
    fraction: float,
    checkpoint: Path,
    on_validation: Callable[[dict[str, float], int], None],
) -> dict[str, float]:
    config = with_settings(bench.config, settings)
    _, rows = train_student(
        bench.training,
        bench.validation,
        replace(config, training=shortened(config.training, fraction)),
        student=student,
        checkpoint=checkpoint,
        on_validation=on_validation,
    )
    best = min(rows, key=lambda row: row["validation_forces_mae_meV_per_A"])
    if not all(math.isfinite(value) for value in best.values()):
        raise TrainingError("the validation error is not finite")
    return {
        "forces_fidelity": best["validation_forces_fidelity"],
        "forces_mae_meV_per_A": best["validation_forces_mae_meV_per_A"],
        "energy_mae_meV_per_atom": best["validation_energy_mae_meV_per_atom"],
        "ms_per_step": bench.ms_per_step(student, trained=True),
    }


def shortened(training: TrainingSettings, fraction: float) -> TrainingSettings:
    """The same with ``fraction`` of the updates or epochs, of which nothing is kept."""
    training = replace(training, keep_best=0)
    if training.epochs is not None:
        return replace(training, epochs=max(1, round(fraction * training.epochs)))
    updates = max(min(_LEAST_UPDATES, training.updates), round(fraction * training.updates))
    return replace(training, updates=updates)
