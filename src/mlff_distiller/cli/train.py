"""``mlff-distiller train``: a student from labels that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlff_distiller.cli.options import ConfigFile, DeviceSetting, Quiet
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import console, print_files, table
from mlff_distiller.errors import ConfigError, from_pydantic
from mlff_distiller.students.registry import architecture_names

if TYPE_CHECKING:
    from mlff_distiller.workflows.tune.trial import TuneSettings

EPILOG = (
    "Examples: mlff-distiller train labels --out run training.updates=20000"
    "\n\nmlff-distiller train labels --tune 30 --max-us-per-atom 20 --out run"
)
SEARCH = "Search for a student"


def _student_names(incomplete: str) -> list[str]:
    return [name for name in architecture_names() if name.startswith(incomplete)]


StudentName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="auto",
        autocompletion=_student_names,
        help=f"{', '.join(architecture_names())}, or with a size; see 'students'.",
    ),
]


def train(
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="Dataset: labelled, imported, or of a run.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder to make; the same command continues it.")
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, see 'mlff-distiller settings'."),
    ] = None,
    student: StudentName = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Student to start from, whose sizes stay; try a lower learning rate.",
        ),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(
            metavar="LABELS",
            help="Labelled `sample --method probe`: the Hessian is learned along them.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABELS",
            help="Dataset[:WEIGHT] of another teacher or level, to train on as well.",
        ),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Try this many sizes and settings, then train the best in full.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    max_us_per_atom: Annotated[
        float | None,
        typer.Option(
            metavar="US",
            help="With --tune: at most this many µs per atom and MD step.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    max_ms_per_step: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="With --tune: at most this many ms per MD step.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    tune_minutes: Annotated[
        float | None,
        typer.Option(
            metavar="MIN",
            help="With --tune: start no trial after this many minutes.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    speed_atoms: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="With --tune: time MD of about this many atoms.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    target_fidelity: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Train presets, the fastest first, until one is this faithful.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    device: DeviceSetting = None,
    config: ConfigFile = None,
    quiet: Quiet = False,
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
    also = also or []
    _check_combination(init, tune, target_fidelity, how, {"--probes": probes, "--also": also})
    chosen = load_config(config, settings or [], student=student, device=device)
    quiet = quiet or os.environ.get("RANK", "0") != "0"
    sources = Sources(probes, tuple(_weighted(other) for other in also))
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
            from mlff_distiller.workflows.train import train as fit

            errors = fit(labels, out, chosen, init=init, sources=sources, on_progress=display)
    if quiet:
        return
    if tune is not None:
        _print_front(found)
    elif target_fidelity is not None:
        _print_presets(found)
    _print_errors(errors)
    console.print()
    front = {"front": out / "front.html"} if tune is not None else {}
    print_files({**front, "student": out / "student"})


def _check_combination(
    init: Path | None,
    tune: int | None,
    target_fidelity: float | None,
    how: Mapping[str, float | None],
    more: Mapping[str, object],
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
    searched = [option for option in given if option != "--init"]
    if searched and (beside := [option for option, value in more.items() if value]):
        raise ConfigError(
            f"{searched[0]} searches with the labels alone, without {' and '.join(beside)}",
            remedy=f"search first, then train the student found with {' and '.join(beside)}",
        )
    if tune is None and any(value is not None for value in how.values()):
        raise ConfigError(
            "limits of a search were given without --tune",
            expected="--tune N with --max-us-per-atom, --max-ms-per-step, --tune-minutes or "
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
        raise from_pydantic(error, "invalid search") from error


def _print_errors(errors: Mapping[str, float | None]) -> None:
    rows = table(("error", "value"), left=("error",), title="held-out groups")
    for name, value in errors.items():
        rows.add_row(name, "–" if value is None else f"{value:.4g}")
    console.print(rows)


def _weighted(text: str) -> tuple[Path, float]:
    path, colon, weight = text.rpartition(":")
    try:
        return (Path(path), float(weight)) if colon else (Path(text), 1.0)
    except ValueError:
        return Path(text), 1.0


def _print_front(found: Mapping[str, Any]) -> None:
    system = found["system"]
    title = f"front of {len(found['trials'])} trials, {system['formula']} on {found['device']}"
    headings = ("trial", "student", "fidelity", "force MAE, meV/Å", "µs/atom", "parameters", "")
    rows = table(headings, left=("student",), title=title)
    front = [row for row in found["trials"] if row["on_front"]]
    for row in sorted(front, key=lambda row: row["ms_per_step"]):
        rows.add_row(
            f"{row['number']}",
            row["settings"]["student"],
            f"{row['forces_fidelity']:.4f}",
            f"{row['forces_mae_meV_per_A']:.1f}",
            f"{row['us_per_atom']:.3g}",
            f"{row['n_parameters']:,}",
            "chosen" if row["number"] == found["best"] else "",
        )
    console.print(rows)
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
    headings = ("preset", "fidelity", "MAE, meV/Å", "µs/atom", "parameters", "")
    rows = table(headings, left=("preset",), title=title)
    for row in found["presets"]:
        tried = row["forces_fidelity"] is not None
        rows.add_row(
            row["preset"],
            f"{row['forces_fidelity']:.4f}" if tried else "not trained",
            f"{row['forces_mae_meV_per_A']:.1f}" if tried else "",
            f"{row['us_per_atom']:.3g}",
            f"{row['n_parameters']:,}",
            "chosen" if row["preset"] == found["chosen"] else "",
        )
    console.print(rows)
    console.print()
