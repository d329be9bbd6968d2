"""The right student for the speed you need: ``mlff-distiller train --tune``, ``--target-fidelity``.

``tune`` searches sizes, cutoffs and settings of the training for the front of accuracy against
speed; ``fastest`` goes through the presets, the fastest first, until one is accurate enough.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlff_distiller.config import Config
from mlff_distiller.dataset import Dataset
from mlff_distiller.durable import EventLog, replacing, write_json, write_text
from mlff_distiller.errors import ConfigError, TrainingError
from mlff_distiller.evaluate.accuracy import compare
from mlff_distiller.evaluate.front import front_page, front_panel, non_dominated
from mlff_distiller.fit import OnProgress, split_labels, train_and_test, train_stage
from mlff_distiller.run_folder import fix_inputs, only_one
from mlff_distiller.search import (
    Architecture,
    Bench,
    Space,
    TuneSettings,
    try_out,
    with_settings,
)
from mlff_distiller.students import load_student

if TYPE_CHECKING:
    import optuna

__all__ = ["PRESETS", "TuneSettings", "fastest", "tune"]

SCHEMA = 1
PRESETS: dict[str, dict[str, Any]] = {
    "nep-small": {
        "student": "nep",
        "nep.n_max_radial": 4,
        "nep.n_max_angular": 4,
        "nep.neurons": 20,
    },
    "nep": {"student": "nep"},
    "painn-32x2": {"student": "painn-32x2"},
    "painn-64x2": {"student": "painn-64x2"},
    "painn-128x3": {"student": "painn-128x3"},
}
"""What ``fastest`` tries, as changes of the run's settings."""


def _silent(stage: str, done: int, total: int, news: str) -> None: ...


# -- the front ------------------------------------------------------------------------------------


def tune(
    labels: Path,
    out: Path,
    config: Config,
    settings: TuneSettings | None = None,
    *,
    on_progress: OnProgress = _silent,
) -> dict[str, Any]:
    """Search for students of the dataset ``labels``; returns the content of ``out/tune.json``.

    ``out`` gets ``tune.json``, ``front.html``, Optuna's journal ``trials.jsonl``, and, of the most
    accurate trial within the limit, trained in full, what `fit` gives: ``student/``,
    ``errors.json``, ``log.jsonl``. The same call continues an interrupted one; a trial that was
    interrupted is continued, not repeated.

    Raises
    ------
    ConfigError
        Optuna is missing; both limits are given; ``out`` holds a run with other inputs.
    TrainingError
        No trial is within the limit, or the student that was trained in full is not.
    """
    settings = settings or TuneSettings()
    if settings.max_us_per_atom is not None and settings.max_ms_per_step is not None:
        raise ConfigError("two limits of speed", expected="per atom or per step, one of them")
    _import_optuna()
    dataset = Dataset(labels)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        wanted = {**asdict(settings), "architectures": list(settings.architectures)}
        fix_inputs(out, config, {**_inputs(dataset), "tune": wanted})
        before = _read(out / "tune.json")
        if before.get("student") is not None and (out / "student" / "config.json").exists():
            return before
        bench = Bench.of(dataset, config, settings.speed_atoms)
        limit_ms = settings.max_ms_per_step
        if settings.max_us_per_atom is not None:
            limit_ms = settings.max_us_per_atom * len(bench.system) / 1e3
        found: dict[str, Any] = {
            "schema": SCHEMA,
            "system": {
                "formula": bench.system.get_chemical_formula(),
                "n_atoms": len(bench.system),
            },
            "device": str(bench.device),
            "limit_ms_per_step": limit_ms,
            "trial_updates_fraction": settings.trial_fraction,
            "versions": {name: version(name) for name in ("mlff-distiller", "torch", "optuna")},
            "trials": [],
            "best": before.get("best"),
            "student": None,
        }
        _search(out, bench, settings, found, on_progress)
        if found["best"] is None:
            found["best"] = _best(bench, found)
        _write(out, found)
        chosen = next(row for row in found["trials"] if row["number"] == found["best"])
        final = with_settings(config, chosen["settings"])
        errors = train_and_test(out, dataset, final, on_progress)
        student = load_student(out / "student").to(bench.device)
        ms = bench.ms_per_step(student, trained=True)
        if limit_ms is not None and ms > limit_ms:
            raise TrainingError(
                "the student that was trained in full is slower than asked",
                expected=f"at most {limit_ms:.4g} ms per step, as its trial took",
                found=f"{ms:.4g} ms on {len(bench.system)} atoms",
                remedy="repeat the command to measure again on a quieter machine; the student is "
                f"in {out / 'student'}",
            )
        figures = {"ms_per_step": ms, "us_per_atom": bench.us_per_atom(ms)}
        found["student"] = {**figures, "errors": errors}
        _write(out, found)
        return found


