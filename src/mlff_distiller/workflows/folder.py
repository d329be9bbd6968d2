"""A run's folder: the same inputs whenever the command is repeated."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mlff_distiller.durable import write_text
from mlff_distiller.errors import ConfigError
from mlff_distiller.workflows.config import Config, differences, read_yaml, to_plain

SCHEMA = 1
_CHANGES_NOTHING = "config.training.memory_GB: "
"""How a difference begins that makes none to what comes out."""


def fix_inputs(out: Path, config: Config, inputs: Mapping[str, Any]) -> None:
    """Write config.yaml, or check that the one there says the same."""
    now = {"schema": SCHEMA, "inputs": dict(inputs), "config": to_plain(config)}
    path = out / "config.yaml"
    if path.exists():
        before = read_yaml(path)
        before.pop("versions", None)
        # Architectures that have been installed since count as they are by default.
        defaults = to_plain(Config())
        new = {name: defaults[name] for name in config.architectures}
        before["config"] = new | before.get("config", {})
        changed = [
            line for line in differences(before, now) if not line.startswith(_CHANGES_NOTHING)
        ]
        if changed:
            raise ConfigError(
                f"{out} holds a run with other inputs:\n    " + "\n    ".join(changed),
                remedy="give the same inputs to continue it, or another --out to begin anew",
            )
        return
    versions = {name: version(name) for name in ("mlff-distiller", "torch", "numpy", "ase")}
    write_text(path, yaml.safe_dump({**now, "versions": versions}, sort_keys=False))


def files_of_student(folder: Path) -> dict[str, Path]:
    """What a student consists of, by name: its folder's files, or the one file it is."""
    if folder.is_file():
        return {f"student/{folder.name}": folder}
    names = ("config.json", "weights.safetensors", "nep.txt")
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
