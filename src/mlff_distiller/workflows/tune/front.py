"""The front of accuracy against speed: trials, the best of them within the limit, its training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlff_distiller.dataset import Dataset
from mlff_distiller.durable import claimed, read_json, write_json
from mlff_distiller.errors import ConfigError, TrainingError
from mlff_distiller.reports.front import write_front
from mlff_distiller.students import load_student
from mlff_distiller.workflows.config import Config, with_settings
from mlff_distiller.workflows.folder import as_begun, fix_inputs, identity_of
from mlff_distiller.workflows.train import OnProgress, train_and_test
from mlff_distiller.workflows.tune.study import ask, ended_trials, import_optuna, open_study
from mlff_distiller.workflows.tune.trial import Bench, Space, TuneSettings, try_out

SCHEMA = 1
_FORM: dict[str, Any] = {
    "best": None,
    "student": None,
    "trials": [{"number": 0, "settings": {}}],
    "system": {},
}


def tune(
    labels: Path,
    out: Path,
    config: Config,
    settings: TuneSettings | None = None,
    *,
    on_progress: OnProgress = lambda stage, done, total, news: None,
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
        raise ConfigError(
            "two speed limits were given", expected="a limit per atom or per step, not both"
        )
    import_optuna()
    dataset = Dataset(labels)
    with claimed(out):
        wanted = {**asdict(settings), "architectures": list(settings.architectures)}
        config = as_begun(out, config)
        fix_inputs(out, config, {**identity_of(dataset), "tune": wanted})
        before = read_json(out / "tune.json", _FORM, remedy="remove it: it is made again")
        if before.get("student") is not None and (out / "student" / "config.json").exists():
            return before
        bench = Bench.of(dataset, config, settings.speed_atoms)
        limit_ms = settings.max_ms_per_step
        if settings.max_us_per_atom is not None:
            limit_ms = settings.max_us_per_atom * len(bench.system) / 1e3
        found: dict[str, Any] = {
            "schema": SCHEMA,
            **bench.about(),
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
        found["student"] = _train_best(out, dataset, bench, found, on_progress)
        _write(out, found)
        return found


def _train_best(
    out: Path,
    dataset: Dataset,
    bench: Bench,
    found: Mapping[str, Any],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train the chosen trial's settings in full; its time and errors."""
    chosen = next(row for row in found["trials"] if row["number"] == found["best"])
    final = with_settings(bench.config, chosen["settings"])
    errors = train_and_test(out, dataset, final, on_progress)
    student = load_student(out / "student").to(bench.device)
    ms, limit_ms = bench.ms_per_step(student, trained=True), found["limit_ms_per_step"]
    if limit_ms is not None and ms > limit_ms:
        raise TrainingError(
            "the student that was trained in full is slower than the limit",
            expected=f"at most {limit_ms:.4g} ms per step, as its trial took",
            found=f"{ms:.4g} ms on {len(bench.system)} atoms",
            remedy="repeat the command to measure again on a quieter machine; the student is "
            f"in {out / 'student'}",
        )
    return {"ms_per_step": ms, "us_per_atom": bench.us_per_atom(ms), "errors": errors}


def _search(
    out: Path,
    bench: Bench,
    settings: TuneSettings,
    found: dict[str, Any],
    on_progress: OnProgress,
) -> None:
    """Make the trials that are missing; ``found["trials"]`` are all there are."""
    optuna = import_optuna()
    space = Space.of(bench, settings.architectures)
    presets = space.defaults()
    (out / "trials").mkdir(exist_ok=True)
    with open_study(out) as study:
        found["trials"] = ended_trials(study)
        while len(found["trials"]) < settings.trials and found["best"] is None:
            number = len(found["trials"])
            spent = sum(row["seconds"] for row in found["trials"])
            if settings.minutes is not None and spent >= 60.0 * settings.minutes:
                break
            trial = ask(study, number, presets, bench.config.seed, settings.trials)
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
            found["trials"] = ended_trials(study)
            write_json(out / "tune.json", found)
            on_progress("tune", number + 1, settings.trials, _news(row))


def _news(row: Mapping[str, Any]) -> str:
    error = row["forces_mae_meV_per_A"]
    reached = row["status"] if error is None else f"{error:.1f} meV/Å"
    return f"{row['settings']['student']}: {reached}, {row['us_per_atom']:.3g} µs/atom"


def _best(bench: Bench, found: Mapping[str, Any]) -> int:
    """Number of the most accurate trial within the limit.

    Of many noisy measurements those that lie just below a limit are too low more often than not,
    so the limit is checked again.
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
        remedy="allow more time per step, make more trials, or name a faster --student",
    )


def _write(out: Path, found: Mapping[str, Any]) -> None:
    write_front(out / "front.html", found, out.resolve().name)
    write_json(out / "tune.json", found)