def _search(
    out: Path,
    bench: Bench,
    settings: TuneSettings,
    found: dict[str, Any],
    on_progress: OnProgress,
) -> None:
    """Make the trials that are missing; ``found["trials"]`` are all there are."""
    optuna = _import_optuna()
    space = Space.of(bench, settings.architectures)
    presets = space.defaults()
    (out / "trials").mkdir(exist_ok=True)
    with _study(out) as study:
        _collect(study, found)
        while len(found["trials"]) < settings.trials and found["best"] is None:
            number = len(found["trials"])
            spent = sum(row["seconds"] for row in found["trials"])
            if settings.minutes is not None and spent >= 60.0 * settings.minutes:
                break
            trial = _ask(study, number, presets, bench.config.seed, settings.trials)
            chosen = space.suggest(trial)
            name = sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:16]
            checkpoint = out / "trials" / f"{name}.safetensors"

            def on_validation(
                row: dict[str, float], updates: int, number: int = number, chosen: Any = chosen
            ) -> None:
                error = row["validation_forces_mae_meV_per_A"]
                news = f"{chosen['student']}, {row['updates']:.0f}/{updates}: {error:.1f} meV/Å"
                on_progress("tune", number, settings.trials, news)

            on_progress("tune", number, settings.trials, chosen["student"])
            limit = found["limit_ms_per_step"]
            row = try_out(bench, chosen, settings.trial_fraction, limit, checkpoint, on_validation)
            trial.set_user_attr("row", row)
            if limit is not None:
                trial.set_constraint("ms_per_step", row["ms_per_step"] / limit - 1.0)
            if row["status"] == "complete":
                study.tell(trial, [row["forces_mae_meV_per_A"], row["ms_per_step"]])
            else:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            checkpoint.unlink(missing_ok=True)
            _collect(study, found)
            write_json(out / "tune.json", found)
            on_progress("tune", number + 1, settings.trials, _news(row))


def _news(row: Mapping[str, Any]) -> str:
    error = row["forces_mae_meV_per_A"]
    reached = row["status"] if error is None else f"{error:.1f} meV/Å"
    return f"{row['settings']['student']}: {reached}, {row['us_per_atom']:.3g} µs/atom"


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "the search needs Optuna, which cannot be imported",
            found=error,
            remedy="pip install 'mlff-distiller[tune]'",
        ) from error
    return optuna


@contextmanager
def _study(out: Path) -> Iterator[optuna.Study]:
    """The study in ``out``, whose lock the caller holds; trials that were killed are let go."""
    optuna = _import_optuna()
    journal = out / "trials.jsonl"
    # Nobody else is here: what a killed process left, half a line or a lock, is nobody's.
    for left in out.glob(f"{journal.name}.*"):
        left.unlink()
    if journal.exists():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with journal.open("rb+") as stream:
                stream.truncate(whole)
    loudness = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="tune",
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        yield study
    finally:
        optuna.logging.set_verbosity(loudness)


