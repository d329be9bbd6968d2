"""Options that several commands have, each with one help text; what all commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
"""Settings of every group of commands: ``-h`` asks for help too."""
REFUSED = 3
"""Exit code of a command that did its work, and whose answer is no: rejected, damaged, failed."""

THE_TEACHER = "The teacher's process"
RUNNING = "Running"


def _teacher_names(incomplete: str) -> list[str]:
    from mlff_distiller.teachers import registered_teachers

    names = [row.name for row in registered_teachers()]
    return [name for name in names if name.startswith(incomplete) and name == name.lower()]


Teacher = Annotated[
    str,
    typer.Option(
        metavar="SPEC",
        help="A name from 'mlff-distiller teachers', FAMILY:PATH, or ase:module:factory.",
        autocompletion=_teacher_names,
    ),
]
TeacherPython = Annotated[
    str | None,
    typer.Option(
        metavar="PYTHON",
        help="Interpreter of another environment.",
        show_default="this one",
        rich_help_panel=THE_TEACHER,
    ),
]
AllowDownload = Annotated[
    bool,
    typer.Option(
        "--allow-download",
        metavar="",
        help="Let the teacher download its weights.",
        rich_help_panel=THE_TEACHER,
    ),
]
TeacherTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="End a teacher that has not answered for this long.",
        show_default="hours, by what it took before",
        rich_help_panel=THE_TEACHER,
    ),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu or cuda.", rich_help_panel=RUNNING)
]
DeviceSetting = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="auto, cpu or cuda.",
        show_default="auto",
        rich_help_panel=RUNNING,
    ),
]
"""Where a file of settings may say it instead."""
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Precision of students: float32 or float64.",
        rich_help_panel=RUNNING,
    ),
]
TimeStep = Annotated[
    float | None,
    typer.Option(metavar="FS", help="Time step, fs.", show_default="0.5 with hydrogen, 1 without"),
]
Seed = Annotated[
    int,
    typer.Option(metavar="N", min=0, help="Seed of random numbers.", rich_help_panel=RUNNING),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML file of settings.", rich_help_panel=RUNNING),
]
AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="Print JSON.", rich_help_panel=RUNNING)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", metavar="", help="Print errors only.", rich_help_panel=RUNNING),
]
