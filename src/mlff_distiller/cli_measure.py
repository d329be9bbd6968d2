"""``mlff-distiller doctor``, ``benchmark`` and ``profile``: what works here, and what it costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

console = Console(highlight=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_MARKS = {"ok": "[green]✓[/]", "absent": "[yellow]–[/]", "failed": "[red]✗[/]"}


def doctor(
    disk: Annotated[
        Path, typer.Option(help="A folder on the disk whose write speed is wanted.")
    ] = Path(),
    require: Annotated[
        list[str] | None,
        typer.Option(help="A check that must be ok, by its name or its beginning; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try what this machine can do: compilers, GPU, teachers, disk. Exit code 1: something failed.

    What is merely not there is no failure, unless it is required: --require cuda --require teachers
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
        raise typer.Exit(1)
