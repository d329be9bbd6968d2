"""The turns of a distillation: labels, a student, its checks, and what to do next, on disk.

A turn is a folder ``turns/NN`` with ``turn.json`` (what was done, found and decided), its student
and the frames that judged it. The first turn trains in the run's own folder. A finished turn is
read, not repeated; one that was interrupted is replayed, its labels being looked up.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import Dataset, Frames, Split
from mlff_distiller.durable import EventLog, read_json, replacing, write_json
from mlff_distiller.errors import DatasetError, TeacherError
from mlff_distiller.students import Student, load_student
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.validation.accuracy import Compared, student_errors
from mlff_distiller.validation.validate import Examined
from mlff_distiller.validation.verdict import Finding, judge
from mlff_distiller.workflows.assess import Assessment, assess
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.goal import (
    Decision,
    Goal,
    Step,
    Turn,
    of_plain,
    to_plain,
)
from mlff_distiller.workflows.harvest import label_harvest, waiting
from mlff_distiller.workflows.labels import label_more, label_stage
from mlff_distiller.workflows.next_step import after_harvest, decide
from mlff_distiller.workflows.plan import disagreement
from mlff_distiller.workflows.seeds import read_structures, save_structures
from mlff_distiller.workflows.train import OnProgress, split_labels, train_stage

_MOST_FIT = 100
"""Training frames, evenly spaced, that tell how well the student fits."""
_ASKED_TWICE = 8


@dataclass(eq=False)
class Turns:
    """All turns of the run in ``out``, those that it has found there first."""

    out: Path
    seeds: Sequence[Atoms]
    teacher: TeacherCalculator
    config: Config
    log: EventLog
    on_progress: OnProgress
    history: list[tuple[Turn, Decision]] = field(default_factory=list)
    assessments: dict[int, Assessment] = field(default_factory=dict)
    """Assessments of the turns that this process has made."""
    speeds: dict[str, Examined] = field(default_factory=dict)

    def __post_init__(self) -> None:
        while (path := self.folder(len(self.history)) / "turn.json").exists():
            try:
                turn, decision = of_plain(read_json(path))
            except (KeyError, TypeError, ValueError) as error:
                raise DatasetError(
                    f"{path} is damaged",
                    found=f"{type(error).__name__}: {error}",
                    remedy="remove its folder and those after it: these turns are then repeated",
                ) from error
            self.history.append(
                (dataclasses.replace(turn, failed=self._failed(turn.checks)), decision)
            )

    def _failed(self, checks: Mapping[str, float | None]) -> dict[str, float | None]:
        """Those that fail by the limits of now, which may have changed since."""
        limits = self.config.evaluation.limits.by_check()
        verdict = judge({name: Finding(value) for name, value in checks.items()}, limits)
        return {own["name"]: own["value"] for own in verdict["checks"] if not own["passed"]}

    @property
    def done(self) -> list[Turn]:
        return [turn for turn, _ in self.history]

    @property
    def decided(self) -> Decision | None:
        """What to do next; None before the first turn."""
        return self.history[-1][1] if self.history else None

    @property
    def goal(self) -> Goal:
        fidelity = self.config.evaluation.limits.forces_fidelity
        temperatures = self.config.sampling.temperature_K
        return Goal(1.0 - fidelity, self.config.goal, self.config.ladder, temperatures)

    @property
    def best(self) -> Turn:
        """The approved one, or the nearest; of the students asked for, if one has had a turn."""
        wanted = [turn for turn in self.done if turn.step.student in self.config.ladder]
        return min(wanted or self.done, key=lambda turn: turn.badness)

    @property
    def _n_harvests(self) -> int:
        """Those that turns have learned from."""
        return sum(turn.step.kind == "harvest" for turn in self.done)

    def folder(self, number: int) -> Path:
        return self.out / "turns" / f"{number:02d}"

    def decide_again(self) -> None:
        """Where the run had ended, with the settings of now: a budget may have grown.

        Also where a harvest waits, unless the next turn has begun.
        """
        if self.decided is None:
            return
        begun = self.folder(len(self.done)).exists()
        if self.decided.step is None or (waiting(self.out, self._n_harvests) and not begun):
            self._decide()

    def make_next(self) -> None:
        """Make the turn that was decided on, and decide what follows it."""
        number = len(self.done)
        step = self._first() if self.decided is None else self.decided.step
        if step is None:
            raise ValueError("the run has ended")
        began = time.monotonic()
        labels, label_seconds = self._label(step, number)
        config = self._config(step, number)
        split = split_labels(labels, config)
        home = self._home(number)
        home.mkdir(parents=True, exist_ok=True)
        log = EventLog(home / "log.jsonl")
        kelvin = config.sampling.temperature_K
        student = train_stage(
            home, labels, split, config, log, self.on_progress, temperature_K=kelvin
        )
        done = self._assess(labels, split, student, step, number)
        rows = log.rows("train")
        if config.training.epochs and rows:
            step = dataclasses.replace(step, updates=int(rows[-1]["updates"]))
        n_before = self.done[-1].n_labels if self.done else 0
        own = done.own
        checks = {one["name"]: one["value"] for one in done.report["verdict"]["checks"]}
        turn = Turn(
            number,
            step,
            len(labels),
            fit_error=_fit_error(student, labels, split),
            test_error=_error(done.report["accuracy"]["test"]),
            own_error=_error(done.report["accuracy"]["student_md"]),
            own_uncertainty=_uncertainty(own),
            failed=self._failed(checks),
            checks=checks,
            temperature_K=tuple(self.config.sampling.temperature_K),
            label_seconds=max(label_seconds, _teacher_seconds(labels, n_before)),
            n_new_labels=len(labels) - n_before,
            train_seconds=float(rows[-1]["seconds"]) if rows else 0.0,
            seconds=time.monotonic() - began,
            fell_eV_per_atom=energy_fallen(labels, own),
            **self._doubts(own),
        )
        folder = self.folder(number)
        if home != folder:
            copy_folder(home / "student", folder / "student")
        save_structures(folder / "own_frames.traj", own.frames if own is not None else [])
        self.assessments[number] = done
        self.history.append((turn, Decision(None, "")))
        self._decide()

    def assessment(self, turn: Turn) -> Assessment:
        """What was found of a turn's student; examined again if another process found it."""
        if turn.number not in self.assessments:
            labels = Dataset(self.out / "dataset")
            split = split_labels(labels, self._config(turn.step, turn.number))
            student = load_student(self.folder(turn.number) / "student")
            done = self._assess(labels, split, student, turn.step, turn.number)
            self.assessments[turn.number] = done
        return self.assessments[turn.number]

    def rows(self, turn: Turn) -> list[dict[str, Any]]:
        """The course of a turn's training."""
        return EventLog(self._home(turn.number) / "log.jsonl").rows("train")

    def _first(self) -> Step:
        config = self.config
        labels = min(config.labels, config.goal.max_labels)
        return Step("first", config.ladder[0], labels, config.training.updates, "the first turn")

    def _home(self, number: int) -> Path:
        """Where a turn trains."""
        return self.folder(number) if number else self.out

    def _config(self, step: Step, number: int) -> Config:
        training = self.config.training
        if number:
            training = dataclasses.replace(training, updates=step.updates, epochs=None)
        return dataclasses.replace(
            self.config, student=step.student, labels=step.labels, training=training
        )

    def _label(self, step: Step, number: int) -> tuple[Dataset, float]:
        """All labels, with those that ``step`` asks for, and how long these took."""
        began = time.monotonic()
        if not self.done:
            config = self._config(step, number)
            labels = label_stage(
                self.out, self.seeds, self.teacher, config, self.log, self.on_progress
            )
        else:
            last = self.done[-1]
            if step.kind == "harvest":
                label_harvest(self.out, self._n_harvests, self.teacher, self.on_progress)
            elif step.labels > last.n_labels:
                label_more(
                    self.out,
                    self.seeds,
                    read_structures(self.folder(last.number) / "own_frames.traj"),
                    self.folder(last.number) / "student",
                    min(1.0, last.error),
                    number,
                    step.labels - last.n_labels,
                    self.teacher,
                    self.config,
                    self.on_progress,
                )
            labels = Dataset(self.out / "dataset")
        return labels, time.monotonic() - began

    def _assess(
        self, labels: Dataset, split: Split, student: Student, step: Step, number: int
    ) -> Assessment:
        known = {"speed": self.speeds[step.student]} if step.student in self.speeds else {}
        done = assess(
            self.out,
            self.seeds,
            labels,
            split,
            student,
            self.teacher,
            self._config(step, number),
            self.on_progress,
            seed=self.config.seed + 1009 * number,  # frames that judged one turn train the next
            **known,
        )
        self.speeds[step.student] = done.speed
        return done

    def _doubts(self, own: Compared | None) -> dict[str, float | None]:
        """How far the teacher disagrees with itself, where the student's dynamics goes."""
        if own is None or not len(own.frames):
            return {}
        places = np.unique(np.linspace(0, len(own.frames) - 1, _ASKED_TWICE).astype(int))
        frames = [own.frames[k] for k in places.tolist()]
        try:
            noise, spread = disagreement(self.teacher, frames, self.config.seed)
        except TeacherError:
            return {}
        return {"teacher_noise": noise, "committee_spread": spread}

    def _decide(self) -> None:
        """After the last turn, which is on disk with what follows it."""
        turn, decision = self.done[-1], decide(self.done, self.goal)
        harvest = waiting(self.out, self._n_harvests)
        if harvest:
            decision = after_harvest(turn, len(harvest))
        self.history[-1] = (turn, decision)
        write_json(self.folder(turn.number) / "turn.json", to_plain(turn, decision))


