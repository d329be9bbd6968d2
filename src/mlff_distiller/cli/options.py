"""Options that several commands have, each with one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Teacher = Annotated[
    str, typer.Option(help="A name from 'teachers', FAMILY:PATH, or ase:module:factory.")
]
TeacherPython = Annotated[
    str | None,
    typer.Option(help="Python interpreter of another environment, for the teacher."),
]
AllowDownload = Annotated[bool, typer.Option(help="Let the teacher download its weights.")]
TeacherTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="End a teacher that gives no answer for so long. Hours if not given, by what it took.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DeviceSetting = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
"""Where a file of settings may say it instead."""
Dtype = Annotated[str, typer.Option(help="Precision of students: float32 or float64.")]
TimeStep = Annotated[float | None, typer.Option(help="fs; default: 0.5 with hydrogen, 1 without.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file of settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
