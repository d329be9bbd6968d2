"""``mlff-distiller doctor``, ``benchmark`` and ``profile``: what works here, and what it costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlff_distiller.cli.progress import Display

if TYPE_CHECKING:
    from mlff_distiller.measure import Result

console = Console(highlight=False)

benchmark = typer.Typer(
    invoke_without_command=True,
    help="Measure molecular dynamics as users run it: whole trajectories, side by side.",
    epilog="Example: mlff-distiller benchmark --student run --teacher 7net-0 --system silicon:64"
    " --ensemble nve --ensemble nvt --out bench",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_MARKS = {"ok": "[green]✓[/]", "absent": "[yellow]–[/]", "failed": "[red]✗[/]"}


def doctor(
    disk: Annotated[
        Path, typer.Option(help="A folder on the disk whose write speed is wanted.")
    ] = Path(),
    require: Annotated[
        list[str] | None,
        typer.Option(help="A check that must be ok, by its name or its beginning; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try what this machine can do: compilers, GPU, teachers, disk. Exit code 1: something failed.

    What is merely not there is no failure, unless it is required: --require cuda --require teachers
    """
    from mlff_distiller.errors import ConfigError
    from mlff_distiller.measure.doctor import Check, checks

    done: list[Check] = []
    for check in checks(disk):
        done.append(check)
        if not as_json:
            # A table's columns would wait for the slowest check.
            console.print(
                f"{_MARKS[check.status]} [bold]{check.name:<16}[/] {escape(check.found)}",
                soft_wrap=True,
            )
            if check.remedy:
                console.print(f"{'':19}→ {escape(check.remedy)}", soft_wrap=True)
    bad = [check.name for check in done if check.status == "failed"]
    for wanted in require or []:
        own = [check for check in done if check.name.startswith(wanted)]
        if not own:
            raise ConfigError(
                f"there is no check {wanted!r}", expected=", ".join(check.name for check in done)
            )
        bad += [check.name for check in own if check.status == "absent"]
    if as_json:
        console.print_json(json.dumps({"schema": 1, "ok": not bad, "checks": [*map(asdict, done)]}))
    elif bad:
        console.print(f"\n[bold red]not in order:[/] {', '.join(bad)}")
    else:
        console.print("\n[bold green]all in order[/]")
    if bad:
        raise typer.Exit(1)


