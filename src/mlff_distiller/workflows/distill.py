"""The whole line: structures -> labels -> student -> evaluation -> report, resumable.

Each stage reads files and writes one artefact durably. Running the same command again replays
what is there, which costs next to nothing, and continues where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mlff_distiller.batch import check_structure
from mlff_distiller.dataset import Dataset, Frames, structure_hash
from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.durable import EventLog, claimed, read_json, write_json, write_text
from mlff_distiller.errors import ConfigError, StructureError
from mlff_distiller.labeling import (
    Labeler,
    check_labels,
    open_labels,
    read_frames,
)
from mlff_distiller.reports.card import model_card
from mlff_distiller.reports.distillation import write_report
from mlff_distiller.sampling import approach, grow, scan, walk, walkers
from mlff_distiller.sampling.active import Round, learn_actively
from mlff_distiller.structure import bare, enlarge, warn_of_what_labels_lack
from mlff_distiller.students import load_student, read_config, save_student
from mlff_distiller.teachers import TeacherCalculator
from mlff_distiller.validation.certificate import write_certificate
from mlff_distiller.workflows.assess import Assessment, assess, save_structures, some_of
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.folder import files_of_run, fix_inputs, is_begun
from mlff_distiller.workflows.plan import lower_budget
from mlff_distiller.workflows.train import (
    OnProgress,
    fidelity_to,
    split_labels,
    train_stage,
    train_student,
)


def distill(
    structures: Sequence[str | Path | Atoms],
    teacher: str,
    out: str | Path,
    config: Config | None = None,
    *,
    teacher_python: str | None = None,
    allow_download: bool = False,
    teacher_timeout_s: float | None = None,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """Distil ``teacher`` on ``structures`` into ``out``; returns the content of report.json.

    Continues an interrupted run in the same folder; refuses one begun with other inputs.

    Parameters
    ----------
    structures
        Files that ASE reads (every frame in them), or ``Atoms``.
    teacher
        A registered name, ``FAMILY:PATH`` or ``ase:package.module:factory``.
    teacher_timeout_s
        See `TeacherCalculator`.

    Raises
    ------
    ConfigError
        ``out`` holds a run with other settings, structures or teacher; the difference is shown.
    """
    config = config or Config()
    out = Path(out)
    seeds = read_seeds(structures)
    source = TeacherCalculator(
        teacher,
        device=config.device,
        python=teacher_python,
        allow_download=allow_download,
        timeout_s=teacher_timeout_s,
    )
    with claimed(out), source:
        inputs = {"teacher": teacher, "structures": [structure_hash(atoms) for atoms in seeds]}
        if not is_begun(out):  # what cannot start binds no folder
            _start(source, on_progress)
        fix_inputs(out, config, inputs)
        finished = _finished(out, on_progress)
        if finished:
            on_progress("report", 1, 1, "finished earlier; nothing to do")
            return finished
        _start(source, on_progress)
        log = EventLog(out / "log.jsonl")
        smallest = config.sampling.min_atoms
        seeds = [enlarge(atoms, smallest) if atoms.pbc.any() else atoms for atoms in seeds]
        labels = label_stage(out, seeds, source, config, log, on_progress)
        split = split_labels(labels, config)
        student = train_stage(out, labels, split, config, log, on_progress)
        done = assess(out, seeds, labels, split, student, source, config, on_progress)
        _write(out, done, some_of(seeds), log)
        log.write("report", status=done.report["verdict"]["status"])
        on_progress("report", 1, 1, done.report["verdict"]["status"])
        return done.report


def _start(source: TeacherCalculator, on_progress: OnProgress) -> None:
    if source.pid is None:
        on_progress("teacher", 0, 1, f"starting {source.name}")
        on_progress("teacher", 1, 1, source.identity.name)


def _finished(out: Path, on_progress: OnProgress) -> dict[str, Any]:
    """What a run that is done reported; empty where the report is yet to be made, or made anew."""
    check = {"name": "", "passed": True, "value": None, "limit": None}
    form = {"verdict": {"status": "", "checks": [check]}}
    try:
        report = read_json(out / "report.json", form)
    except ConfigError as damage:
        on_progress("report", 0, 1, f"{damage.problem}; it is made anew")
        return {}
    return report if (out / "report.html").exists() else {}


def _write(out: Path, done: Assessment, structures: Sequence[Atoms], log: EventLog) -> None:
    """The card, the page, the certificate, and last report.json: with it the run has finished."""
    card = model_card(done.report, read_config(out / "student"))
    write_text(out / "student" / "README.md", card)
    evidence = dataclasses.replace(
        done.evidence, learning=log.rows("train"), rounds=log.rows("round")
    )
    write_report(out / "report.html", done.report, evidence)
    save_structures(out / "structures.traj", structures)
    write_json(out / "series.json", done.series)
    write_certificate(out / "certificate.json", done.certificate, files_of_run(out))
    write_json(out / "report.json", done.report)


def read_seeds(sources: Sequence[str | Path | Atoms]) -> list[Atoms]:
    """Every frame of every source, checked; exact repeats are dropped."""
    frames: dict[str, Atoms] = {}
    for source in sources:
        found = [source] if isinstance(source, Atoms) else read_frames(source)
        for index, atoms in enumerate(found):
            check_structure(atoms, f"structure {index} of {source}")
            kept = bare(atoms)
            frames.setdefault(structure_hash(kept), kept)
        warn_of_what_labels_lack(found, source)
    if not frames:
        raise StructureError("no structures were given", expected="at least one")
    return list(frames.values())


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
    temperatures = config.sampling.temperature_K
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