def _ask(
    study: optuna.Study, number: int, presets: Sequence[Mapping[str, Any]], seed: int, trials: int
) -> optuna.Trial:
    """The ``number``-th trial: drawn from (seed, number) and the trials before, killed or not.

    So one that was interrupted comes out the same, and its checkpoint fits.
    """
    optuna = _import_optuna()
    waiting = study.get_trials(states=(optuna.trial.TrialState.WAITING,))
    if number < len(presets) and not waiting:
        study.enqueue_trial(dict(presets[number]))
    study.sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]),
        n_startup_trials=min(10, max(len(presets) + 1, trials // 3)),
    )
    return study.ask()


def _collect(study: optuna.Study, found: dict[str, Any]) -> None:
    """The trials that ended by themselves, in order, into ``found``."""
    optuna = _import_optuna()
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    rows = [trial.user_attrs["row"] for trial in study.get_trials(states=ended)]
    complete = [row for row in rows if row["status"] == "complete"]
    points = np.array([[row["forces_mae_meV_per_A"], row["ms_per_step"]] for row in complete])
    front = iter(non_dominated(points.reshape(-1, 2)).tolist())
    found["trials"] = [
        {"number": k, **row, "on_front": row["status"] == "complete" and next(front)}
        for k, row in enumerate(rows)
    ]


def _best(bench: Bench, found: Mapping[str, Any]) -> int:
    """Number of the most accurate trial within the limit.

    Of many noisy measurements those that lie just below a limit are too low more often than not,
    so the limit is checked anew.
    """
    limit = found["limit_ms_per_step"]
    complete = [row for row in found["trials"] if row["status"] == "complete"]
    fit_for_use = [row for row in complete if row["within_limit"]]
    for row in sorted(fit_for_use, key=lambda row: row["forces_mae_meV_per_A"]):
        if limit is None:
            return int(row["number"])
        if bench.ms_per_step(bench.student(row["settings"]), trained=False) <= limit:
            return int(row["number"])
    if limit is None or not found["trials"]:
        reasons = sorted({row.get("why", row["status"]) for row in found["trials"]})
        raise TrainingError("no trial ended well", found="; ".join(reasons))
    raise TrainingError(
        "no trial is fast enough",
        expected=f"at most {limit:.4g} ms per step on {len(bench.system)} atoms",
        found=f"{min(row['ms_per_step'] for row in found['trials']):.4g} ms for the fastest",
        remedy="allow more time per step, make more trials, or try --student nep",
    )


def _write(out: Path, found: Mapping[str, Any]) -> None:
    panel = front_panel(
        found["trials"],
        found["limit_ms_per_step"],
        found["best"],
        f"{found['system']['formula']}, {found['device']}",
    )
    write_text(out / "front.html", front_page(panel, out.resolve().name))
    write_json(out / "tune.json", found)


# -- the fastest preset that is accurate enough ---------------------------------------------------


def fastest(
    labels: Path,
    out: Path,
    config: Config,
    target_fidelity: float,
    *,
    architectures: Sequence[Architecture] = ("nep", "painn"),
    on_progress: OnProgress = _silent,
) -> dict[str, Any]:
    """The fastest preset whose validation fidelity reaches the target, trained in full.

    Presets are timed untrained, then trained from the fastest on, each in ``out/presets/NAME``.
    The first that reaches the target becomes ``out/student``, with its ``errors.json``. Returns
    the content of ``out/fastest.json``. The same call continues an interrupted one.

    Raises
    ------
    ConfigError
        The target is not a fidelity; ``out`` holds a run with other inputs.
    TrainingError
        No preset reaches the target; says what each reached.
    """
    if not 0.0 < target_fidelity < 1.0:
        raise ConfigError(
            "the target is no fidelity", expected="between 0 and 1", found=target_fidelity
        )
    dataset = Dataset(labels)
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        wanted = {"target_fidelity": target_fidelity, "architectures": list(architectures)}
        fix_inputs(out, config, {**_inputs(dataset), **wanted})
        found = _read(out / "fastest.json")
        if found.get("chosen") is not None:
            return found
        bench = Bench.of(dataset, config)
        found = found or {
            "schema": SCHEMA,
            "system": {
                "formula": bench.system.get_chemical_formula(),
                "n_atoms": len(bench.system),
            },
            "device": str(bench.device),
            "target_fidelity": target_fidelity,
            "presets": _timed(bench, architectures, on_progress),
            "chosen": None,
        }
        write_json(out / "fastest.json", found)
        for row in found["presets"]:
            reached = _train_preset(out, dataset, bench, row, on_progress)
            write_json(out / "fastest.json", found)
            if reached >= target_fidelity:
                _keep(out, row["preset"])
                final = with_settings(config, PRESETS[row["preset"]])
                found["errors"] = train_and_test(out, dataset, final, on_progress)
                found["chosen"] = row["preset"]
                write_json(out / "fastest.json", found)
                return found
    raise TrainingError(
        f"no preset reaches a validation fidelity of {target_fidelity:g}",
        expected=f"one of {', '.join(row['preset'] for row in found['presets'])} to do so",
        found="; ".join(f"{r['preset']} {r['forces_fidelity']:.4f}" for r in found["presets"]),
        remedy="label more structures (`mlff-distiller plan` says what they bring), raise "
        f"training.updates, or lower the target; the students are in {out / 'presets'}",
    )


def _timed(
    bench: Bench, architectures: Sequence[Architecture], on_progress: OnProgress
) -> list[dict[str, Any]]:
    rows = []
    names = [name for name in PRESETS if name.partition("-")[0] in architectures]
    for done, name in enumerate(names):
        student = bench.student(PRESETS[name])
        ms = bench.ms_per_step(student, trained=False)
        rows.append(
            {
                "preset": name,
                "ms_per_step": ms,
                "us_per_atom": bench.us_per_atom(ms),
                "n_parameters": sum(parameter.numel() for parameter in student.parameters()),
                "forces_fidelity": None,
                "forces_mae_meV_per_A": None,
            }
        )
        on_progress("time", done + 1, len(names), f"{name}: {ms:.3g} ms")
    return sorted(rows, key=lambda row: row["ms_per_step"])


def _train_preset(
    out: Path, labels: Dataset, bench: Bench, row: dict[str, Any], on_progress: OnProgress
) -> float:
    """Train one in full, if it has not been; its figures go into ``row``."""
    if row["forces_fidelity"] is None:
        name = row["preset"]
        folder = out / "presets" / name
        folder.mkdir(parents=True, exist_ok=True)
        config = with_settings(bench.config, PRESETS[name])
        student = train_stage(
            folder,
            labels,
            split_labels(labels, config),
            config,
            EventLog(folder / "log.jsonl"),
            lambda stage, done, total, news: on_progress(name, done, total, news),
        )
        errors = compare(student, bench.validation).errors
        row["ms_per_step"] = bench.ms_per_step(student, trained=True)
        row["us_per_atom"] = bench.us_per_atom(row["ms_per_step"])
        for key in ("forces_fidelity", "forces_mae_meV_per_A"):
            row[key] = errors[key]
    return float(row["forces_fidelity"])


def _keep(out: Path, preset: str) -> None:
    source = out / "presets" / preset
    with replacing(out / "log.jsonl") as temporary:
        shutil.copyfile(source / "log.jsonl", temporary)
    with replacing(out / "student") as temporary:
        shutil.copytree(source / "student", temporary)


def _inputs(labels: Dataset) -> dict[str, Any]:
    return {"labels": labels.key_hash}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
