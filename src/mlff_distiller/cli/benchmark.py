"""``mlff-distiller benchmark`` and ``profile``: how fast molecular dynamics is, and why."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from mlff_distiller.cli.options import (
    CONTEXT,
    REFUSED,
    AsJson,
    Device,
    Dtype,
    Quiet,
    Seed,
    TeacherPython,
    TimeStep,
)
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import console, table

if TYPE_CHECKING:
    from mlff_distiller.measure import Result

EPILOG = (
    "Example: mlff-distiller profile --student run --teacher 7net-0 --system silicon:64"
    " --system silicon:1000 --out prof"
)
benchmark = typer.Typer(
    context_settings=CONTEXT,
    invoke_without_command=True,
    help="Measure molecular dynamics as users run it: whole trajectories, side by side.",
    epilog="Example: mlff-distiller benchmark --student run --teacher 7net-0 --system silicon:64"
    " --ensemble nve --ensemble nvt --out bench",
)


@benchmark.callback()
def run_benchmark(
    context: typer.Context,
    student: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="A run, a student's folder or a nep.txt; NAME=PATH names it. Repeatable.",
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="A teacher's SPEC, or NAME=SPEC; repeatable."),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYSTEM",
            show_default="silicon:64",
            help="NAME:ATOMS (silicon, copper, salt, water, ethanol, benzene, alkane, copper-slab, "
            "silicon-slab) or FILE[:ATOMS]; repeatable.",
        ),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="nve, nvt or npt; repeatable.", show_default="nve"),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="ase or run_md; repeatable.", show_default="both"),
    ] = None,
    replicas: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Copies moved at once, by run_md; repeatable.", show_default="1"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder for benchmark.json and benchmark.html."),
    ] = None,
    steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps after the warm-up, at least.")
    ] = 1000,
    warm_up: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps before the clock starts.")
    ] = 50,
    repeats: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Repetitions of each case; models are interleaved."),
    ] = 3,
    least_seconds: Annotated[
        float, typer.Option(metavar="S", min=0, help="Least time of a measurement, s.")
    ] = 1.0,
    most_seconds: Annotated[
        float | None,
        typer.Option(metavar="S", help="Longest time of a measurement, s, even short of --steps."),
    ] = None,
    temperature: Annotated[float, typer.Option(metavar="K", help="Temperature, K.")] = 300.0,
    pressure: Annotated[float, typer.Option(metavar="GPA", help="Pressure of npt, GPa.")] = 0.0,
    time_step: TimeStep = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    compile: Annotated[
        bool,
        typer.Option(
            "--compile", metavar="", help="Fuse the kernels of students that PyTorch runs."
        ),
    ] = False,
    teacher_python: TeacherPython = None,
    quiet: Quiet = False,
) -> None:
    """Measure molecular dynamics as users run it: whole trajectories, side by side."""
    if context.invoked_subcommand is not None:
        return
    from mlff_distiller.durable import claimed, write_json
    from mlff_distiller.errors import ConfigError
    from mlff_distiller.measure import MDBenchmark, Settings
    from mlff_distiller.measure.contenders import contender

    words = [_named(word) for word in [*(student or []), *(teacher or [])]]
    if out is None or not words:
        raise ConfigError(
            "nothing to measure, or no folder for the results",
            expected="--student or --teacher, and --out FOLDER",
        )
    _check_students(student or [])
    options: dict[str, Any] = {"device": device, "dtype": dtype, "python": teacher_python}
    measured = MDBenchmark(
        [contender(spec, name or None, compile=compile, **options) for name, spec in words],
        system or ["silicon:64"],
        ensembles=ensemble or ["nve"],  # type: ignore[arg-type]
        engines=engine or ["ase", "run_md"],  # type: ignore[arg-type]
        settings=Settings(
            n_steps=steps,
            warm_up=warm_up,
            repeats=repeats,
            temperature_K=temperature,
            pressure_GPa=pressure,
            time_step_fs=time_step,
            least_seconds=least_seconds,
            most_seconds=most_seconds,
            replicas=tuple(replicas or [1]),
            seed=seed,
        ),
        dtype=dtype,  # type: ignore[arg-type]
    )
    path = out / "benchmark.json"
    from mlff_distiller.reports.benchmark import write_result

    try:
        with claimed(out), Display(console, quiet=quiet) as display:
            result = measured.run(display, lambda so_far: write_json(path, so_far.content))
            files = write_result(result, out)
    finally:
        measured.close()
    if not quiet:
        _print_cases(result)
        for file in files.values():
            console.print(f"{file}", soft_wrap=True)
    if result.failed:
        raise ConfigError(
            f"{len(result.failed)} cases failed; the others are in {path}",
            found="\n".join(f"{row['case']}: {row['error']}" for row in result.failed),
        )


def _named(word: str) -> tuple[str, str]:
    """NAME=PATH apart; of an existing path that contains =, nothing is a name."""
    name, equals, spec = word.partition("=")
    if not equals or Path(word).exists() or "/" in name or ":" in name:
        return "", word
    return name, spec


def _print_cases(result: Result) -> None:
    rows = [("case", "atoms", "median ms", "p99", "ns/day", "µs/atom", "noise")]
    for case in result.cases:
        copies = f" x {case['replicas']}" if case["replicas"] > 1 else ""
        words = (case["model"], case["engine"], case["ensemble"], case["system"] + copies)
        latency, p99 = case["latency_ms"], case["latency_ms"]["p99"]
        rows.append(
            (
                " ".join(words),
                f"{case['n_atoms'] * case['replicas']}",
                f"{latency['median']:.4g}",
                "" if p99 is None else f"{p99:.4g}",
                f"{case['ns_per_day']:.3g}",
                f"{case['us_per_atom']:.3g}",
                f"{100 * case['noise']:.1f} %",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:  # a rich table would fold names in a narrow terminal
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        console.print(escape("  ".join([name.ljust(widths[0]), *cells])), soft_wrap=True)
    for case in result.cases:
        for where in ("host", "gpu"):
            if (case["memory"][where] or {}).get("grows"):
                rate = case["memory"][where]["growth_bytes_per_step"]
                console.print(
                    f"[bold red]memory grows[/] ({where}) by {rate:.0f} bytes per step: "
                    + escape(f"{case['model']} {case['engine']} {case['system']}"),
                    soft_wrap=True,
                )
    for row in result.skipped:
        console.print(f"left out: {escape(row['case'])}: {row['reason']}", soft_wrap=True)


AResult = Annotated[
    Path, typer.Argument(metavar="RESULT", help="benchmark.json, or the folder that holds it.")
]


@benchmark.command(epilog="Example: mlff-distiller benchmark compare before after")
def compare(a: AResult, b: AResult, as_json: AsJson = False) -> None:
    """Time of a step in B over that in A, case by case, with 95 % intervals."""
    from mlff_distiller.measure import compare as compared
    from mlff_distiller.measure import read_result
    from mlff_distiller.measure.results import machine_of, name_of

    before, after = read_result(a), read_result(b)
    rows = compared(before, after)
    if as_json:
        content = [{**asdict(row), "verdict": row.verdict} for row in rows]
        console.print_json(json.dumps({"schema": 1, "cases": content}))
        return
    if machine_of(before) != machine_of(after):
        console.print(f"A ran on {machine_of(before)}, B on {machine_of(after)}", soft_wrap=True)
    ratios = table(("case", "A, ms", "B, ms", "B / A", "95 %", "B is"), left=("case", "B is"))
    colors = {"slower": "red", "faster": "green", "same": "dim"}
    for row in rows:
        ratios.add_row(
            escape(name_of(row.key)),
            f"{row.a_ms:.4g}",
            f"{row.b_ms:.4g}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} – {row.high:.3f}",
            f"[{colors[row.verdict]}]{row.verdict}[/]",
        )
    console.print(ratios)


Database = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Folder of baselines, one file a machine.")
]


@benchmark.command(
    epilog="Example: mlff-distiller benchmark check bench --against benchmarks/baselines"
)
def check(
    result: AResult,
    against: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER", help="Folder of baselines, one file a machine; or one such file."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Fail if a step is slower than this machine's baseline by more than noise explains."""
    from mlff_distiller.measure import check as checked
    from mlff_distiller.measure import read_result
    from mlff_distiller.measure.results import name_of

    verdicts = checked(read_result(result), against)
    if as_json:
        content = [{**asdict(row), "passed": row.passed} for row in verdicts]
        console.print_json(json.dumps({"schema": 1, "cases": content}))
    else:
        for row in verdicts:
            mark = "[green]✓[/]" if row.passed else "[red]✗[/]"
            console.print(
                f"{mark} {escape(name_of(row.key))}: {row.now_ms:.4g} ms, was {row.baseline_ms:.4g}"
                f" ({100 * row.change:+.1f} %, allowed {100 * row.limit:.1f} %)",
                soft_wrap=True,
            )
    if not all(row.passed for row in verdicts):
        raise typer.Exit(REFUSED)


