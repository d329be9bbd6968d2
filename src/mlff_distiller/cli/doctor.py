"""``mlff-distiller doctor``: what works on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mlff_distiller.cli.options import REFUSED, AsJson
from mlff_distiller.cli.shown import console

_MARKS = {"ok": "[green]✓[/]", "absent": "[yellow]–[/]", "failed": "[red]✗[/]"}


def doctor(
    disk: Annotated[
        Path, typer.Option(metavar="FOLDER", help="A folder on the disk to measure.")
    ] = Path(),
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name of a check that must pass, or how it begins; repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check compilers, GPU, teachers and disk; the exit code is 3 if a check fails.

    What is not installed is not a failure unless it is required: --require cuda --require teachers
    """
    from mlff_distiller.errors import ConfigError
    from mlff_distiller.measure.doctor import Check, checks

    done: list[Check] = []
    for check in checks(disk):
        done.append(check)
        if not as_json:
            # A table's columns would wait for the slowest check.
            console.print(
                f"{_MARKS[check.status]} [bold]{check.name:<16}[/] {escape(check.found)}",
                soft_wrap=True,
            )
            if check.remedy:
                console.print(f"{'':19}→ {escape(check.remedy)}", soft_wrap=True)
    bad = [check.name for check in done if check.status == "failed"]
    for wanted in require or []:
        own = [check for check in done if check.name.startswith(wanted)]
        if not own:
            raise ConfigError(
                f"there is no check {wanted!r}", expected=", ".join(check.name for check in done)
            )
        bad += [check.name for check in own if check.status == "absent"]
    if as_json:
        console.print_json(json.dumps({"schema": 1, "ok": not bad, "checks": [*map(asdict, done)]}))
    elif bad:
        console.print(f"\n[bold red]not in order:[/] {', '.join(bad)}")
    else:
        console.print("\n[bold green]all in order[/]")
    if bad:
        raise typer.Exit(REFUSED)
