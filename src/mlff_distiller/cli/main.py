"""``mlff-distiller``: parses, calls, shows progress. What does the work is imported when needed."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from mlff_distiller.cli import benchmark as cli_measure
from mlff_distiller.cli import data as cli_data
from mlff_distiller.cli import doctor as cli_doctor
from mlff_distiller.cli import export as cli_export
from mlff_distiller.cli import label as cli_label
from mlff_distiller.cli import listing as cli_listing
from mlff_distiller.cli import md as cli_md
from mlff_distiller.cli import sample as cli_sample
from mlff_distiller.cli import train as cli_train
from mlff_distiller.cli import validate as cli_validate
from mlff_distiller.cli.options import (
    CONTEXT,
    REFUSED,
    AllowDownload,
    AsJson,
    ConfigFile,
    DeviceSetting,
    Quiet,
    Teacher,
    TeacherPython,
    TeacherTimeout,
)
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import (
    console,
    errors,
    print_facts,
    print_files,
    print_next,
    print_verdict,
)
from mlff_distiller.durable import explaining
from mlff_distiller.errors import DistillerError

MAKE, JUDGE, RUN, LOOK = "Make a student", "Judge it", "Run it", "Look things up"
_PANELS = {
    MAKE: ("distill", "label", "train", "sample", "plan"),
    JUDGE: ("validate", "benchmark", "profile"),
    RUN: ("md", "export"),
    LOOK: ("info", "data", "teachers", "students", "settings", "doctor"),
}


class _Commands(TyperGroup):
    """The commands in the order in which people need them; every one has its place."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        own = self.commands
        self.commands = {}
        for panel, names in _PANELS.items():
            for name in names:
                self.commands[name] = command = own.pop(name)
                command.rich_help_panel = panel  # type: ignore[attr-defined]
        if own:
            raise ValueError(f"no place for {', '.join(own)}")


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=CONTEXT,
    help="Turn a slow, accurate force field into a fast one for your chemistry.",
    epilog="Exit codes: 0 done, 1 an error, 2 a wrong command line, 3 done but the answer is no "
    "(rejected, damaged, failed), 130 and 143 interrupted: distill, label, train, md, validate and "
    "data import then continue if the command is repeated.",
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_measure.benchmark, name="benchmark")
for _name, _command, _epilog in (
    ("sample", cli_sample.sample, cli_sample.EPILOG),
    ("plan", cli_sample.plan, "Example: mlff-distiller plan run --teacher 7net-0"),
    ("label", cli_label.label, cli_label.EPILOG),
    ("train", cli_train.train, cli_train.EPILOG),
    ("md", cli_md.md, cli_md.EPILOG),
    ("validate", cli_validate.validate, cli_validate.EPILOG),
    ("export", cli_export.export, cli_export.EPILOG),
    ("profile", cli_measure.profile, cli_measure.EPILOG),
    ("teachers", cli_listing.teachers, "Example: mlff-distiller teachers mace"),
    ("students", cli_listing.students, "Example: mlff-distiller students"),
    ("settings", cli_listing.settings, "Example: mlff-distiller settings goal"),
    ("doctor", cli_doctor.doctor, "Example: mlff-distiller doctor --require cuda --disk runs"),
):
    app.command(_name, epilog=_epilog)(_command)


