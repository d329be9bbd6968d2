"""A student on disk: ``config.json``, ``weights.safetensors``, ``README.md`` and its exports.

One that knows its errors has ``errors.safetensors`` as well.

No pickle anywhere: the configuration is JSON, the tensors are safetensors, and what they may
contain is fixed by the architecture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from mlff_distiller.batch import Batch
from mlff_distiller.durable import read_json, replacing, sha256_of_file
from mlff_distiller.errors import StudentError
from mlff_distiller.students.base import Student
from mlff_distiller.students.error_model import ErrorModel
from mlff_distiller.students.registry import architectures

SCHEMA = 1
ERRORS = "errors.safetensors"
"""File of the `ErrorModel`."""
_FORM = {"schema": SCHEMA, "architecture": "", "model": {}, "weights_sha256": "", "about": {}}


def save_student(
    student: Student,
    folder: Path,
    *,
    about: dict[str, Any],
    card: str,
    frames: Sequence[Batch],
) -> None:
    """Durably write ``student`` as ``folder``.

    ``about`` (JSON: teacher, data, training, ...) goes into ``config.json``, ``card`` is the
    model card in Markdown, ``frames`` are those that the student was trained on.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        weights = temporary / "weights.safetensors"
        tensors = {name: value.detach().cpu() for name, value in student.state_dict().items()}
        weights.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}))
        hashes = {"weights_sha256": sha256_of_file(weights)}
        if student.error_model is not None:
            (temporary / ERRORS).write_bytes(student.error_model.to_bytes())
            hashes["errors_sha256"] = sha256_of_file(temporary / ERRORS)
        known = architectures().get(student.architecture)
        exports = known.export(student, temporary, frames) if known and known.export else {}
        config = {
            "schema": SCHEMA,
            "architecture": student.architecture,
            "model": student.config(),
            **hashes,
            "exports": exports,
            "about": about,
        }
        (temporary / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        (temporary / "README.md").write_text(card, encoding="utf-8")


def student_folder(path: str | Path) -> Path:
    """``path/student`` if ``path`` is a run's folder, else ``path`` itself."""
    path = Path(path)
    return path / "student" if (path / "student").is_dir() else path


def load_student(path: str | Path) -> Student:
    """Read a student's folder, a run's, or a bare NEP4 file, in evaluation mode on the CPU."""
    path = student_folder(path)
    if path.is_file():
        return _read_file(path).eval()
    config = read_config(path)
    architecture = architectures().get(config["architecture"])
    if architecture is None:
        known = architectures(strict=True)  # a broken plug-in may be the reason
        raise StudentError(
            f"{path} holds a student of an unknown architecture",
            expected=f"one of {', '.join(known)}",
            found=config["architecture"],
            remedy="update mlff-distiller, or install the distribution that registers it",
        )
    weights = path / "weights.safetensors"
    try:
        _check(weights, config["weights_sha256"])
        student = architecture.student.from_config(config["model"])
        tensors = load_file(weights)
        student.to(tensors[next(name for name, _ in student.named_parameters())].dtype)
        student.load_state_dict(tensors)
        if "errors_sha256" in config:
            _check(path / ERRORS, config["errors_sha256"])
            student.error_model = ErrorModel.from_file(path / ERRORS)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, StudentError):
            raise
        raise StudentError(
            f"{path} holds a damaged student", found=f"{type(error).__name__}: {error}"
        ) from error
    return student.eval()


def _check(file: Path, sha256: str) -> None:
    if (found := sha256_of_file(file)) != sha256:
        raise StudentError(
            f"{file} does not belong to its config.json",
            expected=f"sha256 {sha256}",
            found=f"sha256 {found}",
            remedy="copy the whole folder again from where it was made",
        )


def _read_file(path: Path) -> Student:
    """By the first architecture that can; the error of the last one if none can."""
    *others, last = (own.read for own in architectures().values() if own.read is not None)
    for read in others:
        with suppress(StudentError):
            return read(path)
    return last(path)


def read_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a student's folder or a run's, its schema checked."""
    file = student_folder(path) / "config.json"
    remedy = "copy the whole folder again from where it was made"
    config = read_json(file, {"schema": 0}, error=StudentError, remedy=remedy)
    if not config:
        raise StudentError(
            f"{path} is no student",
            expected="a folder with config.json and weights.safetensors, or a nep.txt",
            found="no config.json there",
        )
    if config["schema"] != SCHEMA:
        raise StudentError(
            f"{path} was written by another version",
            expected=f"schema {SCHEMA}",
            found=f"schema {config['schema']}",
            remedy="update mlff-distiller, or distil the student again",
        )
    return read_json(file, _FORM, error=StudentError, remedy=remedy)