@benchmark.callback()
def run_benchmark(
    context: typer.Context,
    student: Annotated[
        list[str] | None,
        typer.Option(
            help="A run, a student's folder or a nep.txt; NAME=PATH names it. Repeatable."
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="A teacher's SPEC, or NAME=SPEC; repeatable.")
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:ATOMS (silicon, copper, salt, water, ethanol, benzene, alkane, copper-slab, "
            "silicon-slab) or FILE[:ATOMS]; repeatable. silicon:64 if not given."
        ),
    ] = None,
    ensemble: Annotated[
        list[str] | None, typer.Option(help="nve, nvt or npt; repeatable. nve if not given.")
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="ase or run_md; repeatable. Both if not given.")
    ] = None,
    replicas: Annotated[
        list[int] | None, typer.Option(help="Copies moved at once, by run_md; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for benchmark.json and benchmark.html.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps after the warm-up, at least.")] = 1000,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="How often; the models take turns.")] = 3,
    least_seconds: Annotated[
        float, typer.Option(min=0, help="Fast models go on for so long.")
    ] = 1.0,
    most_seconds: Annotated[
        float | None, typer.Option(help="Slow models stop then, short of --steps.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    pressure: Annotated[float, typer.Option(help="GPa, of npt.")] = 0.0,
    time_step: Annotated[
        float | None, typer.Option(help="fs; 0.5 with hydrogen and 1 without if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of velocities and thermostats.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of students: float32 or float64.")] = "float32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Fuse the kernels of students that PyTorch runs.")
    ] = False,
    teacher_python: Annotated[
        str | None, typer.Option(help="Python of another environment for the teachers.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Measure molecular dynamics as users run it: whole trajectories, side by side."""
    if context.invoked_subcommand is not None:
        return
    from mlff_distiller.durable import write_json
    from mlff_distiller.errors import ConfigError
    from mlff_distiller.measure import MDBenchmark, Settings
    from mlff_distiller.measure.contenders import contender

    words = [_named(word) for word in [*(student or []), *(teacher or [])]]
    if out is None or not words:
        raise ConfigError(
            "what is to be measured, and where do the results go?",
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
    try:
        with Display(console, quiet=quiet) as display:
            result = measured.run(display, lambda so_far: write_json(path, so_far.content))
    finally:
        measured.close()
    from mlff_distiller.reports.benchmark import write_result

    files = write_result(result, out)
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
    """NAME=PATH apart; a path with = in it, such as exists, is no name."""
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
                    f"[bold red]memory grows[/] ({where}) by {rate:.0f} bytes a step: "
                    + escape(f"{case['model']} {case['engine']} {case['system']}"),
                    soft_wrap=True,
                )
    for row in result.skipped:
        console.print(f"left out: {escape(row['case'])}: {row['reason']}", soft_wrap=True)


AResult = Annotated[Path, typer.Argument(help="benchmark.json, or the folder that holds it.")]


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
    table = Table(box=None, padding=(0, 2))
    table.add_column("case")
    for heading in ("A, ms", "B, ms", "B / A", "95 %"):
        table.add_column(heading, justify="right")
    table.add_column("B is")
    colors = {"slower": "red", "faster": "green", "same": "dim"}
    for row in rows:
        table.add_row(
            escape(name_of(row.key)),
            f"{row.a_ms:.4g}",
            f"{row.b_ms:.4g}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} – {row.high:.3f}",
            f"[{colors[row.verdict]}]{row.verdict}[/]",
        )
    console.print(table)


Database = Annotated[Path, typer.Option(help="Folder of baselines, one file a machine.")]


@benchmark.command(
    epilog="Example: mlff-distiller benchmark check bench --against benchmarks/baselines"
)
def check(
    result: AResult,
    against: Annotated[
        Path, typer.Option(help="Folder of baselines, one file a machine; or one such file.")
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
        raise typer.Exit(1)


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
    result: AResult, out: Annotated[Path, typer.Option(help="The HTML file to write.")]
) -> None:
    """Make the HTML page of a result anew."""
    from mlff_distiller.measure import read_result
    from mlff_distiller.reports.benchmark import write_page

    write_page(out, read_result(result))
    console.print(f"{out}", soft_wrap=True)


def profile(
    student: Annotated[
        list[str] | None,
        typer.Option(
            help="A run, a student's folder or a nep.txt; NAME=PATH names it. Repeatable."
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="A teacher's SPEC, or NAME=SPEC; its library is loaded right here."),
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option(help="As for benchmark; repeatable. silicon:64 if not given."),
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="ase or run_md; repeatable. Both if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for profile.json, profile.html and the traces.")
    ] = None,
    ensemble: Annotated[str, typer.Option(help="nve, nvt or npt.")] = "nve",
    steps: Annotated[int, typer.Option(min=1, help="Timed plainly, and as many by phases.")] = 200,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before.")] = 30,
    traced: Annotated[int, typer.Option(min=1, help="Steps under PyTorch's profiler.")] = 10,
    temperature: Annotated[float, typer.Option(help="K.")] = 300.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of students: float32 or float64.")] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Show where a step goes: phases, kernels, copies, gaps, memory; and what to do about it."""
    from mlff_distiller.errors import ConfigError
    from mlff_distiller.measure.contenders import contender
    from mlff_distiller.measure.profiling import ProfileSettings
    from mlff_distiller.measure.profiling import profile as profiled

    words = [_named(word) for word in [*(student or []), *([teacher] if teacher else [])]]
    if out is None or not words:
        raise ConfigError(
            "what is to be profiled, and where do the results go?",
            expected="--student or --teacher, and --out FOLDER",
        )
    _check_students(student or [])
    with Display(console, quiet=quiet) as display:
        found = profiled(
            [contender(spec, name or None, device=device) for name, spec in words],
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
    from mlff_distiller.reports.profile import write_profile

    files = write_profile(found, out)
    if quiet:
        return
    for case in found.cases:
        console.print(
            f"[bold]{escape(case['model'])}, {case['engine']}, {escape(case['system'])}[/]: "
            f"{case['step_ms']:.4g} ms a step; phases add up to {case['difference_percent']:+.1f} %"
            f" of it (counting them costs {case['overhead']['phases_percent']:+.1f} %, tracing "
            f"{case['overhead']['tracing_percent']:+.0f} %)",
            soft_wrap=True,
        )
        parts = [f"{row['name']} {row['percent']:.1f} %" for row in case["phases"]]
        console.print("  " + ", ".join(parts), soft_wrap=True)
        for finding in case["findings"]:
            console.print(f"  → {escape(finding['text'])}", soft_wrap=True)
    for file in files.values():
        console.print(f"{file}", soft_wrap=True)


def _check_students(words: list[str]) -> None:
    from mlff_distiller.errors import ConfigError

    for word in words:
        path = Path(_named(word)[1])
        if not path.exists():
            raise ConfigError(f"there is no student {path}")
