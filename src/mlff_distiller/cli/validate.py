"""``mlff-distiller validate``: whether a force field's physics holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlff_distiller.cli.progress import Display
from mlff_distiller.errors import ConfigError

if TYPE_CHECKING:
    from ase import Atoms

    from mlff_distiller.md.record import ForceField
    from mlff_distiller.reports.comparison import Validated
    from mlff_distiller.validation.settings import ValidationSettings

console = Console(highlight=False)
EPILOG = (
    "Examples: mlff-distiller validate silicon.extxyz --student run --teacher 7net-0 --out proof"
    "\n\nmlff-distiller validate silicon.extxyz --student small --student large --teacher 7net-0"
    " --out proof"
    "\n\nmlff-distiller validate copper.xyz --calculator ase:ase.calculators.emt:EMT --out proof"
    "\n\nmlff-distiller validate --verify proof/certificate.json"
)


def validate(
    structure: Annotated[
        Path | None, typer.Argument(help="A file ASE reads; its first frame is simulated.")
    ] = None,
    student: Annotated[
        list[Path] | None,
        typer.Option(help="A run, a student's folder, or a nep.txt; repeatable, to compare."),
    ] = None,
    calculator: Annotated[
        str | None, typer.Option(help="Instead: ase:module:factory, or any teacher's SPEC.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="SPEC of the teacher to compare with.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for certificate.json and report.html.")
    ] = None,
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
    resume: Annotated[
        bool, typer.Option(help="Keep what --out has of the same files and settings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Approve or reject a force field, with reasons; the exit code is 1 if any is rejected."""
    if verify is not None:
        _verify(verify, quiet)
        return
    if structure is None or out is None or (not student) == (calculator is None):
        raise ConfigError(
            "what is to be validated, in which structure, and where does the certificate go?",
            expected="STRUCTURE, --out FOLDER, and either --student or --calculator",
        )
    from mlff_distiller.labeling.structures import read_frames
    from mlff_distiller.md.record import ForceField
    from mlff_distiller.reports.comparison import names_of, write_comparison
    from mlff_distiller.teachers import load_teacher
    from mlff_distiller.validation.remembering import Remembering
    from mlff_distiller.validation.speed import speeds

    settings = _settings(config, temperature, time_ps, time_step, limit)
    files, known = {"structure": structure}, {}
    for name, path in (("training", training), ("test", test)):
        if path is not None:
            known[name] = read_frames(path)
            files[name] = path
    atoms, students = read_frames(structure)[0], student or []
    with ExitStack() as stack:
        candidates = [
            _student(path, name, device, dtype, files, known)
            for path, name in zip(students, names_of(students), strict=True)
        ]
        if calculator is not None:
            asked = stack.enter_context(load_teacher(calculator, device=device))
            field = ForceField(calculator, asked)
            about = {"calculator": asdict(asked.identity)}
            own = files | _source(calculator)
            candidates = [_Candidate(field, own, known, about, asked.identity.device)]
        reference = None
        if teacher is not None:
            source = load_teacher(teacher, device=device, python=teacher_python)
            identity = asdict(stack.enter_context(source).identity)
            one = ForceField(teacher, source)
            speed = speeds(one, atoms, settings.temperature_K[0], device)["ms_per_step"]
            if len(candidates) > 1:
                one = ForceField(teacher, Remembering(source))
            reference = _Reference(one, speed, identity)
        found = []
        for candidate in candidates:
            folder = out / candidate.field.name if len(candidates) > 1 else out
            done = _kept(candidate, reference, settings, folder) if resume else None
            if done is None:
                with Display(console, quiet=quiet) as display:
                    done = _validated(candidate, reference, atoms, settings, folder, display)
            found.append(done)
            if not quiet:
                _print(done, folder)
    if len(found) > 1:
        write_comparison(out / "report.html", found)
        if not quiet:
            _print_comparison(found, out / "report.html")
    if any(one.content["verdict"]["status"] != "approved" for one in found):
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Candidate:
    """What is validated."""

    field: ForceField
    files: Mapping[str, Path]
    """What its certificate has the hashes of."""
    known: Mapping[str, list[Atoms]]
    """``training`` and ``test`` structures, as far as they are known."""
    about: Mapping[str, Any]
    device: str
    """Its name."""


@dataclass(frozen=True)
class _Reference:
    """The teacher, and what a step of its dynamics takes."""

    field: ForceField
    ms_per_step: float | None
    identity: Mapping[str, Any]


def _student(
    path: Path,
    name: str,
    device: str,
    dtype: str,
    files: Mapping[str, Path],
    known: Mapping[str, list[Atoms]],
) -> _Candidate:
    """A student, with the data of its run where none are given."""
    from mlff_distiller.deploy import StudentCalculator
    from mlff_distiller.engines.loading import resolve_device
    from mlff_distiller.md.record import ForceField
    from mlff_distiller.measure.machine import device_name

    folder = path / "student" if (path / "student").is_dir() else path
    own = {**files, **{f"student/{file.name}": file for file in _files_of(folder)}}
    if not known and (path / "dataset").is_dir() and (path / "config.yaml").exists():
        known = _data_of_run(path)
        own["dataset"] = path / "dataset" / "manifest.json"
    calculator = StudentCalculator(folder, device=device, dtype=dtype)  # type: ignore[arg-type]
    field = ForceField(name, calculator, dtype)  # type: ignore[arg-type]
    return _Candidate(field, own, known, {}, device_name(str(resolve_device(device))))


