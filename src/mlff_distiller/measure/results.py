"""Results as files: versioned JSON, comparison of two, and baselines that later ones must meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlff_distiller.durable import claimed, read_json, write_json
from mlff_distiller.errors import ConfigError
from mlff_distiller.md import statistics

SCHEMA = 1
KEY = ("system", "replicas", "ensemble", "model", "engine", "device")
"""What two cases must share to be compared."""
LEAST_REGRESSION = 0.05
"""Slower by less is never called slower: clocks, heat and other people's work do that much."""
NOISE_FACTOR = 3.0
_BASELINE, _WORDS = "md-baseline", "machine's baseline"

Key = tuple[Any, ...]


@dataclass
class Result:
    """What a benchmark found; ``content`` is the JSON."""

    content: dict[str, Any]

    @property
    def cases(self) -> list[dict[str, Any]]:
        return self.content["cases"]  # type: ignore[no-any-return]

    @cases.setter
    def cases(self, value: list[dict[str, Any]]) -> None:
        self.content["cases"] = value

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Combinations that cannot be, each with the reason."""
        return self.content["skipped"]  # type: ignore[no-any-return]

    @property
    def failed(self) -> list[dict[str, str]]:
        return self.content["failed"]  # type: ignore[no-any-return]

    @property
    def about(self) -> dict[str, Any]:
        return self.content["about"]  # type: ignore[no-any-return]


def read_result(path: str | Path) -> Result:
    """A result from its JSON, or from the folder that holds ``benchmark.json``."""
    path = Path(path)
    path = path / "benchmark.json" if path.is_dir() else path
    return Result(_read(path, "md-benchmark", "result of a benchmark"))


def key_of(case: dict[str, Any]) -> Key:
    """The key of a case, or of a row of a baseline."""
    return tuple(case[name] for name in KEY)


def name_of(key: Key) -> str:
    """A key in words."""
    system, replicas, ensemble, model, engine, _ = key
    copies = f" x {replicas}" if replicas > 1 else ""
    return f"{model}, {engine}, {ensemble}, {system}{copies}"


# -- two results ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Time of a step in B over that in A, with its 95 % interval."""

    key: Key
    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["slower", "faster", "same"]:
        """What B is relative to A; "same" where the interval holds 1."""
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "same"


def compare(a: Result, b: Result) -> list[Comparison]:
    """Every case that both have.

    Raises
    ------
    ConfigError
        They have none in common.
    """
    before = {key_of(case): case for case in a.cases}
    found = []
    for case in b.cases:
        other = before.get(key_of(case))
        if other is not None:
            found.append(_comparison(other, case, key_of(case)))
    if not found:
        raise ConfigError(
            "the two results have no case in common",
            expected="the same " + ", ".join(KEY),
            found="; ".join(name_of(key_of(case)) for case in [*a.cases[:1], *b.cases[:1]]),
        )
    return found


def speed_ups(result: Result) -> list[Comparison]:
    """Each case against the reference model's through ASE: how many times faster.

    The reference is the first teacher, or the first model. ``ratio`` is above 1 for what is faster.
    """
    models = [case["model"] for case in result.cases]
    teachers = [case["model"] for case in result.cases if case["kind"] == "teacher"]
    if not models:
        return []
    reference = (teachers or models)[0]
    slow = {
        (case["system"], case["ensemble"]): case
        for case in reversed(result.cases)
        if case["model"] == reference and case["replicas"] == 1
    }
    found = []
    for case in result.cases:
        other = slow.get((case["system"], case["ensemble"]))
        if other is not None and other is not case and case["replicas"] == 1:
            found.append(_comparison(case, other, key_of(case)))
    return found


def _comparison(a: dict[str, Any], b: dict[str, Any], key: Key) -> Comparison:
    blocks = [[repeat["blocks_ms"] for repeat in case["repeats"]] for case in (a, b)]
    medians = [case["latency_ms"]["median"] for case in (a, b)]
    return Comparison(key, *medians, **statistics.ratio(*blocks))


