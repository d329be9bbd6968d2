"""``mlff-distiller md``: molecular dynamics with a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlff_distiller.cli.progress import Display

console = Console(highlight=False)


def md(
    structures: Annotated[
        list[Path], typer.Argument(help="Files ASE reads; every frame is a system.")
    ],
    student: Annotated[Path, typer.Option(help="A student's folder, or a nep.txt.")],
    time_ps: Annotated[float, typer.Option(help="Duration, from the very beginning.")],
    out: Annotated[
        Path, typer.Option(help="Trajectory: .extxyz, .traj or .h5; the same command continues it.")
    ],
    ensemble: Annotated[str, typer.Option(help="nve, nvt or npt.")] = "nve",
    temperature: Annotated[
        list[float] | None, typer.Option(help="K; one, or one for each system. 300 if not given.")
    ] = None,
    pressure: Annotated[
        list[float] | None, typer.Option(help="GPa; one, or one for each system. 0 if not given.")
    ] = None,
    time_step: Annotated[
        float | None, typer.Option(help="fs; 0.5 with hydrogen and 1 without if not given.")
    ] = None,
    thermostat: Annotated[str, typer.Option(help="langevin or bussi.")] = "langevin",
    friction: Annotated[float, typer.Option(help="Of langevin, 1/ps.")] = 1.0,
    thermostat_time: Annotated[float, typer.Option(help="Of bussi, fs.")] = 100.0,
    pressure_coupling: Annotated[
        str, typer.Option(help="isotropic, anisotropic or triclinic.")
    ] = "isotropic",
    barostat_time: Annotated[float, typer.Option(help="fs.")] = 1000.0,
    compressibility: Annotated[
        float, typer.Option(help="1/GPa, roughly: solids 0.01, water 0.45.")
    ] = 0.01,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of each structure.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="System k draws from seed + k.")] = 0,
    frames_every: Annotated[int, typer.Option(min=1, help="Steps between frames.")] = 1000,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between rows of the log.")] = 100,
    log_format: Annotated[str, typer.Option(help="csv or jsonl.")] = "csv",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60.0,
    skin: Annotated[
        float | None,
        typer.Option(help="Of the neighbour list, Å; by default it suits the student."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    backend: Annotated[str, typer.Option(help="auto, warp or torch.")] = "auto",
    compile: Annotated[
        bool | None,
        typer.Option(
            help="Fuse the kernels of a student that PyTorch runs; by default where it pays."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Run molecular dynamics of STRUCTURES with a student, all systems at once."""
    from mlff_distiller.errors import ConfigError
    from mlff_distiller.labeling.structures import read_frames
    from mlff_distiller.md import run_md

    if log_format not in ("csv", "jsonl"):
        raise ConfigError("unknown format of the log", expected="csv or jsonl", found=log_format)
    frames = [atoms for path in structures for atoms in read_frames(path) for _ in range(replicas)]
    settings: dict[str, Any] = {
        "ensemble": ensemble,
        "temperature_K": temperature or 300.0,
        "pressure_GPa": pressure or 0.0,
        "time_step_fs": time_step,
        "thermostat": thermostat,
        "friction_per_ps": friction,
        "thermostat_time_fs": thermostat_time,
        "pressure_coupling": pressure_coupling,
        "barostat_time_fs": barostat_time,
        "compressibility_per_GPa": compressibility,
        "skin_A": skin,
        "seed": seed,
    }
    with Display(console, quiet=quiet) as display:
        result = run_md(
            frames,
            student,
            time_ps=time_ps,
            out=out,
            frames_every=frames_every,
            log_every=log_every,
            log_format=log_format,  # type: ignore[arg-type]
            checkpoint_every_s=checkpoint_every,
            overwrite=overwrite,
            device=device,
            dtype=dtype,  # type: ignore[arg-type]
            backend=backend,  # type: ignore[arg-type]
            compile=compile,
            on_progress=display,
            **settings,
        )
    if quiet:
        return
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_row("steps", f"{result.n_steps}")
    if result.seconds > 0:
        table.add_row("speed", f"{result.ns_per_day:.3g} ns/day")
    for name, path in result.files.items():
        table.add_row(name, str(path))
    console.print(table)
