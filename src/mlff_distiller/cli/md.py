"""``mlff-distiller md``: molecular dynamics with a student."""

from __future__ import annotations

from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlff_distiller.cli.options import (
    AllowDownload,
    Device,
    Dtype,
    Quiet,
    TeacherPython,
    TeacherTimeout,
    TimeStep,
)
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import console, print_facts

EPILOG = (
    "Examples: mlff-distiller md silicon.extxyz --student run --ensemble nvt --temperature 300"
    " --time-ps 100 --out md.extxyz"
    "\n\nmlff-distiller md silicon.extxyz --student run --time-ps 100 --guard stop --out md.extxyz"
)


class Guard(StrEnum):
    """What is done where the student does not know what it meets."""

    off = "off"
    warn = "warn"
    stop = "stop"
    harvest = "harvest"
    teacher = "teacher"
    repair = "repair"


def md(
    structures: Annotated[
        list[Path],
        typer.Argument(metavar="STRUCTURES", help="Files ASE reads; every frame is a system."),
    ],
    student: Annotated[
        Path, typer.Option(metavar="PATH", help="A run, a student's folder, or a nep.txt.")
    ],
    time_ps: Annotated[
        float, typer.Option(metavar="PS", help="Duration, ps, counted from the first step.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Trajectory: .extxyz, .traj or .h5; the same command continues it."
        ),
    ],
    ensemble: Annotated[str, typer.Option(metavar="NAME", help="nve, nvt or npt.")] = "nve",
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            metavar="K", help="Temperature, K; one, or one for each system.", show_default="300"
        ),
    ] = None,
    pressure: Annotated[
        list[float] | None,
        typer.Option(
            metavar="GPA", help="Pressure, GPa; one, or one for each system.", show_default="0"
        ),
    ] = None,
    time_step: TimeStep = None,
    thermostat: Annotated[
        str, typer.Option(metavar="NAME", help="langevin or bussi.")
    ] = "langevin",
    friction: Annotated[
        float, typer.Option(metavar="1/PS", help="Friction of langevin, 1/ps.")
    ] = 1.0,
    thermostat_time: Annotated[
        float, typer.Option(metavar="FS", help="Time constant of bussi, fs.")
    ] = 100.0,
    pressure_coupling: Annotated[
        str, typer.Option(metavar="NAME", help="isotropic, anisotropic or triclinic.")
    ] = "isotropic",
    barostat_time: Annotated[
        float, typer.Option(metavar="FS", help="Time constant of the barostat, fs.")
    ] = 1000.0,
    compressibility: Annotated[
        float, typer.Option(metavar="1/GPA", help="Approximate, 1/GPa: solids 0.01, water 0.45.")
    ] = 0.01,
    replicas: Annotated[
        int, typer.Option(metavar="N", min=1, help="Copies of each structure.")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Repeats the run that had it.", show_default="drawn"),
    ] = None,
    frames_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps between frames.")
    ] = 1000,
    log_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps between rows of the log.")
    ] = 100,
    log_format: Annotated[str, typer.Option(metavar="NAME", help="csv or jsonl.")] = "csv",
    checkpoint_every: Annotated[
        float, typer.Option(metavar="S", help="Seconds between checkpoints.")
    ] = 60.0,
    skin: Annotated[
        float | None,
        typer.Option(
            metavar="A", help="Skin of the neighbour list, Å; the default suits the student."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    backend: Annotated[str, typer.Option(metavar="NAME", help="auto, warp or torch.")] = "auto",
    compile: Annotated[
        bool | None,
        typer.Option(
            help="Fuse the kernels of a student that PyTorch runs; by default where it pays."
        ),
    ] = None,
    guard: Annotated[
        Guard | None,
        typer.Option(
            metavar="NAME",
            help="What to do where the student's own estimate says that it does not know an atom's "
            "environment: warn; stop (exit code 3); harvest structures to label; teacher: it makes "
            "these steps; repair: label, learn, go on; off.",
            show_default="warn, if the student can tell",
        ),
    ] = None,
    guard_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps between the guard's looks.")
    ] = 50,
    guard_limit: Annotated[
        float | None,
        typer.Option(metavar="EV/A", help="Force error, eV/Å.", show_default="the student's"),
    ] = None,
    harvest: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for --guard harvest.",
            show_default="that of --out, as .harvest",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run whose labels --guard repair rehearses.",
            show_default="--student, if it is one",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="TEACHER",
            help="Teacher of --guard teacher, and of repair.",
            show_default="the run's",
        ),
    ] = None,
    teacher_steps: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Steps that the teacher makes before the student is asked."
        ),
    ] = 100,
    teacher_python: TeacherPython = None,
    allow_download: AllowDownload = False,
    teacher_timeout: TeacherTimeout = None,
    repairs: Annotated[
        int, typer.Option(metavar="N", min=0, help="Most repairs; after them it stops.")
    ] = 5,
    repair_labels: Annotated[
        int, typer.Option(metavar="N", min=1, help="Labels of each repair.")
    ] = 24,
    repair_updates: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Updates of each repair.",
            show_default="a quarter of the run's",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", metavar="", help="Delete what --out holds and start again."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run molecular dynamics of STRUCTURES with a student, all systems at once."""
    from mlff_distiller.labeling.structures import read_frames
    from mlff_distiller.md import run_md

    frames = [atoms for path in structures for atoms in read_frames(path) for _ in range(replicas)]
    settings: dict[str, Any] = {
        "time_ps": time_ps,
        "out": out,
        "frames_every": frames_every,
        "log_every": log_every,
        "log_format": log_format,
        "checkpoint_every_s": checkpoint_every,
        "overwrite": overwrite,
        "device": device,
        "dtype": dtype,
        "backend": backend,
        "compile": compile,
        "guard_every": guard_every,
        "guard_limit": guard_limit,
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
    with Display(console, quiet=quiet) as display, ExitStack() as stack:
        settings["on_progress"] = display
        if guard is Guard.repair:
            from mlff_distiller.workflows.repair import RepairSettings, run_of, run_with_repair

            result = run_with_repair(
                frames,
                run_of(student) if run is None else run,
                student=student,
                teacher=teacher,
                teacher_python=teacher_python,
                allow_download=allow_download,
                teacher_timeout_s=teacher_timeout,
                settings=RepairSettings(repair_labels, repair_updates, repairs),
                **settings,
            )
        else:
            if guard is Guard.teacher and teacher is not None:
                from mlff_distiller.teachers import TeacherCalculator

                source = TeacherCalculator(
                    teacher,
                    device=device,
                    python=teacher_python,
                    allow_download=allow_download,
                    timeout_s=teacher_timeout,
                )
                settings["teacher"] = stack.enter_context(source)
                settings["teacher_steps"] = teacher_steps
            mode: Any = None if guard is None else guard.value
            result = run_md(frames, student, guard=mode, harvest=harvest, **settings)
    if quiet:
        return
    speed = {"speed": f"{result.ns_per_day:.3g} ns/day"} if result.seconds > 0 else {}
    facts = {"steps": result.n_steps, **speed, "seed": result.seed}
    if result.trusted is not None:
        facts |= {
            "trusted": f"{100.0 * result.trusted:.6g} % of looks at atoms",
            "largest estimate": f"{result.max_forces_error:.3g} eV/Å off",
        }
    if result.teacher_steps:
        facts["made by the teacher"] = ", ".join(f"{a} to {b}" for a, b in result.teacher_steps)
    print_facts({**facts, **result.files})