# -- baselines -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A case against its baseline: slower by ``change``, when more than ``limit`` is a regression.

    Both are the quietest tenth of their quietest repeat. ``limit`` is 5 %, or three times the noise
    that both measured if that is more.
    """

    key: Key
    baseline_ms: float
    now_ms: float
    change: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.change <= self.limit


def machine_of(result: Result) -> str:
    """What a baseline holds for: the device, and the processor that feeds it."""
    device, cpu = result.about["device"], result.about["cpu"]
    return f"{cpu}, {result.about['cores']} cores" if device == cpu else f"{device} with {cpu}"


def baseline_path(folder: str | Path, result: Result) -> Path:
    """Where the baseline of this machine lies in a database."""
    words = re.sub(r"[^a-z0-9]+", "-", machine_of(result).lower()).strip("-")
    return Path(folder) / f"{words}.json"


def record(result: Result, folder: str | Path) -> Path:
    """Make ``result`` the baseline of this machine; cases it does not have are kept."""
    with claimed(Path(folder)):
        return _record(result, baseline_path(folder, result))


def _record(result: Result, path: Path) -> Path:
    rows: dict[Key, dict[str, Any]] = {}
    if path.exists():
        rows |= {key_of(row): row for row in _read(path, _BASELINE, _WORDS)["cases"]}
    about = {key: result.about[key] for key in ("versions", "commit", "torch_threads")}
    for case in result.cases:
        kept = {name: case[name] for name in KEY}
        kept |= {"quiet_ms": case["quiet_ms"], "noise": case["noise"]}
        kept |= {"n_atoms": case["n_atoms"], "n_repeats": len(case["repeats"]), **about}
        rows[key_of(case)] = kept
    content = {"schema": SCHEMA, "kind": _BASELINE, "machine": machine_of(result)}
    write_json(path, content | {"cases": [rows[key] for key in sorted(rows)]})
    return path


def check(result: Result, against: str | Path) -> list[Verdict]:
    """``result`` against the baseline of the same machine.

    Parameters
    ----------
    against
        A database's folder, or one baseline's file.

    Raises
    ------
    ConfigError
        There is no baseline of this machine, or none of its cases was run.
    """
    path = Path(against)
    path = baseline_path(path, result) if path.is_dir() else path
    if not path.exists():
        raise ConfigError(
            f"there is no baseline of this machine ({machine_of(result)})",
            expected=path,
            remedy="mlff-distiller benchmark record RESULT --into FOLDER makes one",
        )
    baseline = _read(path, _BASELINE, _WORDS)
    if baseline["machine"] != machine_of(result):
        raise ConfigError(
            f"{path} belongs to another machine",
            expected=machine_of(result),
            found=baseline["machine"],
        )
    found = list(_verdicts(result, {key_of(row): row for row in baseline["cases"]}))
    if not found:
        raise ConfigError(
            f"{path} holds none of these cases",
            expected="; ".join(name_of(key_of(row)) for row in baseline["cases"]),
            found="; ".join(name_of(key_of(case)) for case in result.cases) or "no case at all",
        )
    return found


def _verdicts(result: Result, baseline: dict[Key, dict[str, Any]]) -> Iterator[Verdict]:
    for case in result.cases:
        row = baseline.get(key_of(case))
        if row is None:
            continue
        before, now = row["quiet_ms"], case["quiet_ms"]
        limit = max(
            LEAST_REGRESSION, NOISE_FACTOR * (row["noise"] ** 2 + case["noise"] ** 2) ** 0.5
        )
        yield Verdict(key_of(case), before, now, now / before - 1.0, limit)


def _read(path: Path, kind: str, words: str) -> dict[str, Any]:
    content = read_json(path, remedy="measure again, or restore it from a copy")
    if content.get("kind") != kind:
        raise ConfigError(f"{path} is not a {words}" if content else f"there is no {path}")
    if content.get("schema") != SCHEMA:
        raise ConfigError(
            f"{path} has another schema", expected=SCHEMA, found=content.get("schema")
        )
    return content