@benchmark.command(
    epilog="Example: mlff-distiller benchmark record bench --into benchmarks/baselines"
)
def record(result: AResult, into: Database) -> None:
    """Make a result the baseline of the machine it ran on."""
    from mlff_distiller.measure import read_result
    from mlff_distiller.measure import record as recorded

    console.print(f"{recorded(read_result(result), into)}", soft_wrap=True)


@benchmark.command(epilog="Example: mlff-distiller benchmark page bench --out bench.html")
def page(
    result: AResult,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file to write.")],
) -> None:
    """Make the HTML page of a result again."""
    from mlff_distiller.measure import read_result
    from mlff_distiller.reports.benchmark import write_page

    write_page(out, read_result(result))
    console.print(f"{out}", soft_wrap=True)


def profile(
    student: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="A run, a student's folder or a nep.txt; NAME=PATH names it. Repeatable.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC", help="A teacher's SPEC, or NAME=SPEC; its library is loaded right here."
        ),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SYSTEM", help="As for benchmark; repeatable.", show_default="silicon:64"
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="ase or run_md; repeatable.", show_default="both"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for profile.json, profile.html and the traces."
        ),
    ] = None,
    ensemble: Annotated[str, typer.Option(metavar="NAME", help="nve, nvt or npt.")] = "nve",
    steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps timed, and calls of each part.")
    ] = 200,
    warm_up: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps before the clock starts.")
    ] = 30,
    traced: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps under PyTorch's profiler.")
    ] = 10,
    temperature: Annotated[float, typer.Option(metavar="K", help="Temperature, K.")] = 300.0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    quiet: Quiet = False,
) -> None:
    """Show where a step goes, part by part and kernel by kernel, and what to do about it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or PyTorch's profiler prints its own steps
    from mlff_distiller.durable import claimed
    from mlff_distiller.errors import ConfigError
    from mlff_distiller.measure.contenders import contender
    from mlff_distiller.measure.profiling import ProfileSettings
    from mlff_distiller.measure.profiling import profile as profiled
    from mlff_distiller.reports.profile import write_profile

    words = [_named(word) for word in [*(student or []), *([teacher] if teacher else [])]]
    if out is None or not words:
        raise ConfigError(
            "nothing to profile, or no folder for the results",
            expected="--student or --teacher, and --out FOLDER",
        )
    _check_students(student or [])
    with claimed(out), Display(console, quiet=quiet) as display:
        found = profiled(
            [contender(spec, name or None, device=device, dtype=dtype) for name, spec in words],  # type: ignore[arg-type]
            system or ["silicon:64"],
            engines=engine or ["ase", "run_md"],  # type: ignore[arg-type]
            settings=ProfileSettings(
                n_steps=steps,
                warm_up=warm_up,
                traced=traced,
                ensemble=ensemble,  # type: ignore[arg-type]
                temperature_K=temperature,
            ),
            device=device,
            dtype=dtype,  # type: ignore[arg-type]
            out=out,
            on_progress=display,
        )
        files = write_profile(found, out)
    if quiet:
        return
    for case in found.cases:
        title = f"{case['model']}, {case['engine']}, {case['system']}"
        console.print(
            f"[bold]{escape(title)}[/]: {case['step_ms']:.4g} ms per step", soft_wrap=True
        )
        for row in case["phases"]:
            console.print(f"  {row['name']:<16}{row['ms']:10.4f} ms{row['percent']:8.1f} %")
        for finding in case["findings"]:
            console.print(f"  → {escape(finding['text'])}", soft_wrap=True)
    for file in files.values():
        console.print(f"{file}", soft_wrap=True)


def _check_students(words: list[str]) -> None:
    from mlff_distiller.errors import ConfigError

    for word in words:
        path = Path(_named(word)[1])
        if not path.exists():
            raise ConfigError(
                f"there is no student {path}",
                expected="a run's folder, a student's, or a nep.txt",
            )
