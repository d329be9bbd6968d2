"""How a run gets its labels: the first turn's from trees and dynamics, later ones where it errs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms

from mlff_distiller.dataset import Dataset, Frames
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.durable import EventLog
from mlff_distiller.labeling import Labeler, check_labels, open_labels
from mlff_distiller.sampling import approach, explore, grow, scan, walk, walkers
from mlff_distiller.sampling.active import LOWEST_ERROR, Round, learn_actively
from mlff_distiller.students import load_student, read_config, save_student
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.validation.kinds import kind_of
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.plan import lower_budget
from mlff_distiller.workflows.train import OnProgress, fidelity_to, split_labels, train_student

_HOTTER = 1.15
"""Times the temperatures asked for, in turn with these: where a long run will come one day."""
_OWN_BRANCH = 300_000
"""Group of the frames that judged an earlier turn's student, plus the number of the turn."""


def label_stage(
    out: Path,
    seeds: Sequence[Atoms],
    teacher: TeacherCalculator,
    config: Config,
    log: EventLog,
    on_progress: OnProgress,
) -> Dataset:
    """Label ``config.labels`` structures in ``out/dataset``.

    First the trees, with scans of the cell if asked for, and pairs pushed together; then the
    teacher's own dynamics, if it has a share; then the student's, in rounds of active learning.
    """
    temperatures, config = config.sampling.temperature_K, _for_these(config, seeds)
    with open_labels(out / "dataset", teacher.identity) as writer:
        label = Labeler(writer, teacher)

        def counting(start: int) -> Callable[[int], None]:
            return lambda n: on_progress("label", start + n, config.labels, label.news)

        frames, origins = scan(seeds, config.scan)
        n_close = round(config.approach.share * config.labels)
        close, theirs = approach(seeds, n_close, config.approach, config.seed)
        frames, origins = frames + close, origins + theirs
        n_student = round(config.active.share * config.labels)
        n_dynamics = round(config.dynamics.share * config.labels)
        n_trees = max(len(seeds), config.labels - n_student - n_dynamics - len(frames))
        n = grow(seeds, label, n_trees, config.sampling, config.seed, counting(0))
        for start in range(0, len(frames), 16):
            label(frames[start : start + 16], origins[start : start + 16])
            counting(n)(min(len(frames), start + 16))
        n += len(frames)
        if n_dynamics:
            group = walkers(seeds, temperatures, config.dynamics)
            known = labelled_walks(out / "dataset")
            walk(
                group, teacher, label, n_dynamics, config.dynamics, config.seed, known, counting(n)
            )
            n += n_dynamics
        if n_student:
            rounds = learn_actively(
                out / "rounds",
                seeds,
                label,
                lambda number, folder, previous: _fit_round(
                    out, number, folder, previous, config, on_progress
                ),
                n_student,
                temperatures,
                config.active,
                config.dynamics,
                config.seed,
                lambda done, news: on_progress("label", n + done, config.labels, news),
            )
            _log_rounds(log, rounds)
    labels = Dataset(out / "dataset")
    if not log.rows("label_checks"):
        log.write("label_checks", findings=[f"{f.check}: {f}" for f in check_labels(labels)])
    return labels


def label_more(
    out: Path,
    seeds: Sequence[Atoms],
    own_frames: Sequence[Atoms],
    student: Path,
    error: float,
    turn: int,
    n_labels: int,
    teacher: TeacherCalculator,
    config: Config,
    on_progress: OnProgress,
) -> None:
    """Label ``n_labels`` more structures where the last student's dynamics goes.

    ``own_frames``, which judged that student, come first; then its walkers begin at the seeds, at
    the temperatures asked for and a little above. ``error`` is its relative force error, by which
    a walker's is measured.
    """
    temperatures, config = config.sampling.temperature_K, _for_these(config, seeds)
    hotter = [kelvin * factor for kelvin in temperatures for factor in (1.0, _HOTTER)]
    group = walkers(seeds, hotter, config.dynamics, max(config.active.walkers, len(hotter)))
    for walker in group:
        walker.reach_fs = 0.5 * config.dynamics.longest_fs
    with open_labels(out / "dataset", teacher.identity) as writer:
        label = Labeler(writer, teacher)
        first = list(own_frames)[: n_labels // 2]
        origins = [
            {"source": "student_md", "seed": 0, "branch": _OWN_BRANCH + turn, "frame": k}
            for k in range(len(first))
        ]
        if first:
            label(first, origins)
        explore(
            group,
            StudentCalculator(student, device=config.device),
            label,
            n_labels - len(first),
            config.dynamics,
            config.active.window * max(LOWEST_ERROR, error),
            config.seed + 7919 * turn,
            {"turn": turn},
            lambda n: on_progress("label", len(first) + n, n_labels, label.news),
            seeds,
        )


def _for_these(config: Config, seeds: Sequence[Atoms]) -> Config:
    """``config`` with the ensemble that suits all of ``seeds``."""
    if config.dynamics.ensemble != "auto":
        return config
    dense = all(kind_of(atoms) in ("crystal", "liquid") for atoms in seeds)
    dynamics = replace(config.dynamics, ensemble="npt" if dense else "nvt")
    return replace(config, dynamics=dynamics)


def labelled_walks(folder: Path) -> dict[tuple[int, int], Atoms]:
    """Structures that the teacher's dynamics has labelled already, by walker and segment."""
    found: dict[tuple[int, int], Atoms] = {}
    dataset = Dataset(folder)
    for start in range(0, len(dataset), 512):
        for record in dataset.records(np.arange(start, min(start + 512, len(dataset)))):
            origin = record.provenance
            if origin.get("source") == "dynamics":
                found[origin["walker"], origin["segment"]] = record.atoms
    return found


def _fit_round(
    out: Path,
    number: int,
    folder: Path,
    previous: Path | None,
    config: Config,
    on_progress: OnProgress,
) -> tuple[StudentCalculator, float]:
    """Train a round's student on all labels so far, or load it; see `learn_actively`."""
    if not (folder / "config.json").exists():
        labels = Dataset(out / "dataset")
        split = split_labels(labels, config)
        training, validation = Frames(labels, split.train), Frames(labels, split.validation)
        student = config.new_student(training)
        if previous is not None:
            student.load_state_dict(load_student(previous).state_dict())
        updates = config.active.updates * (2 if previous is None else 1)
        student, rows = train_student(
            training,
            validation,
            lower_budget(config, updates),
            student=student,
            seed=config.seed + number,
            on_validation=fidelity_to(on_progress, f"round {number + 1}"),
        )
        error = min(1.0 - row["validation_forces_fidelity"] for row in rows)
        save_student(
            student,
            folder,
            about={"round": number, "n_labels": len(labels), "forces_error": error},
            card="# A student of a round of active learning\n\nNot for use.\n",
            frames=training,
        )
    error = float(read_config(folder)["about"]["forces_error"])
    return StudentCalculator(folder, device=config.device), error


def _log_rounds(log: EventLog, rounds: Sequence[Round]) -> None:
    shown = {row["round"] for row in log.rows("round", "round")}
    for done in rounds:
        if done.number not in shown:
            log.write(
                "round",
                round=done.number,
                n_labels=len(done.errors),
                reach_fs=done.reach_fs,
                **done.quartiles(),
            )
