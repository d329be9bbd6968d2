"""``mlff-distiller validate``: whether a force field's physics holds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlff_distiller.errors import ConfigError
from mlff_distiller.progress import Display

if TYPE_CHECKING:
    from ase import Atoms

    from mlff_distiller.evaluate.validation.settings import ValidationSettings

console = Console(highlight=False)
EPILOG = (
    "Examples: mlff-distiller validate silicon.extxyz --student run --teacher 7net-0 --out proof"
    "\n\nmlff-distiller validate copper.xyz --calculator ase:ase.calculators.emt:EMT --out proof"
    "\n\nmlff-distiller validate --verify proof/certificate.json"
)


def validate(
    structure: Annotated[
        Path | None, typer.Argument(help="A file ASE reads; its first frame is simulated.")
    ] = None,
    student: Annotated[
        Path | None, typer.Option(help="A run, a student's folder, or a nep.txt.")
    ] = None,
    calculator: Annotated[
        str | None, typer.Option(help="Instead: ase:module:factory, or any teacher's SPEC.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="SPEC of the teacher to compare with.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for certificate.json.")] = None,
    training: Annotated[
        Path | None, typer.Option(help="Structures it was trained on; a run's are found.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Structures it was tested on; a run's are found.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="K; repeatable. 300 if not given.")
    ] = None,
    time_ps: Annotated[float | None, typer.Option(help="Of each run, ps. 10 if not given.")] = None,
    time_step: Annotated[
        float | None, typer.Option(help="fs; 0.5 with hydrogen and 1 without if not given.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="CHECK=VALUE: another limit; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of a student: float32 or float64.")] = "float32",
    teacher_python: Annotated[
        str | None, typer.Option(help="Python of another environment for the teacher.")
    ] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Only check the hashes of a certificate.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Approve or reject a force field, with reasons; the exit code is 1 if it is rejected."""
    from mlff_distiller.deploy import StudentCalculator
    from mlff_distiller.evaluate.validation.certificate import write_certificate
    from mlff_distiller.evaluate.validation.trajectory import ForceField
    from mlff_distiller.evaluate.validation.validate import validate as validated
    from mlff_distiller.labeling.structures import read_frames
    from mlff_distiller.teachers import load_teacher

    if verify is not None:
        _verify(verify, quiet)
        return
    if structure is None or out is None or (student is None) == (calculator is None):
        raise ConfigError(
            "what is to be validated, in which structure, and where does the certificate go?",
            expected="STRUCTURE, --out FOLDER, and either --student or --calculator",
        )
    settings = _settings(config, temperature, time_ps, time_step, limit)
    files = {"structure": structure}
    known: dict[str, list[Atoms]] = {}
    for name, path in (("training", training), ("test", test)):
        if path is not None:
            known[name] = read_frames(path)
            files[name] = path
    with ExitStack() as stack:
        about: dict[str, Any] = {}
        if student is not None:
            folder = student / "student" if (student / "student").is_dir() else student
            files |= {f"student/{file.name}": file for file in _files_of(folder)}
            if not known and (student / "dataset").is_dir() and (student / "config.yaml").exists():
                known = _data_of_run(student)
                files["dataset"] = student / "dataset" / "manifest.json"
            field = ForceField(
                "student",
                StudentCalculator(folder, device=device, dtype=dtype),  # type: ignore[arg-type]
                dtype,  # type: ignore[arg-type]
            )
        else:
            asked = stack.enter_context(load_teacher(calculator or "", device=device))
            about["calculator"] = asdict(asked.identity)
            files |= _source(calculator or "")
            field = ForceField(calculator or "", asked)
        other = None
        if teacher is not None:
            source = load_teacher(teacher, device=device, python=teacher_python)
            about["teacher"] = asdict(stack.enter_context(source).identity)
            other = ForceField(teacher, source)
        with Display(console, quiet=quiet) as display:
            found = validated(
                field,
                read_frames(structure)[0],
                settings,
                teacher=other,
                training=known.get("training", []),
                test=known.get("test", []),
                on_progress=display,
            )
    path = out / "certificate.json"
    write_certificate(path, {**found, **about, "settings": asdict(settings)}, files)
    if not quiet:
        _print(found["verdict"], path)
    if found["verdict"]["status"] != "approved":
        raise typer.Exit(1)


