"""``mlff-distiller label``: a teacher's labels for many structures, by one worker or many."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mlff_distiller.cli.options import (
    REFUSED,
    AllowDownload,
    Device,
    Quiet,
    Teacher,
    TeacherPython,
    TeacherTimeout,
)
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import console, print_findings
from mlff_distiller.errors import ConfigError

EPILOG = "Example: mlff-distiller label frames.xyz --teacher 7net-0 --out labels --workers 2"
_REASONS = 3  # for failures, the most common first


def label(
    structures: Annotated[
        list[str], typer.Argument(metavar="STRUCTURES", help="Files ASE reads, or datasets.")
    ],
    teacher: Teacher,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Dataset to make; the same command continues it.")
    ],
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="i/n: label the i-th of n parts, in a job of its own."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Teachers side by side here; cuda: one GPU each, in turn."
        ),
    ] = 1,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML of a batch scheduler whose jobs are the workers."),
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Most atoms in one pass of the teacher.",
            show_default="what suits it",
        ),
    ] = None,
    teacher_python: TeacherPython = None,
    allow_download: AllowDownload = False,
    teacher_timeout: TeacherTimeout = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", metavar="", help="Ask again for structures that are in quarantine."
        ),
    ] = False,
    max_failed: Annotated[
        float,
        typer.Option(
            metavar="X", min=0.0, max=1.0, help="Share of failures that is still a success."
        ),
    ] = 0.05,
    quiet: Quiet = False,
) -> None:
    """Label STRUCTURES with a teacher, each once; a killed run continues where it stopped.

    In a Slurm array: --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT (--array=1-n). The part
    that ends last collects all of them.
    """
    from mlff_distiller.workflows import label as workflow

    jobs = None
    if cluster is not None:
        from mlff_distiller.workflows.config import read_cluster

        jobs = read_cluster(cluster)
    with Display(console, quiet=quiet) as display:
        outcome = workflow.label(
            structures,
            teacher,
            out,
            shard=None if shard is None else parse_shard(shard),
            workers=workers,
            cluster=jobs,
            device=device,
            batch_size=batch_size,
            teacher_python=teacher_python,
            allow_download=allow_download,
            teacher_timeout_s=teacher_timeout,
            retry_failed=retry_failed,
            on_progress=display,
        )
    if not quiet:
        repeated = f"; {outcome.n_repeated} repeated" if outcome.n_repeated else ""
        console.print(
            f"{outcome.n_labelled} of {outcome.n_structures} labelled in {out}{repeated}; "
            f"teacher {outcome.teacher_seconds:.0f} s",
            soft_wrap=True,
        )
        if not outcome.collected:
            console.print("other parts are not done; the last one collects all", soft_wrap=True)
        print_findings(outcome.findings, out)
    if outcome.n_failed:
        console.print(
            f"{outcome.n_failed} failed and are named in quarantine.jsonl; "
            "--retry-failed asks again",
            soft_wrap=True,
        )
        _print_reasons(out)
    if outcome.n_failed > max_failed * outcome.n_structures:
        raise typer.Exit(REFUSED)


def _print_reasons(out: Path) -> None:
    from mlff_distiller.durable import EventLog

    rows = EventLog(out / "quarantine.jsonl").rows("label_failed", "error")
    for why, count in Counter(str(row["error"]) for row in rows).most_common(_REASONS):
        console.print(f"  {count} times: {escape(why)}", soft_wrap=True)


def parse_shard(text: str) -> tuple[int, int]:
    """``3/10`` as (3, 10); `ConfigError` unless 1 <= 3 <= 10."""
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError("--shard is wrong", expected="i/n with i from 1 to n", found=text)
    return number, count
