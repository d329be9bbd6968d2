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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from ase import Atoms
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.batch import Batch
from mlff_distiller.dataset import Dataset, Frames
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.loading import resolve_device
from mlff_distiller.errors import StudentError, TrainingError
from mlff_distiller.md.record import ForceField, ms_per_step
from mlff_distiller.structure import bare, enlarge
from mlff_distiller.students import Student
from mlff_distiller.students.architecture import Counts
from mlff_distiller.students.registry import architecture_names, architecture_of, architectures
from mlff_distiller.training import TrainingSettings
from mlff_distiller.workflows.config import Config, to_plain, with_settings
from mlff_distiller.workflows.train import split_labels, train_student

_LEAST_UPDATES = 100
_STILL_FS = 0.01
"""Time step (fs) at which an untrained student, whose forces mean nothing, breaks nothing."""


def _known(name: str) -> str:
    if name not in architecture_names():
        raise ValueError(f"expected one of {', '.join(architecture_names())}")
    return name


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
    architectures: Annotated[
        tuple[Annotated[str, AfterValidator(_known)], ...], Field(min_length=1)
    ] = field(default_factory=lambda: tuple(architectures()))


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

        Atoms hardly move under an untrained student, so neighbours are searched only once: the
        time is, if anything, too short.
        """
        calculator = StudentCalculator(copy.deepcopy(student), device=str(self.device))
        return ms_per_step(
            ForceField(student.architecture, calculator),
            self.system,
            time_step_fs=0.5 if trained else _STILL_FS,
            seconds=0.1,
            samples=9,
            in_ase=True,
        )

    def us_per_atom(self, ms: float) -> float:
        return 1e3 * ms / len(self.system)


def _typical(frames: Sequence[Batch]) -> Atoms:
    """The frame with the least force among those of the median size."""
    size = statistics.median_low(Frames.of(frames).n_atoms.tolist())
    alike = (frame for frame in frames if frame.n_atoms == size)
    calm = min(alike, key=lambda frame: float(frame.labels["forces"].abs().max()))
    atoms = calm.to_atoms()[0]
    return bare(atoms)


# -- settings -------------------------------------------------------------------------------------


def _get(content: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        content = content[name]
    return content


@dataclass(frozen=True)
class Space:
    """The ranges for a data set. A setting that the user changes from its default stays."""

    settings: Mapping[str, Any]
    """The run's configuration, in the layout of files."""
    default: Mapping[str, Any]
    """The same where no user has said anything."""
    first: Mapping[str, tuple[Mapping[str, Any], ...]]
    """Settings of the students that each architecture's search begins with, sizes and all."""
    has_stress: bool

    @classmethod
    def of(cls, bench: Bench, names: Sequence[str]) -> Space:
        first = {}
        for name in names:
            begin = architectures()[name].first or (name,)
            first[name] = tuple(_settings(bench, student) for student in begin)
        has_stress = any(not bool(f.labels["stress"].isnan().all()) for f in bench.training)
        return cls(to_plain(bench.config), to_plain(Config()), first, has_stress)

    def defaults(self) -> list[dict[str, Any]]:
        """The first students, as values of ``suggest``: what any search should begin with."""
        learning = {key: _get(self.settings, key) for key in self._learning()}
        found: list[dict[str, Any]] = []
        for name, students in self.first.items():
            for usual in students:
                own: dict[str, Any] = {"architecture": name}
                for each in architectures()[name].ranges:
                    value = usual[each.setting]
                    if isinstance(each, Counts):
                        own[f"{name}.{each.setting}"] = value
                    else:
                        own[f"{name}.{each.setting}/{each.of}"] = value / usual[each.of]
                found.append(own | learning)
        return found

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Settings of a trial: dotted keys of the configuration, values to train with."""
        name = next(iter(self.first))
        if len(self.first) > 1:
            name = trial.suggest_categorical("architecture", tuple(self.first))
        architecture, usual = architectures()[name], self.first[name][0]
        own: dict[str, Any] = {}
        for each in architecture.ranges:
            key = f"{name}.{each.setting}"
            if not self._free(key):
                continue
            if isinstance(each, Counts):
                value: float = trial.suggest_int(key, each.low, each.high, step=each.step)
            else:
                of = own.get(each.of, usual[each.of])
                factor = trial.suggest_float(f"{key}/{each.of}", each.low, each.high)
                value = round(of * factor, 2)
            own[each.setting] = value
        chosen: dict[str, Any] = {"student": architecture.name_of({**usual, **own})}
        chosen |= {f"{name}.{k}": v for k, v in own.items() if k not in architecture.sizes}
        for key, (low, high) in self._learning().items():
            chosen[key] = float(f"{trial.suggest_float(key, low, high, log=True):.4g}")
        return chosen

    def _free(self, key: str) -> bool:
        return bool(_get(self.settings, key) == _get(self.default, key))

    def _learning(self) -> dict[str, tuple[float, float]]:
        """Learning rate and loss weights: factors around the run's own. A weight of 0 stays."""
        keys = ["training.learning_rate", "training.loss.energy", "training.loss.huber_delta"]
        keys += ["training.loss.stress"] if self.has_stress else []
        ranges = {}
        for key in keys:
            own = float(_get(self.settings, key))
            if self._free(key) and own > 0:
                ranges[key] = (0.3 * own, min(0.5, 3.0 * own))
        return ranges


def _settings(bench: Bench, name: str) -> dict[str, Any]:
    """Settings of the student ``name``, what the data decide included."""
    own = architecture_of(name)
    given = asdict(own.named(bench.config.architectures[own.name], name))
    return given | dict(own.decided(bench.student({"student": name})))


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
