"""``mlff-distiller validate``: whether a force field's physics holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlff_distiller.cli.progress import Display
from mlff_distiller.errors import ConfigError

if TYPE_CHECKING:
    from mlff_distiller.reports.comparison import Validated

console = Console(highlight=False)
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
            help="File that ASE reads; its first frame is simulated. A run brings its own."
        ),
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
        Path | None,
        typer.Option(help="Folder for certificate.json and report.html. Not needed for a run."),
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="Structures it was trained on; a run's are found.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Structures it was tested on; a run's are found.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="K; repeatable. The run's, or 300, if not given.")
    ] = None,
    time_ps: Annotated[
        float | None, typer.Option(help="Length of each run, ps. 10 if not given.")
    ] = None,
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
        bool, typer.Option(help="Keep what --out holds for the same files and settings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Approve or reject a force field, with reasons; the exit code is 1 if any is rejected."""
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
            resume=resume,
            on_progress=display,
        )
    if not quiet:
        for one in found:
            _print(one)
        if len(found) > 1:
            _print_comparison(found)
    if any(one.content["verdict"]["status"] != "approved" for one in found):
        raise typer.Exit(1)


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
        raise ConfigError(
            f"{path} does not hold:\n    " + "\n    ".join(problems),
            remedy="validate again",
        )
    if not quiet:
        console.print(f"[green]✓[/] {escape(str(path))}: every hash is right", soft_wrap=True)


def _print(found: Validated) -> None:
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
    console.print(f"\nreport       {escape(str(found.page))}", soft_wrap=True)
    console.print(f"certificate  {escape(str(found.certificate))}", soft_wrap=True)


def _print_comparison(found: Sequence[Validated]) -> None:
    table = Table(box=None, padding=(0, 2))
    for heading in ("student", "verdict", "fit for", "force RMSE (meV/Å)", "step (ms)"):
        table.add_column(heading, justify="right" if "(" in heading else "left")
    for one in found:
        numbers = (one.row[key] for key in ("forces_rmse_meV_per_A", "ms_per_step"))
        cells = ("–" if number is None else f"{number:.3g}" for number in numbers)
        table.add_row(escape(one.name), one.row["status"], one.use.name, *cells)
    console.print()
    console.print(table)
    page = found[0].page.parent.parent / "report.html"
    console.print(f"\nreport       {escape(str(page))}", soft_wrap=True)
