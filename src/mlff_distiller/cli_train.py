"""``mlff-distiller train``: a student from labels that are there."""

from __future__ import annotations

import os
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
    probes: Annotated[
        Path | None,
        typer.Option(help="Labelled `sample --method probe`: the Hessian is learned along them."),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Dataset[:WEIGHT] of another teacher or level that trains along."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Train a student on LABELS, and test it on whole groups that were held out.

    On several GPUs: torchrun --nproc-per-node 4 -m mlff_distiller train LABELS --out RUN.
    """
    from mlff_distiller.config import load_config
    from mlff_distiller.extra import Sources
    from mlff_distiller.fit import fit

    chosen = load_config(config, settings or [], student=student, device=device)
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    sources = Sources(probes, tuple(_weighted(other) for other in also or []))
    with Display(console, quiet=quiet) as display:
        errors = fit(labels, out, chosen, init=init, sources=sources, on_progress=display)
    if quiet:
        return
    table = Table(title="held-out groups", title_justify="left", box=None, padding=(0, 2))
    table.add_column("error")
    table.add_column("value", justify="right")
    for name, value in errors.items():
        table.add_row(name, "–" if value is None else f"{value:.4g}")
    console.print(table)
    console.print(f"\nstudent  {out / 'student'}", soft_wrap=True)


def _weighted(text: str) -> tuple[Path, float]:
    path, colon, weight = text.rpartition(":")
    try:
        return (Path(path), float(weight)) if colon else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0
