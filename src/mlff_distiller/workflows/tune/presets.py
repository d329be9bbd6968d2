"""The presets, the fastest first, until one is accurate enough."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlff_distiller.dataset import Dataset
from mlff_distiller.durable import EventLog, claimed, read_json, replacing, write_json
from mlff_distiller.errors import ConfigError, TrainingError
from mlff_distiller.students import registry
from mlff_distiller.validation.accuracy import student_errors
from mlff_distiller.workflows.config import Config
from mlff_distiller.workflows.folder import as_begun, fix_inputs, identity_of
from mlff_distiller.workflows.train import OnProgress, split_labels, train_and_test, train_stage
from mlff_distiller.workflows.tune.trial import Bench

SCHEMA = 1
_FORM = {"chosen": None, "presets": [{"preset": "", "forces_fidelity": None}]}


def fastest(
    labels: Path,
    out: Path,
    config: Config,
    target_fidelity: float,
    *,
    architectures: Sequence[str] | None = None,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """The fastest preset whose validation fidelity reaches the target, trained in full.

    Presets of ``architectures``, by default of all, are timed untrained, then trained from the
    fastest on, each in ``out/presets/NAME``. The first that reaches the target becomes
    ``out/student``, with its ``errors.json``. Returns the content of ``out/fastest.json``. The same
    call continues an interrupted one.

    Raises
    ------
    ConfigError
        The target is not a fidelity; ``out`` holds a run with other inputs.
    TrainingError
        No preset reaches the target; says what each reached.
    """
    if not 0.0 < target_fidelity < 1.0:
        raise ConfigError(
            "the target is not a fidelity", expected="between 0 and 1", found=target_fidelity
        )
    dataset = Dataset(labels)
    with claimed(out):
        among = list(architectures or registry.architectures())
        wanted = {"target_fidelity": target_fidelity, "architectures": among}
        config = as_begun(out, config)
        fix_inputs(out, config, {**identity_of(dataset), **wanted})
        found = read_json(out / "fastest.json", _FORM, remedy="remove it: it is made again")
        if found.get("chosen") is not None:
            return found
        bench = Bench.of(dataset, config)
        found = found or {
            "schema": SCHEMA,
            **bench.about(),
            "target_fidelity": target_fidelity,
            "presets": _timed(bench, _presets(among), on_progress),
            "chosen": None,
        }
        write_json(out / "fastest.json", found)
        for row in found["presets"]:
            reached = _train_preset(out, dataset, bench, row, on_progress)
            write_json(out / "fastest.json", found)
            if reached >= target_fidelity:
                _keep(out, row["preset"])
                final = replace(config, student=row["preset"])
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


def _presets(names: Sequence[str]) -> list[str]:
    """Presets of the architectures ``names``."""
    return [preset for name in names for preset in registry.architectures()[name].presets]


def _timed(bench: Bench, names: Sequence[str], on_progress: OnProgress) -> list[dict[str, Any]]:
    rows = []
    for done, name in enumerate(names):
        student = bench.student({"student": name})
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
        config = replace(bench.config, student=name)
        student = train_stage(
            folder,
            labels,
            split_labels(labels, config),
            config,
            EventLog(folder / "log.jsonl"),
            lambda stage, done, total, news: on_progress(name, done, total, news),
        )
        errors = student_errors(student, bench.validation)
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