def _settings(
    config: Path | None,
    temperature: list[float] | None,
    time_ps: float | None,
    time_step: float | None,
    limits: list[str] | None,
) -> ValidationSettings:
    from pydantic import TypeAdapter, ValidationError

    from mlff_distiller.config import read_yaml
    from mlff_distiller.evaluate.validation.settings import ValidationSettings

    content = read_yaml(config) if config is not None else {}
    given = {"temperature_K": temperature or None, "time_ps": time_ps, "time_step_fs": time_step}
    content |= {name: value for name, value in given.items() if value is not None}
    for word in limits or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"cannot read the limit {word!r}", expected="CHECK=VALUE")
        content["limits"] = {**(content.get("limits") or {}), name: value}
    try:
        return TypeAdapter(ValidationSettings).validate_python(content)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']} (found {one['input']!r})"
            for one in error.errors(include_url=False)
        ]
        raise ConfigError("invalid settings:\n    " + "\n    ".join(lines)) from error


def _files_of(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    names = ("config.json", "weights.safetensors", "nep.txt")
    return [folder / name for name in names if (folder / name).is_file()]


def _source(spec: str) -> dict[str, Path]:
    """The file of an ``ase:module:factory``, here or installed."""
    family, _, rest = spec.partition(":")
    module = rest.partition(":")[0]
    if family != "ase" or not module:
        return {}
    here = Path(*module.split(".")).with_suffix(".py")
    if here.is_file():
        return {"calculator": here}
    found = find_spec(module)
    return {"calculator": Path(found.origin)} if found is not None and found.origin else {}


def _data_of_run(run: Path) -> dict[str, list[Atoms]]:
    """Structures that a run's student was trained and tested on, with their labels."""
    from pydantic import TypeAdapter

    from mlff_distiller.config import Config, read_yaml
    from mlff_distiller.dataset import Dataset
    from mlff_distiller.fit import split_labels

    config = TypeAdapter(Config).validate_python(read_yaml(run / "config.yaml")["config"])
    labels = Dataset(run / "dataset")
    split = split_labels(labels, config)
    return {
        name: labels.read(part).to_atoms()
        for name, part in (("training", split.train), ("test", split.test))
    }


def _verify(path: Path, quiet: bool) -> None:
    from mlff_distiller.evaluate.validation.certificate import verify_certificate

    problems = verify_certificate(path)
    if problems:
        raise ConfigError(
            f"{path} does not hold:\n    " + "\n    ".join(problems),
            remedy="validate again",
        )
    if not quiet:
        console.print(f"[green]✓[/] {escape(str(path))}: every hash is right", soft_wrap=True)


def _print(verdict: dict[str, Any], path: Path) -> None:
    colour = "green" if verdict["status"] == "approved" else "red"
    table = Table(box=None, padding=(0, 2), title_justify="left")
    table.title = f"[bold {colour}]{verdict['status']}[/]"
    for heading in ("", "check", "measured", "limit"):
        table.add_column(heading, justify="right" if heading in ("measured", "limit") else "left")
    for check in verdict["checks"]:
        mark = "[green]✓[/]" if check["passed"] else "[red]✗[/]"
        value = "not measured" if check["value"] is None else f"{check['value']:.4g}"
        table.add_row(mark, check["name"], value, f"{check['limit']:g}")
    console.print(table)
    for reason in verdict["reasons"]:
        console.print(f"[red]✗[/] {escape(reason)}", soft_wrap=True)
    console.print(f"\ncertificate  {escape(str(path))}", soft_wrap=True)
