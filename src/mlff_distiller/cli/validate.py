"""``mlff-distiller validate``: whether a force field's physics holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mlff_distiller.cli.options import (
    REFUSED,
    ConfigFile,
    Device,
    Dtype,
    Quiet,
    TeacherPython,
    TimeStep,
)
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import console, errors, print_files, print_verdict, table
from mlff_distiller.errors import ConfigError

if TYPE_CHECKING:
    from mlff_distiller.reports.comparison import Validated

EPILOG = (
    "Examples: mlff-distiller validate --student run --teacher 7net-0"
    "\n\nmlff-distiller validate silicon.extxyz --student run --teacher 7net-0 --out proof"
    "\n\nmlff-distiller validate silicon.extxyz --student small --student large --teacher 7net-0"
    " --out proof"
    "\n\nmlff-distiller validate copper.xyz --calculator ase:ase.calculators.emt:EMT --out proof"
    "\n\nmlff-distiller validate --verify proof/certificate.json"
)


def validate(
    structure: Annotated[
        Path | None,
        typer.Argument(
            metavar="STRUCTURE",
            help="File that ASE reads; its first frame is simulated. A run brings its own.",
        ),
    ] = None,
    student: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="A run, a student's folder, or a nep.txt; repeatable, to compare."
        ),
    ] = None,
    calculator: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="Instead of a student: ase:module:factory, or any teacher's SPEC."
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Teacher to compare with.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for certificate.json and report.html. Not needed for a run.",
        ),
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Structures it was trained on; a run's are found."),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Structures it was tested on; a run's are found."),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            metavar="K", help="Temperature, K; repeatable.", show_default="the run's, or 300"
        ),
    ] = None,
    time_ps: Annotated[
        float | None, typer.Option(metavar="PS", help="Length of each run, ps.", show_default="10")
    ] = None,
    time_step: TimeStep = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="CHECK=VALUE: another limit; repeatable."),
    ] = None,
    config: ConfigFile = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    teacher_python: TeacherPython = None,
    verify: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only check the hashes of a certificate.")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="full, or short: accuracy, conservation of energy and speed."
        ),
    ] = "full",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only say what it will cost here.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", metavar="", help="Keep what --out holds for the same files and settings."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Approve or reject a force field, with reasons; the exit code is 3 if any is rejected."""
    if verify is not None:
        _verify(verify, quiet)
        return
    from mlff_distiller.workflows import validate as workflow

    with Display(console, quiet=quiet) as display:
        found = workflow.validate(
            structure,
            students=student or [],
            calculator=calculator,
            teacher=teacher,
            out=out,
            training=training,
            test=test,
            settings=_given(config, temperature, time_ps, time_step, limit),
            device=device,
            dtype=dtype,  # type: ignore[arg-type]
            teacher_python=teacher_python,
            profile=profile,  # type: ignore[arg-type]
            dry_run=dry_run,
            resume=resume,
            on_progress=display,
        )
    if not quiet:
        for one in found:
            _print(one)
        if len(found) > 1:
            _print_comparison(found)
    if any(one.content["verdict"]["status"] != "approved" for one in found):
        raise typer.Exit(REFUSED)


def _given(
    config: Path | None,
    temperature: list[float] | None,
    time_ps: float | None,
    time_step: float | None,
    limits: list[str] | None,
) -> dict[str, Any]:
    """Settings as the command line and the file of settings give them."""
    from mlff_distiller.workflows.config import read_yaml

    content = read_yaml(config) if config is not None else {}
    given = {"temperature_K": temperature or None, "time_ps": time_ps, "time_step_fs": time_step}
    content |= {name: value for name, value in given.items() if value is not None}
    for word in limits or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"cannot read the limit {word!r}", expected="CHECK=VALUE")
        content["limits"] = {**(content.get("limits") or {}), name: value}
    return content


def _verify(path: Path, quiet: bool) -> None:
    from mlff_distiller.validation.certificate import verify_certificate

    problems = verify_certificate(path)
    if problems:
        found = "\n    ".join([f"{path} does not hold; validate again:", *problems])
        errors.print(f"[red]✗[/] {escape(found)}", soft_wrap=True)
        raise typer.Exit(REFUSED)
    if not quiet:
        console.print(f"[green]✓[/] {escape(str(path))}: every hash is right", soft_wrap=True)


def _print(found: Validated) -> None:
    verdict = found.content["verdict"]
    print_verdict(verdict, found.name)
    for reason in verdict["reasons"]:
        console.print(f"[red]✗[/] {escape(reason)}", soft_wrap=True)
    for remark in verdict.get("remarks", []):
        console.print(f"[yellow]![/] {escape(remark)}", soft_wrap=True)
    console.print()
    print_files({"report": found.page, "certificate": found.certificate})


def _print_comparison(found: Sequence[Validated]) -> None:
    left = ("student", "verdict", "fit for")
    made = table((*left, "force RMSE (meV/Å)", "step (ms)"), left=left)
    for one in found:
        numbers = (one.row[key] for key in ("forces_rmse_meV_per_A", "ms_per_step"))
        cells = ("–" if number is None else f"{number:.3g}" for number in numbers)
        made.add_row(escape(one.name), one.row["status"], one.use.name, *cells)
    console.print()
    console.print(made)
    console.print()
    print_files({"report": found[0].page.parent.parent / "report.html"})