def _validated(
    candidate: _Candidate,
    reference: _Reference | None,
    atoms: Atoms,
    settings: ValidationSettings,
    folder: Path,
    display: Display,
) -> Validated:
    """Validate, and write certificate.json and report.html into ``folder``."""
    from mlff_distiller.durable import write_json
    from mlff_distiller.reports.comparison import Validated
    from mlff_distiller.reports.validation import write_page
    from mlff_distiller.validation.certificate import write_certificate
    from mlff_distiller.validation.speed import speeds
    from mlff_distiller.validation.validate import validate as measured

    field = candidate.field
    found = measured(
        field,
        atoms,
        settings,
        teacher=None if reference is None else reference.field,
        training=candidate.known.get("training", []),
        test=candidate.known.get("test", []),
        on_progress=display,
    )
    series = found.pop("series")
    teacher_ms = None if reference is None else reference.ms_per_step
    found["measurements"]["speed"] = speeds(
        field, atoms, settings.temperature_K[0], candidate.device, teacher_ms
    )
    content = {**found, **_asked(candidate, reference, settings)}
    files = _files(candidate, folder)
    write_page(files["report"], content, series, field.name, candidate.files)
    write_json(files["series"], series)
    write_certificate(folder / "certificate.json", content, files)
    return Validated(field.name, content, series)


def _kept(
    candidate: _Candidate, reference: _Reference | None, settings: ValidationSettings, folder: Path
) -> Validated | None:
    """What was found before of the same files, teacher and settings; None if there is nothing."""
    from mlff_distiller.reports.comparison import Validated
    from mlff_distiller.validation.certificate import certified

    files, asked = _files(candidate, folder), _asked(candidate, reference, settings)
    content = certified(folder / "certificate.json", asked, files)
    if content is None:
        return None
    return Validated(candidate.field.name, content, json.loads(files["series"].read_text()))


def _asked(
    candidate: _Candidate, reference: _Reference | None, settings: ValidationSettings
) -> dict[str, Any]:
    """What a certificate says of how it was made."""
    teacher = {} if reference is None else {"teacher": dict(reference.identity)}
    return {**candidate.about, "settings": asdict(settings), **teacher}


def _files(candidate: _Candidate, folder: Path) -> dict[str, Path]:
    """What a certificate in ``folder`` has the hashes of."""
    return {
        **candidate.files,
        "report": folder / "report.html",
        "series": folder / "series.json",
    }


def _settings(
    config: Path | None,
    temperature: list[float] | None,
    time_ps: float | None,
    time_step: float | None,
    limits: list[str] | None,
) -> ValidationSettings:
    from pydantic import TypeAdapter, ValidationError

    from mlff_distiller.validation.settings import ValidationSettings
    from mlff_distiller.workflows.config import read_yaml

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

    from mlff_distiller.dataset import Dataset
    from mlff_distiller.workflows.config import Config, read_yaml
    from mlff_distiller.workflows.train import split_labels

    config = TypeAdapter(Config).validate_python(read_yaml(run / "config.yaml")["config"])
    labels = Dataset(run / "dataset")
    split = split_labels(labels, config)
    return {
        name: labels.read(part).to_atoms()
        for name, part in (("training", split.train), ("test", split.test))
    }


def _verify(path: Path, quiet: bool) -> None:
    from mlff_distiller.validation.certificate import verify_certificate

    problems = verify_certificate(path)
    if problems:
        raise ConfigError(
            f"{path} does not hold:\n    " + "\n    ".join(problems),
            remedy="validate again",
        )
    if not quiet:
        console.print(f"[green]✓[/] {escape(str(path))}: every hash is right", soft_wrap=True)


def _print(found: Validated, folder: Path) -> None:
    verdict = found.content["verdict"]
    colour = "green" if verdict["status"] == "approved" else "red"
    table = Table(box=None, padding=(0, 2), title_justify="left")
    table.title = f"[bold {colour}]{verdict['status']}[/]: {escape(found.name)}"
    for heading in ("", "check", "measured", "limit"):
        table.add_column(heading, justify="right" if heading in ("measured", "limit") else "left")
    for check in verdict["checks"]:
        mark = "[green]✓[/]" if check["passed"] else "[red]✗[/]"
        value = "not measured" if check["value"] is None else f"{check['value']:.4g}"
        table.add_row(mark, check["name"], value, f"{check['limit']:g}")
    console.print(table)
    for reason in verdict["reasons"]:
        console.print(f"[red]✗[/] {escape(reason)}", soft_wrap=True)
    for remark in verdict.get("remarks", []):
        console.print(f"[yellow]![/] {escape(remark)}", soft_wrap=True)
    console.print(f"\nreport       {escape(str(folder / 'report.html'))}", soft_wrap=True)
    console.print(f"certificate  {escape(str(folder / 'certificate.json'))}", soft_wrap=True)


def _print_comparison(found: Sequence[Validated], path: Path) -> None:
    table = Table(box=None, padding=(0, 2))
    for heading in ("student", "verdict", "fit for", "force RMSE (meV/Å)", "step (ms)"):
        table.add_column(heading, justify="right" if "(" in heading else "left")
    for one in found:
        numbers = (one.row[key] for key in ("forces_rmse_meV_per_A", "ms_per_step"))
        cells = ("–" if number is None else f"{number:.3g}" for number in numbers)
        table.add_row(escape(one.name), one.row["status"], one.use.name, *cells)
    console.print()
    console.print(table)
    console.print(f"\nreport       {escape(str(path))}", soft_wrap=True)
