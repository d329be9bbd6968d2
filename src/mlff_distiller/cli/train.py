"""``mlff-distiller train``: a student from labels that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlff_distiller.cli.progress import Display
from mlff_distiller.errors import ConfigError
from mlff_distiller.students.registry import architecture_names

if TYPE_CHECKING:
    from mlff_distiller.workflows.tune.trial import TuneSettings

console = Console(highlight=False)
StudentName = Annotated[
    str | None,
    typer.Option(
        help=f"The student: {', '.join(architecture_names())}, or with a size; see 'students'."
    ),
]


def train(
    labels: Annotated[Path, typer.Argument(help="Dataset: labelled, imported, or of a run.")],
    out: Annotated[Path, typer.Option(help="Folder to make; the same command continues it.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE: a setting, as of distill.")
    ] = None,
    student: StudentName = None,
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
    tune: Annotated[
        int | None,
        typer.Option(min=1, help="Try so many sizes and settings, then train the best in full."),
    ] = None,
    max_us_per_atom: Annotated[
        float | None, typer.Option(help="With --tune: µs per atom and MD step at most.")
    ] = None,
    max_ms_per_step: Annotated[
        float | None, typer.Option(help="With --tune: ms per MD step at most.")
    ] = None,
    tune_minutes: Annotated[
        float | None, typer.Option(help="With --tune: begin no trial after so many minutes.")
    ] = None,
    speed_atoms: Annotated[
        int | None,
        typer.Option(min=1, help="With --tune: enlarge the structure that is timed to this size."),
    ] = None,
    target_fidelity: Annotated[
        float | None,
        typer.Option(help="Train presets, the fastest first, until one is this faithful."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Train a student on LABELS, and test it on whole groups that were held out.

    On several GPUs: torchrun --nproc-per-node 4 -m mlff_distiller train LABELS --out RUN.
    """
    from mlff_distiller.training.sources import Sources
    from mlff_distiller.workflows.config import load_config

    how = {
        "max_us_per_atom": max_us_per_atom,
        "max_ms_per_step": max_ms_per_step,
        "minutes": tune_minutes,
        "speed_atoms": speed_atoms,
    }
    _check_combination(init, tune, target_fidelity, how)
    chosen = load_config(config, settings or [], student=student, device=device)
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    sources = Sources(probes, tuple(_weighted(other) for other in also or []))
    with Display(console, quiet=quiet) as display:
        if tune is not None:
            from mlff_distiller.workflows.tune import tune as search

            wanted = _tune_settings(
                trials=tune, architectures=_architectures(student, settings, config), **how
            )
            found = search(labels, out, chosen, wanted, on_progress=display)
            errors = found["student"]["errors"]
        elif target_fidelity is not None:
            from mlff_distiller.workflows.tune import fastest

            among = _architectures(student, settings, config)
            found = fastest(
                labels, out, chosen, target_fidelity, architectures=among, on_progress=display
            )
            errors = found["errors"]
        else:
            from mlff_distiller.workflows.train import fit

            errors = fit(labels, out, chosen, init=init, sources=sources, on_progress=display)
    if quiet:
        return
    if tune is not None:
        _print_front(found)
    elif target_fidelity is not None:
        _print_presets(found)
    _print_errors(errors)
    if tune is not None:
        console.print(f"\nfront    {out / 'front.html'}", soft_wrap=True, end="")
    console.print(f"\nstudent  {out / 'student'}", soft_wrap=True)


def _check_combination(
    init: Path | None,
    tune: int | None,
    target_fidelity: float | None,
    how: Mapping[str, float | None],
) -> None:
    given = [
        option
        for option, value in (
            ("--init", init),
            ("--tune", tune),
            ("--target-fidelity", target_fidelity),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} do not go together", remedy="give one of them")
    if tune is None and any(value is not None for value in how.values()):
        raise ConfigError(
            "a limit of a search, but no search",
            expected="--tune N beside --max-us-per-atom, --max-ms-per-step, --tune-minutes or "
            "--speed-atoms",
        )


def _architectures(
    student: str | None, settings: Sequence[str] | None, config: Path | None
) -> tuple[str, ...]:
    """Those of the student that was asked for, wherever; all if none was."""
    from mlff_distiller.students.registry import architecture_of, architectures
    from mlff_distiller.workflows.config import load_config, read_yaml

    named = student is not None or any(word.startswith("student=") for word in settings or [])
    if not named and (config is None or "student" not in read_yaml(config)):
        return tuple(architectures())
    return (architecture_of(load_config(config, settings or [], student=student).student).name,)


def _tune_settings(**values: Any) -> TuneSettings:
    from pydantic import ValidationError

    from mlff_distiller.workflows.tune.trial import TuneSettings

    try:
        return TuneSettings(**values)
    except ValidationError as error:
        lines = [
            f"{problem['loc'][0]}: {problem['msg']} (found {problem['input']!r})"
            for problem in error.errors(include_url=False)
        ]
        raise ConfigError("invalid search:\n    " + "\n    ".join(lines)) from error


def _print_errors(errors: Mapping[str, float | None]) -> None:
    table = Table(title="held-out groups", title_justify="left", box=None, padding=(0, 2))
    table.add_column("error")
    table.add_column("value", justify="right")
    for name, value in errors.items():
        table.add_row(name, "–" if value is None else f"{value:.4g}")
    console.print(table)


def _weighted(text: str) -> tuple[Path, float]:
    path, colon, weight = text.rpartition(":")
    try:
        return (Path(path), float(weight)) if colon else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def _print_front(found: Mapping[str, Any]) -> None:
    system = found["system"]
    title = f"front of {len(found['trials'])} trials, {system['formula']} on {found['device']}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for heading in (
        "trial",
        "student",
        "fidelity",
        "force MAE, meV/Å",
        "µs/atom",
        "parameters",
        "",
    ):
        table.add_column(heading, justify="left" if heading == "student" else "right")
    front = [row for row in found["trials"] if row["on_front"]]
    for row in sorted(front, key=lambda row: row["ms_per_step"]):
        table.add_row(
            f"{row['number']}",
            row["settings"]["student"],
            f"{row['forces_fidelity']:.4f}",
            f"{row['forces_mae_meV_per_A']:.1f}",
            f"{row['us_per_atom']:.3g}",
            f"{row['n_parameters']:,}",
            "chosen" if row["number"] == found["best"] else "",
        )
    console.print(table)
    best = found["trials"][found["best"]]
    words = " ".join(f"{key}={value}" for key, value in best["settings"].items())
    console.print(f"\nchosen   {words}", soft_wrap=True)
    speed = found["student"]
    console.print(
        f"speed    {speed['us_per_atom']:.3g} µs/atom, {speed['ms_per_step']:.3g} ms per step of "
        f"{system['n_atoms']} atoms, trained in full\n",
        soft_wrap=True,
    )


def _print_presets(found: Mapping[str, Any]) -> None:
    title = f"target {found['target_fidelity']:g}, {found['system']['formula']}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for heading in ("preset", "fidelity", "MAE, meV/Å", "µs/atom", "parameters", ""):
        table.add_column(heading, justify="left" if heading == "preset" else "right")
    for row in found["presets"]:
        tried = row["forces_fidelity"] is not None
        table.add_row(
            row["preset"],
            f"{row['forces_fidelity']:.4f}" if tried else "not trained",
            f"{row['forces_mae_meV_per_A']:.1f}" if tried else "",
            f"{row['us_per_atom']:.3g}",
            f"{row['n_parameters']:,}",
            "chosen" if row["preset"] == found["chosen"] else "",
        )
    console.print(table)
    console.print()
