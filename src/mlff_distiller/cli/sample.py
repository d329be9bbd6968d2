"""``mlff-distiller sample`` and ``plan``: structures before labels, and how many labels to buy."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlff_distiller.cli.options import (
    AllowDownload,
    AsJson,
    Device,
    Quiet,
    Seed,
    TeacherPython,
    TeacherTimeout,
)
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import console, table

if TYPE_CHECKING:
    from mlff_distiller.workflows.plan import Plan


EPILOG = (
    "Examples: mlff-distiller sample a.xyz --method md --student run/student --out new.xyz"
    "\n\nmlff-distiller sample pool.xyz --method pool --select 500 --out few.xyz"
)


class Method(StrEnum):
    """How structures are made."""

    tree = "tree"
    md = "md"
    scan = "scan"
    approach = "approach"
    pool = "pool"
    probe = "probe"


def sample(
    structures: Annotated[
        list[str],
        typer.Argument(metavar="STRUCTURES", help="Files ASE reads; every frame a seed."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="extxyz file to write; must not exist.")
    ],
    method: Annotated[
        Method,
        typer.Option(
            metavar="NAME",
            help="tree: rattle-relax trees; md: molecular dynamics; scan: strained cells; "
            "approach: pairs of atoms pushed together; probe: pairs of structures for "
            "train --probes; pool: only --select from STRUCTURES.",
        ),
    ] = Method.tree,
    number: Annotated[
        int,
        typer.Option(
            "--number",
            "-n",
            metavar="N",
            min=1,
            help="Structures to make; pairs of them for probe.",
        ),
    ] = 100,
    select: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Keep this many, those farthest from each other."),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Teacher whose forces are used.")
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Student whose forces are used, which is faster."),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(metavar="K", help="Temperature, K; repeatable.", show_default="300"),
    ] = None,
    pressure: Annotated[
        list[float] | None,
        typer.Option(metavar="GPA", help="Pressure, GPa; makes MD NPT; repeatable."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    teacher_python: TeacherPython = None,
    allow_download: AllowDownload = False,
    teacher_timeout: TeacherTimeout = None,
    quiet: Quiet = False,
) -> None:
    """Generate structures to label; tree and md also store the energies and forces they computed.

    Structures are appended as they are made: what an interrupted run wrote is good.
    """
    from mlff_distiller.workflows.sample import sample as sampled

    with Display(console, quiet=quiet) as display:
        frames = sampled(
            structures,
            out,
            method.value,
            number=number,
            select=select,
            teacher=teacher,
            student=student,
            temperature_K=temperature or (300.0,),
            pressure_GPa=pressure or (),
            seed=seed,
            device=device,
            teacher_python=teacher_python,
            allow_download=allow_download,
            teacher_timeout_s=teacher_timeout,
            on_progress=display,
        )
    if not quiet:
        console.print(f"{len(frames)} structures in {out}", soft_wrap=True)


def plan(
    dataset: Annotated[
        Path, typer.Argument(metavar="LABELS", help="A dataset's folder, or a run.")
    ],
    sizes: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Labels to train pilots on; repeatable.",
            show_default="100, 333, 1000",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Measure how far this teacher disagrees with itself."),
    ] = None,
    updates: Annotated[
        int, typer.Option(metavar="N", min=10, help="Updates of each pilot training.")
    ] = 2000,
    device: Device = "auto",
    teacher_python: TeacherPython = None,
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train pilots on parts of the labels, to predict what more labels would bring and cost."""
    from mlff_distiller.workflows import plan as planner

    with Display(console, quiet=quiet or as_json) as display:
        found = planner.plan(
            dataset,
            sizes or (100, 333, 1000),
            teacher,
            updates=updates,
            device=device,
            teacher_python=teacher_python,
            allow_download=allow_download,
            on_progress=display,
        )
    if as_json:
        content = {**asdict(found), "advice": found.advice(), "saturated": found.saturated}
        content["predicted"] = [{"n_labels": n, "error": found.error(n)} for n in found.ahead]
        print(json.dumps(content, indent=1))
    elif not quiet:
        _print_plan(found)


def _print_plan(found: Plan) -> None:
    curve = table(("labels", "fidelity", "force MAE, meV/Å", "teacher, h", ""))
    last = found.points[-1]
    rows = [(p.n_labels, p.error, p.forces_mae_meV_per_A, "measured") for p in found.points]
    for n in found.ahead:
        error = found.error(n)
        rows.append((n, error, last.forces_mae_meV_per_A * error / last.error, "predicted"))
    for n, error, mae, how in rows:
        hours = n * found.seconds_per_label / 3600.0
        curve.add_row(f"{n}", f"{1 - error:.4f}", f"{mae:.1f}", f"{hours:.2g}", how)
    console.print(curve)
    if found.teacher_noise is not None:
        console.print(f"\nthe teacher disagrees with itself by {found.teacher_noise:.2%} of forces")
    console.print(f"\n{found.advice()}", soft_wrap=True)
