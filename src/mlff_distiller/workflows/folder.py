"""A run's folder: the same inputs whenever the command is repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mlff_distiller.dataset import Dataset
from mlff_distiller.durable import write_text
from mlff_distiller.errors import ConfigError
from mlff_distiller.workflows.config import Config, differences, read_yaml, to_plain

SCHEMA = 1
_CHANGES_NOTHING = (
    "config.training.memory_GB: ",
    "config.student: nep -> auto",
    "config.dynamics.ensemble: nvt -> auto",
)
"""How a difference begins that makes none to labels and students that are there.

The last two are defaults of earlier versions and of this one.
"""
_PAID_FOR = (
    "dataset/*.h5", "*.safetensors", "student", "rounds", "trials/*.safetensors", "tune.json",
    "presets/*/*.safetensors", "presets/*/student", "errors.json", "report.json",
)  # fmt: skip
"""A run that has none of these took no time: other inputs may take its place."""
_LEFT = (
    *("dataset/manifest.json", "dataset/quarantine.jsonl"),
    *("log.jsonl", "fastest.json", "trials.jsonl"),
)
"""What such a run may have written, besides its config.yaml."""


def is_begun(out: Path) -> bool:
    """Whether inputs are bound to the folder."""
    return (out / "config.yaml").exists()


def read_inputs(out: Path) -> dict[str, Any]:
    """What config.yaml says; `ConfigError` if it is damaged, or not one of ours."""
    path = out / "config.yaml"
    content = read_yaml(path)
    if not all(isinstance(content.get(part), dict) for part in ("inputs", "config")):
        raise ConfigError(
            f"{path} is damaged, or not one of ours",
            expected="schema, inputs and config",
            found=", ".join(map(str, content)) or "nothing",
            remedy="restore it from a copy, or choose another folder",
        )
    content["config"].setdefault("held_out", "all")  # so runs of earlier versions began
    return content


def as_begun(out: Path, config: Config) -> Config:
    """``config``, but which structures are held out stays as it was when a run in ``out`` began.

    Earlier versions held out all: what one of their students trained on must not test it.
    """
    began = read_inputs(out)["config"]["held_out"] if is_begun(out) else config.held_out
    return replace(config, held_out="all") if began == "all" else config


def fix_inputs(
    out: Path, config: Config, inputs: Mapping[str, Any], may_change: Sequence[str] = ()
) -> None:
    """Write config.yaml, or check that the one there says the same.

    One that says something else is replaced where nothing has been made with it yet, or where
    only settings differ whose names begin as ``may_change`` says. Then report.json, which tells
    that the run has ended, goes first.
    """
    now: dict[str, Any] = {"schema": SCHEMA, "inputs": dict(inputs), "config": to_plain(config)}
    path = out / "config.yaml"
    if path.exists():
        before = read_inputs(out)
        before.pop("versions", None)
        # What is new since counts as it is by default; which values labels had is not known.
        before["config"] = _over(to_plain(Config()), before.get("config", {}))
        for name in [name for name in now["inputs"] if name.endswith("_values")]:
            if name not in before["inputs"]:
                del now["inputs"][name]
        changed = [
            line for line in differences(before, now) if not line.startswith(_CHANGES_NOTHING)
        ]
        if not changed:
            return
        may = tuple(f"config.{name}" for name in may_change)
        grown = bool(may) and all(line.startswith(may) for line in changed)
        paid_for = any(next(out.glob(paid), None) for paid in _PAID_FOR)
        if not grown and (before.get("schema") != SCHEMA or paid_for):
            raise ConfigError(
                f"{out} holds a run with other inputs:\n    " + "\n    ".join(changed),
                remedy="give the same inputs to continue it, or another --out to start again",
            )
        for left in ("report.json",) if grown else _LEFT:
            (out / left).unlink(missing_ok=True)
    versions = {name: version(name) for name in ("mlff-distiller", "torch", "numpy", "ase")}
    write_text(path, yaml.safe_dump({**now, "versions": versions}, sort_keys=False))


def identity_of(labels: Dataset) -> dict[str, str]:
    """Which structures and level a dataset has, and which values: corrected labels are others."""
    return {"labels": labels.key_hash, "label_values": labels.label_set_hash()}


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, and what it lacks at any depth from ``defaults``."""
    filled = dict(defaults) | dict(given)
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(filled[key], Mapping):
            filled[key] = _over(value, filled[key])
    return filled


def files_of_student(folder: Path) -> dict[str, Path]:
    """What a student consists of, by name: its folder's files, or the one file it is."""
    if folder.is_file():
        return {f"student/{folder.name}": folder}
    names = ("config.json", "weights.safetensors", "errors.safetensors", "nep.txt")
    return {f"student/{name}": folder / name for name in names if (folder / name).is_file()}


def files_of_run(out: Path) -> dict[str, Path]:
    """What the certificate that `distill` writes into ``out`` has the hashes of."""
    return {
        "structure": out / "structures.traj",
        **files_of_student(out / "student"),
        "dataset": out / "dataset" / "manifest.json",
        "report": out / "report.html",
        "series": out / "series.json",
    }