@app.command(
    epilog="Examples: mlff-distiller distill silicon.extxyz --teacher 7net-0 --out run"
    "\n\nmlff-distiller distill silicon.extxyz --teacher 7net-0 --out run --harvest pool"
)
def distill(
    structures: Annotated[
        list[str],
        typer.Argument(
            metavar="STRUCTURES",
            help="Files ASE reads, every frame a seed; then settings, see 'mlff-distiller "
            "settings'.",
        ),
    ],
    teacher: Teacher,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder of the run; the same command continues it."),
    ],
    student: cli_train.StudentName = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(metavar="K", help="Sampling temperature, K; repeatable.", show_default="300"),
    ] = None,
    labels: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Structures that the teacher labels at first.", show_default="300"
        ),
    ] = None,
    target_fidelity: Annotated[
        float | None,
        typer.Option(metavar="X", help="Force fidelity to reach, 0 to 1.", show_default="0.95"),
    ] = None,
    max_labels: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Most structures that the teacher labels.", show_default="3000"
        ),
    ] = None,
    max_hours: Annotated[
        float | None,
        typer.Option(metavar="HOURS", help="Longest time of all turns.", show_default="4"),
    ] = None,
    harvest: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="What md --guard harvest met: a file, a folder of files or a dataset, whose "
            "structures are labelled and trained on next; repeatable.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", help="Only say what the first turn will cost here."),
    ] = False,
    device: DeviceSetting = None,
    config: ConfigFile = None,
    teacher_python: TeacherPython = None,
    allow_download: AllowDownload = False,
    teacher_timeout: TeacherTimeout = None,
    quiet: Quiet = False,
) -> None:
    """Distil a teacher on STRUCTURES: sample, label, train and test until the goal is reached.

    Turn follows turn, with more labels, longer training or a larger student, until every check
    passes or a budget ends. The same command continues; with a larger budget it goes on.
    """
    from mlff_distiller.workflows import distill as pipeline
    from mlff_distiller.workflows.config import load_config

    files = [word for word in structures if not _is_setting(word)]
    settings = load_config(
        config,
        [word for word in structures if _is_setting(word)],
        student=student,
        sampling__temperature_K=temperature or None,
        labels=labels,
        device=device,
        evaluation__limits__forces_fidelity=target_fidelity,
        goal__max_labels=max_labels,
        goal__max_hours=max_hours,
    )
    source: dict[str, Any] = {
        "teacher_python": teacher_python,
        "allow_download": allow_download,
        "teacher_timeout_s": teacher_timeout,
    }
    if dry_run:
        from mlff_distiller.workflows.estimate import estimate, in_words

        for line in in_words(estimate(files, teacher, settings, **source)):
            console.print(escape(line), soft_wrap=True)
        return
    with Display(console, quiet=quiet, shares=_SHARES) as display:
        report = pipeline.distill(
            files, teacher, out, settings, **source, harvest=harvest or (), on_progress=display
        )
    if not quiet:
        print_verdict(report["verdict"])
        print_next(report.get("goal"))
        console.print()
        print_files({"report": out / "report.html", "student": out / "student"})
    if report["verdict"]["status"] != "approved":
        raise typer.Exit(REFUSED)


_SHARES = {"teacher": 0.0, "relax": 0.0, "label": 0.5, "round": 0.0, "train": 0.35, "report": 0.0}
"""Shares of a turn's time; its checks take the rest. A round is part of labelling."""


def _is_setting(word: str) -> bool:
    return "=" in word and not Path(word).exists()


@app.command(epilog="Example: mlff-distiller info run/student")
def info(
    path: Annotated[
        Path, typer.Argument(metavar="STUDENT", help="A run, a student's folder, or a nep.txt.")
    ],
    as_json: AsJson = False,
) -> None:
    """Describe a student: elements, size, cutoff, teacher."""
    from mlff_distiller.students import load_student, read_config

    student = load_student(path)
    about = read_config(path)["about"] if path.is_dir() else {}
    facts = {
        "architecture": student.architecture,
        "elements": list(student.elements),
        "n_parameters": sum(parameter.numel() for parameter in student.parameters()),
        "cutoff": student.cutoff,
        "reference_energies": dict(
            zip(student.elements, student.reference_energies.tolist(), strict=True)
        ),
        "teacher": (about.get("teacher") or {}).get("name"),
        "n_labels": about.get("n_labels"),
        "temperature_K": about.get("temperature_K"),
    }
    print_facts(facts, as_json)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.print(version("mlff-distiller"))
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", metavar="", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", help="Print the version.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors as text; the exit codes are those that ``--help`` lists."""

    def terminated(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminated)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    # Idle OpenMP threads that spin make a shared machine's every small operation wait for a time
    # slice: a step was seen to slow down twentyfold. Read when torch loads, here and in teachers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with explaining("the operating system refused"):
            app(standalone_mode=True)
    except DistillerError as error:
        if "--debug" in sys.argv:
            raise
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _print_interrupted()
        sys.exit(130)
    except SystemExit as end:
        if end.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # typer turns ctrl-C into it
            _print_interrupted()
        raise


def _print_interrupted() -> None:
    errors.print(
        "interrupted; distill, label, train, md, validate and data import continue"
        " if the command is repeated",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
