"""The whole line: structures -> labels -> student -> evaluation -> report, until the goal is met.

Each stage reads files and writes one artefact durably. Running the same command again replays
what is there, which costs next to nothing, and continues where it stopped; with a larger budget,
a higher goal or more temperatures it goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ase.calculators.calculator import BaseCalculator

from mlff_distiller.dataset import input_hash
from mlff_distiller.durable import EventLog, claimed, read_json, write_json, write_text
from mlff_distiller.errors import ConfigError
from mlff_distiller.export.table import checks_of, keep_checks
from mlff_distiller.labeling import FilesOrAtoms
from mlff_distiller.reports.card import model_card
from mlff_distiller.reports.distillation import write_report
from mlff_distiller.students import read_config
from mlff_distiller.teachers import TeacherCalculator, load_teacher
from mlff_distiller.validation.certificate import write_certificate
from mlff_distiller.workflows.advice import advice
from mlff_distiller.workflows.assess import some_of
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.folder import as_begun, files_of_run, fix_inputs, is_begun
from mlff_distiller.workflows.goal import to_plain as plain_turn
from mlff_distiller.workflows.harvest import bring
from mlff_distiller.workflows.seeds import read_seeds, ready_seeds, save_structures
from mlff_distiller.workflows.train import OnProgress
from mlff_distiller.workflows.turns import Turns, copy_folder

__all__ = ["distill", "read_seeds"]

_MAY_GROW = ("student", "goal.", "evaluation.limits.", "sampling.temperature_K")
"""Settings that a run which has finished a turn may be continued with other values of."""


def distill(
    structures: FilesOrAtoms,
    teacher: str | BaseCalculator,
    out: str | Path,
    config: Config | None = None,
    *,
    teacher_python: str | None = None,
    allow_download: bool = False,
    teacher_timeout_s: float | None = None,
    harvest: Sequence[str | Path] = (),
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """Distil ``teacher`` on ``structures`` into ``out``; returns the content of report.json.

    Turn follows turn until every check passes, a budget of ``config.goal`` ends, or more would not
    help; see `workflows.next_step`. Continues an interrupted run in the same folder, and a finished
    one whose budget, goal, students or temperatures have grown; refuses one begun with other
    inputs.

    Parameters
    ----------
    structures
        Files that ASE reads (every frame in them), or ``Atoms``; or one of either.
    teacher
        A registered name, ``FAMILY:PATH``, ``ase:package.module:factory``, or an ASE calculator,
        see `TeacherCalculator`.
    teacher_timeout_s
        See `TeacherCalculator`.
    harvest
        What production runs met and the student did not know (``run_md(guard="harvest")``): files,
        folders of files, or datasets, of which the structures count. What is new there is labelled
        and trained on in a turn of its own, also where the run had ended.

    Raises
    ------
    ConfigError
        ``out`` holds a run with other settings, structures or teacher; the difference is shown.
    """
    config = config or Config()
    out = Path(out)
    seeds = read_seeds(structures)
    source = load_teacher(
        teacher,
        device=config.device,
        python=teacher_python,
        allow_download=allow_download,
        timeout_s=teacher_timeout_s,
    )
    with claimed(out), source:
        inputs = {"teacher": source.spec, "structures": [input_hash(atoms) for atoms in seeds]}
        if not is_begun(out):  # what cannot start binds no folder
            _start(source, on_progress)
        has_turn = (out / "turns" / "00" / "turn.json").exists() or (out / "report.json").exists()
        config = as_begun(out, config)
        fix_inputs(out, config, inputs, _MAY_GROW if has_turn else ())
        if harvest:
            bring(out, harvest, on_progress)
        finished = _finished(out, on_progress)
        if finished:
            on_progress("report", 1, 1, "finished earlier; nothing to do")
            return finished
        _start(source, on_progress)
        log = EventLog(out / "log.jsonl")
        seeds, relaxed = ready_seeds(out, seeds, source, config.sampling, log, on_progress)
        for words in relaxed:
            on_progress("structures", 0, 0, words)
        turns = Turns(out, seeds, source, config, log, on_progress)
        turns.decide_again()
        report: dict[str, Any] = {}
        while turns.decided is None or turns.decided.step is not None:
            turns.make_next()
            on_progress("turn", 0, 0, turn_in_words(turns))
            report = _publish(turns)
        report = report or _publish(turns)
        log.write("report", status=report["verdict"]["status"])
        on_progress("report", 1, 1, report["verdict"]["status"])
        return report


def _start(source: TeacherCalculator, on_progress: OnProgress) -> None:
    if source.pid is None:
        on_progress("teacher", 0, 1, f"starting {source.name}")
        on_progress("teacher", 1, 1, source.identity.name)


def _finished(out: Path, on_progress: OnProgress) -> dict[str, Any]:
    """What a run that has ended reported; empty where it goes on, or has to report again."""
    check = {"name": "", "passed": True, "value": None, "limit": None}
    form = {"verdict": {"status": "", "checks": [check]}}
    try:
        report = read_json(out / "report.json", form)
    except ConfigError as damage:
        on_progress("report", 0, 1, f"{damage.problem}; it is made again")
        return {}
    # Earlier versions had one turn, and no goal to tell of.
    ended = "goal" not in report or report["goal"]["ended"]
    return report if ended and (out / "report.html").exists() else {}


def _publish(turns: Turns) -> dict[str, Any]:
    """The best student so far, its card, page and certificate, and last report.json.

    Where that says how the run ended, it has finished.
    """
    out, best = turns.out, turns.best
    done = turns.assessment(best)
    ended = None if turns.decided is None or turns.decided.step else turns.decided.diagnosis
    report = {
        **done.report,
        "goal": {
            "forces_fidelity": turns.config.evaluation.limits.forces_fidelity,
            **asdict(turns.config.goal),
            "ended": ended,
            "best": best.number,
            "turns": [plain_turn(turn, decided) for turn, decided in turns.history],
            "relaxed": turns.log.rows("seeds")[-1]["words"] if turns.log.rows("seeds") else [],
            "advice": advice(done.report["verdict"], turns) if ended else [],
        },
    }
    student = out / "student"
    checks = checks_of(student)
    copy_folder(turns.folder(best.number) / "student", student)
    write_text(student / "README.md", model_card(report, read_config(student)))
    keep_checks(student, checks)
    evidence = dataclasses.replace(
        done.evidence, learning=turns.rows(best), rounds=turns.log.rows("round")
    )
    write_report(out / "report.html", report, evidence, done.certificate, done.series.get("movie"))
    save_structures(out / "structures.traj", some_of(turns.seeds))
    write_json(out / "series.json", done.series)
    write_certificate(out / "certificate.json", done.certificate, files_of_run(out))
    write_json(out / "report.json", report)
    return report


def turn_in_words(turns: Turns) -> str:
    """The last turn in a line: what was made, how good it is, what follows and why."""
    turn, decided = turns.history[-1]
    errors = (("fit", turn.fit_error), ("held out", turn.test_error), ("own MD", turn.own_error))
    shown = ", ".join(
        f"{name} {100 * (1 - error):.1f} %" for name, error in errors if error is not None
    )
    step = decided.step
    follows = "" if step is None else f" -> {step.why}"
    if step is not None and step.kind in ("labels", "longer", "harvest"):
        follows += f" ({step.labels} labels, {step.updates:,} updates)"
    return (
        f"turn {turn.number + 1}: {turn.step.student}, {turn.n_labels} labels, "
        f"{turn.step.updates:,} updates, {turn.seconds:.0f} s; fidelity: {shown}; "
        f"{decided.diagnosis}{follows}"
    )
