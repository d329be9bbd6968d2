"""``mlff-distiller train``: a student from labels that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mlff_distiller.progress import Display

console = Console(highlight=False)


def train(
    labels: Annotated[Path, typer.Argument(help="Dataset: labelled, imported, or of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to make; the same command continues it.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE: a setting, as of distill.")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The student: nep, or painn-32x2, painn-64x2, painn-128x3.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Student to begin with, whose sizes stay; try a lower learning rate."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Train a student on LABELS, and test it on whole groups that were held out."""
    from mlff_distiller.config import load_config
    from mlff_distiller.fit import fit

    chosen = load_config(config, settings or [], student=student, device=device)
    with Display(console, quiet=quiet) as display:
        errors = fit(labels, out, chosen, init=init, on_progress=display)
    if quiet:
        return
    table = Table(title="held-out groups", title_justify="left", box=None, padding=(0, 2))
    table.add_column("error")
    table.add_column("value", justify="right")
    for name, value in errors.items():
        table.add_row(name, "–" if value is None else f"{value:.4g}")
    console.print(table)
    console.print(f"\nstudent  {out / 'student'}", soft_wrap=True)