def _error(errors: dict[str, Any]) -> float | None:
    fidelity = errors["forces_fidelity"]
    return None if fidelity is None else 1.0 - fidelity


def _teacher_seconds(labels: Dataset, first: int) -> float:
    """What the teacher took for labels from ``first`` on, also those that are looked up."""
    return sum(float(labels.provenance(k).get("seconds", 0.0)) for k in range(first, len(labels)))


def _fit_error(student: Student, labels: Dataset, split: Split) -> float | None:
    places = np.unique(np.linspace(0, len(split.train) - 1, _MOST_FIT).round().astype(int))
    return _error(student_errors(student, Frames(labels, split.train[places])))


def _uncertainty(own: Compared | None) -> float:
    """Standard error of the relative force error over frames, which count as independent."""
    if own is None or len(own.frames) < 2:
        return 0.0
    apart, size = [], []
    for theirs, mine in zip(own.theirs.forces, own.mine.forces, strict=True):
        apart.append(np.abs(mine - theirs).sum())
        size.append(np.abs(theirs).sum())
    error = np.array(apart) - np.sum(apart) / np.sum(size) * np.array(size)
    return float(error.std(ddof=1) * np.sqrt(len(apart)) / np.sum(size))


def energy_fallen(labels: Dataset, own: Compared | None) -> float | None:
    """How far the teacher's energy on frames of ``own`` is below the seeds' (eV/atom), on average.

    Of several seeds of a formula, the lowest counts.
    """
    if own is None:
        return None
    began = [k for k, origin in enumerate(labels.provenances()) if origin.get("source") == "seed"]
    known: dict[str, float] = {}
    for record in labels.records(began):
        formula = record.atoms.get_chemical_formula()
        energy = float(record.labels["energy"]) / len(record.atoms)
        known[formula] = min(energy, known.get(formula, np.inf))
    falls = [
        known[formula] - energy / len(frame)
        for frame, energy in zip(own.frames, own.theirs.energy, strict=True)
        if (formula := frame.get_chemical_formula()) in known
    ]
    return float(np.mean(falls)) if falls else None


def copy_folder(source: Path, target: Path) -> None:
    """Durably make ``target`` a copy of ``source``."""
    with replacing(target) as temporary:
        shutil.copytree(source, temporary)
