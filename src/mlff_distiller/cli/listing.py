"""``mlff-distiller teachers``, ``students``, ``settings``: what there is to choose from."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer
from rich.markup import escape

from mlff_distiller.cli.options import AsJson
from mlff_distiller.cli.shown import console, table
from mlff_distiller.errors import ConfigError


def teachers(
    part: Annotated[
        str, typer.Argument(metavar="PART", help="Only names or families that contain this.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the teachers, with their licences, and which are installed."""
    from mlff_distiller.teachers import registered_teachers

    rows = [
        row for row in registered_teachers() if part.lower() in f"{row.name} {row.family}".lower()
    ]
    if as_json:
        print(json.dumps([{**asdict(row), "installed": row.installed} for row in rows], indent=1))
        return
    if not rows:
        raise ConfigError(f"no teacher's name contains {part!r}", remedy="mlff-distiller teachers")
    for family, members in groupby(rows, lambda row: row.family):
        own = list(members)
        state = "[green]installed[/]"
        if not own[0].installed:
            state = f"[yellow]not installed[/]: pip install {escape(own[0].requirements)}"
        licence = escape(own[0].licence)
        console.print(f"[bold]{escape(family)}[/]  {state}  ({licence})", soft_wrap=True)
        width = max(len(row.name) for row in own)
        for row in own:
            name, about = row.name.ljust(width), row.description
            console.print(f"  {escape(name)}  [dim]{escape(about)}[/]", soft_wrap=True)


def students(as_json: AsJson = False) -> None:
    """List the students, and their sizes."""
    from mlff_distiller.students.registry import architectures

    rows = [
        {
            "student": name,
            "sizes": ", ".join(own.presets),
            "runs by": f"{own.student.kernels} kernels" if own.student.kernels else "PyTorch",
            "description": own.description,
        }
        for name, own in architectures().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        name, sizes, by, about = (escape(str(value)) for value in row.values())
        console.print(f"[bold]{name}[/]  {about}; runs by {by}\n  {sizes}", soft_wrap=True)


def settings(
    part: Annotated[
        str,
        typer.Argument(metavar="PART", help="A section such as goal, or part of a name."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List every setting that KEY=VALUE and --config can change, with its default."""
    from mlff_distiller.workflows.config import leaves, meant, sections

    every = dict(leaves())
    about = sections().get(part)
    rows = {
        name: value
        for name, value in every.items()
        if (name.startswith(f"{part}.") if about else part in name)
    }
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        near = meant(part, [*every, *sections()])
        raise ConfigError(
            f"no setting's name contains {part!r}",
            remedy=f"did you mean {' or '.join(near)}?" if near else "mlff-distiller settings",
        )
    if about is not None:
        console.print(escape(inspect.getdoc(about) or "") + "\n", soft_wrap=True)
    made = table(("setting", "default"), left=("setting", "default"))
    for name, value in rows.items():
        made.add_row(name, escape("from the data" if value is None else json.dumps(value)))
    console.print(made)
