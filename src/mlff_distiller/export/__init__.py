"""A student for other engines: ``export(engine, student, out)`` and, run there, its check."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlff_distiller.durable import (
    claimed,
    explaining,
    read_json,
    sha256_of_file,
    write_json,
)
from mlff_distiller.errors import ConfigError, ExportError, StudentError
from mlff_distiller.export.table import write_on_card, write_table
from mlff_distiller.export.target import Row, Target
from mlff_distiller.students import load_student, student_folder

__all__ = ["TARGETS", "Exported", "export", "target_of"]

TARGETS = ("lammps", "lammps-python", "gpumd", "openmm", "ipi", "torchsim")
"""Each is a module of this package, with a class ``TARGET``."""
_RECORD = "export.json"


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and what its check found."""

    out: Path
    files: tuple[Path, ...]
    rows: tuple[Row, ...] | None = None
    """None if nothing was checked."""

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows or ())


def target_of(engine: str, **options: Any) -> Target:
    """The target named ``engine``, with options of its own.

    Raises
    ------
    ConfigError
        There is no such engine, or it has no such option.
    """
    if engine not in TARGETS:
        raise ConfigError(
            f"unknown engine {engine!r}",
            expected=f"one of {', '.join(TARGETS)}",
        )
    kind: type[Target] = import_module(f"{__name__}.{engine.replace('-', '_')}").TARGET
    try:
        return kind(**options)
    except TypeError:
        raise ConfigError(
            f"{engine} does not have this option", found=", ".join(options), remedy="leave it out"
        ) from None


def export(
    engine: str, student: str | Path, out: str | Path, *, check: bool = False, **options: Any
) -> Exported:
    """Write all that ``engine`` needs to run ``student`` into the folder ``out``.

    Parameters
    ----------
    student
        A run, a student's folder, or a nep.txt.
    out
        A new or empty folder, or one with an earlier export of the same student, which is kept.
    check
        Whether to run the engine and compare with the student's own calculator. The table of it
        goes into ``check.json`` and ``README.md``, its largest differences onto the model card.
    options
        Of the target, such as ``source`` for ``lammps``.

    Raises
    ------
    ConfigError
        Another engine, or a folder that holds something else.
    StudentError
        A damaged student, or one that the engine cannot run.
    ExportError
        The engine is not installed, cannot be built, or fails.
    """
    target, out, folder = target_of(engine, **options), Path(out), student_folder(student)
    own = load_student(folder)
    if own.architecture not in target.architectures:
        others = [name for name in TARGETS if own.architecture in target_of(name).architectures]
        raise StudentError(
            f"{engine} cannot run a student of the architecture {own.architecture}",
            expected=f"one of {', '.join(target.architectures)}",
            remedy=f"export to {', '.join(others)}; or distil a student that {engine} runs",
        )
    if check and (missing := target.missing()):
        raise ExportError(
            f"{engine} cannot be run here: {missing}",
            remedy=f"{target.remedy()}, or leave out --check",
        )
    with claimed(out):
        record = {
            "schema": 1,
            "engine": engine,
            "student_sha256": sha256_of_file(
                folder if folder.is_file() else folder / "weights.safetensors"
            ),
            "version": version("mlff-distiller"),
        }
        files = _kept(out, record)
        if not files:
            with explaining(f"{out} cannot be written"):
                write_json(out / _RECORD, {**record, "files": []})
                files = tuple(target.write(own, folder, out))
                names = [str(file.relative_to(out)) for file in files]
                write_json(out / _RECORD, {**record, "files": names})
        rows = tuple(target.check(own, out)) if check else None
        if rows is not None:
            write_table(out, engine, rows)
            if folder.is_dir():
                write_on_card(folder, target, rows)
    return Exported(out, files, rows)


def _kept(out: Path, record: dict[str, Any]) -> tuple[Path, ...]:
    """The files of an earlier export of the same; none if it is to be written (again)."""
    known = read_json(out / _RECORD)
    names = known.pop("files", [])
    if known != record and any(path.name != ".lock" for path in out.iterdir()):
        raise ConfigError(
            f"{out} holds something else",
            expected="an empty folder, or this version's export of this student to this engine",
            remedy="choose another --out",
        )
    files = tuple(out / name for name in names)
    return files if all(file.exists() for file in files) else ()
