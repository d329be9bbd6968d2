"""The certificate: what was measured, the verdict, and hashes of all that it rests on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlff_distiller.durable import read_json, sha256_of_file, write_json
from mlff_distiller.errors import ConfigError

_OWN = "content_sha256"
_ANEW = "restore it from a copy, or remove it to validate again"


def write_certificate(path: Path, content: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Write ``content`` as JSON to ``path``, with the hashes of ``files`` and of itself.

    Paths are kept relative to the certificate's folder, so that both can move together.
    """
    there = path.parent.resolve()
    whole = {
        **content,
        "versions": versions(),
        "files": {
            name: {
                "path": Path(os.path.relpath(file.resolve(), there)).as_posix(),
                "sha256": sha256_of_file(file),
            }
            for name, file in files.items()
        },
    }
    whole = json.loads(json.dumps(whole, allow_nan=False))
    write_json(path, {**whole, _OWN: _hash(whole)})


def versions() -> dict[str, str]:
    """Versions that the numbers depend on; ours is unknown where the source runs uninstalled."""
    found = {name: version(name) for name in ("torch", "numpy", "ase")}
    try:
        own = version("mlff-distiller")
    except PackageNotFoundError:
        own = "unknown"
    return {"mlff-distiller": own, **found}


def certified(
    path: Path,
    expected: Mapping[str, Any],
    files: Mapping[str, Path],
    made: Mapping[str, Path],
) -> dict[str, Any] | None:
    """Content of the certificate, if it holds what is ``expected`` and is of these ``files``.

    None where there is none, or where its versions or one of its files differ or are missing.

    Raises
    ------
    ConfigError
        The certificate, or one of the files ``made`` with it, was changed or is gone.
    """
    content = read_certificate(path, files)
    wanted = json.loads(json.dumps({**expected, "versions": versions()}))
    if content is None or set(content["files"]) != {*files, *made}:
        return None
    if any(content.get(name) != wanted[name] for name in wanted):
        return None
    for name, file in made.items():
        if not file.is_file() or sha256_of_file(file) != content["files"][name]["sha256"]:
            raise ConfigError(
                f"{file} is not what {path.name} was written with",
                found="another file" if file.is_file() else "nothing there",
                remedy="restore it from a copy, or validate again without --resume",
            )
    return content


def read_certificate(path: Path, files: Mapping[str, Path]) -> dict[str, Any] | None:
    """Content of the certificate if there is one and these of its ``files`` are unchanged.

    Else None; `ConfigError` where it is itself damaged or changed.
    """
    content = read_json(path, {"files": {}, _OWN: ""}, remedy=_ANEW)
    if not content:
        return None
    if _hash(content) != content.pop(_OWN):
        raise ConfigError(f"{path} was changed after it was written", remedy=_ANEW)
    known = content["files"]
    unchanged = all(
        file.is_file() and known.get(name, {}).get("sha256") == sha256_of_file(file)
        for name, file in files.items()
    )
    return content if unchanged and files else None


def verify_certificate(path: Path) -> list[str]:
    """What does not agree with the certificate any more, in words; nothing if all does.

    Raises
    ------
    ConfigError
        The file is not a certificate.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        own = content[_OWN]
        files = {
            str(name): (Path(file["path"]), str(file["sha256"]))
            for name, file in content["files"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not a certificate",
            expected="a certificate.json that 'validate' has written",
            found=f"{type(error).__name__}: {error}",
        ) from error
    problems = []
    if _hash(content) != own:
        problems.append("the certificate itself was changed after it was written")
    for name, (place, expected) in files.items():
        file = path.parent / place
        if not file.is_file():
            problems.append(f"{name} is missing: {place}")
        elif sha256_of_file(file) != expected:
            problems.append(f"{name} was changed: {place}")
    return problems


def _hash(content: Mapping[str, Any]) -> str:
    content = {name: value for name, value in content.items() if name != _OWN}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
