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
from mlff_distiller.cli import md as cli_md
from mlff_distiller.cli import sample as cli_sample
from mlff_distiller.cli import train as cli_train
from mlff_distiller.cli import validate as cli_validate
from mlff_distiller.cli.options import (
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
    table,
)
from mlff_distiller.durable import explaining
from mlff_distiller.errors import DistillerError

_ORDER = (
    "distill", "label", "train", "sample", "plan", "validate", "md", "export", "benchmark",
    "profile", "data", "info", "teachers", "students", "doctor",
)  # fmt: skip


class _Commands(TyperGroup):
    """The commands in the order in which people need them; every one has its place."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        own = self.commands
        self.commands = {name: own[name] for name in sorted(own, key=_ORDER.index)}


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn a slow, accurate force field into a fast one for your chemistry.",
)
app.add_typer(cli_data.app, name="data")
app.command(
    "sample",
    epilog="Examples: mlff-distiller sample a.xyz --method md --student run/student --out new.xyz"
    "\n\nmlff-distiller sample pool.xyz --method pool --select 500 --out few.xyz",
)(cli_sample.sample)
app.command("plan", epilog="Example: mlff-distiller plan run --teacher 7net-0")(cli_sample.plan)
app.command(
    "label",
    epilog="Example: mlff-distiller label frames.xyz --teacher 7net-0 --out labels --workers 2",
)(cli_label.label)
app.command(
    "train",
    epilog="Examples: mlff-distiller train labels --out run training.updates=20000"
    "\n\nmlff-distiller train labels --tune 30 --max-us-per-atom 20 --out run",
)(cli_train.train)
app.command(
    "md",
    epilog="Examples: mlff-distiller md silicon.extxyz --student run/student --ensemble nvt"
    " --temperature 300 --time-ps 100 --out md.extxyz"
    "\n\nmlff-distiller md silicon.extxyz --student run --time-ps 100 --guard stop --out md.extxyz",
)(cli_md.md)
app.command("validate", epilog=cli_validate.EPILOG)(cli_validate.validate)
app.command("export", epilog=cli_export.EPILOG)(cli_export.export)
app.add_typer(cli_measure.benchmark, name="benchmark")
app.command(
    "profile",
    epilog="Example: mlff-distiller profile --student run --teacher 7net-0 --system silicon:64"
    " --system silicon:1000 --out prof",
)(cli_measure.profile)
app.command("doctor", epilog="Example: mlff-distiller doctor --require cuda --disk runs")(
    cli_doctor.doctor
)


@app.command(
    epilog="Examples: mlff-distiller distill silicon.extxyz --teacher 7net-0 --out run"
    "\n\nmlff-distiller distill silicon.extxyz --teacher 7net-0 --out run --harvest pool"
)
def distill(
    structures: Annotated[
        list[str],
        typer.Argument(help="Files ASE reads; every frame is a seed. KEY=VALUE: a setting."),
    ],
    teacher: Teacher,
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command continues it.")],
    student: cli_train.StudentName = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Sampling temperature, K; repeatable.")
    ] = None,
    labels: Annotated[
        int | None, typer.Option(help="How many structures the teacher labels at first.")
    ] = None,
    target_fidelity: Annotated[
        float | None, typer.Option(help="Force fidelity to reach; 0.95 if not given.")
    ] = None,
    max_labels: Annotated[
        int | None, typer.Option(help="Most structures that the teacher labels in all.")
    ] = None,
    max_hours: Annotated[float | None, typer.Option(help="Longest time of all turns.")] = None,
    harvest: Annotated[
        list[Path] | None,
        typer.Option(
            help="What md --guard harvest met: a file, a folder of files or a dataset, whose "
            "structures are labelled and trained on next; repeatable."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the first turn will cost here.")
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
        from mlff_distiller.workflows.estimate import estimate

        print_facts(estimate(files, teacher, settings, **source))
        return
    with Display(console, quiet=quiet) as display:
        report = pipeline.distill(
            files, teacher, out, settings, **source, harvest=harvest or (), on_progress=display
        )
    if not quiet:
        print_verdict(report["verdict"])
        print_next(report.get("goal"))
        console.print()
        print_files({"report": out / "report.html", "student": out / "student"})


def _is_setting(word: str) -> bool:
    return "=" in word and not Path(word).exists()


@app.command(epilog="Example: mlff-distiller teachers")
def teachers() -> None:
    """List the teachers this version knows, and what each needs."""
    from mlff_distiller.teachers import registered_teachers

    headings = ("teacher", "family", "licence", "install", "")
    known = table(headings, left=headings)
    for row in registered_teachers():
        known.add_row(row.name, row.family, row.licence, escape(row.install), row.description)
    console.print(known)


@app.command(epilog="Example: mlff-distiller students")
def students() -> None:
    """List the students this version knows, and their sizes."""
    from mlff_distiller.students.registry import architectures

    made = table(("student", "sizes", "runs by", ""), left=("student", "sizes", "runs by", ""))
    for name, own in architectures().items():
        engine = f"{own.student.kernels} kernels" if own.student.kernels else "PyTorch"
        made.add_row(name, ", ".join(own.presets), engine, own.description)
    console.print(made)


@app.command(epilog="Example: mlff-distiller info run/student")
def info(
    path: Annotated[Path, typer.Argument(help="A run, a student's folder, or a nep.txt.")],
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
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors as text, exit codes for scripts (130 and 143 when interrupted)."""

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
        "interrupted; distill, label, train, md and data import continue"
        " if the command is repeated",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
