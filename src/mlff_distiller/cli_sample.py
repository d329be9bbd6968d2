"""``mlff-distiller sample`` and ``plan``: structures before labels, and how many labels to buy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlff_distiller.errors import ConfigError
from mlff_distiller.progress import Display

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from mlff_distiller.planner import Plan

console = Console(highlight=False)


class Method(StrEnum):
    """How structures are made."""

    tree = "tree"
    md = "md"
    scan = "scan"


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def sample(
    structures: Annotated[list[str], typer.Argument(help="Files ASE reads; every frame a seed.")],
    out: Annotated[Path, typer.Option(help="extxyz file to write; must not exist.")],
    method: Annotated[
        Method, typer.Option(help="Rattle-relax tree, molecular dynamics, or scan of the cell.")
    ] = Method.tree,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Structures to make.")] = 100,
    select: Annotated[
        int | None, typer.Option(min=1, help="Keep this many, those farthest from each other.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Teacher whose forces are used.")] = None,
    student: Annotated[
        Path | None, typer.Option(help="Student whose forces are used: quicker.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Temperature in K; repeatable.")
    ] = None,
    pressure: Annotated[
        list[float] | None, typer.Option(help="Pressure in GPa; makes MD NPT; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    teacher_python: Annotated[
        str | None, typer.Option(help="Python of another environment for the teacher.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Make structures worth labelling. Those of tree and MD carry the energies and forces used.

    Structures are appended as they are made: what an interrupted run wrote is good.
    """
    from mlff_distiller.pipeline import read_structures
    from mlff_distiller.sampling import ScanSettings, enlarge, scan

    if out.exists():
        raise ConfigError(f"{out} exists", remedy="remove it, or choose another --out")
    seeds = read_structures(structures)
    frames: list[Atoms]
    with Display(console, quiet=quiet) as display:
        if method is Method.scan:
            frames, _ = scan(seeds, ScanSettings())
            _append(out, frames)
        else:
            seeds = [enlarge(atoms, 32) if atoms.pbc.any() else atoms for atoms in seeds]
            calculator = _calculator(teacher, student, device, teacher_python)
            keeper = _Keeper(calculator, out)
            _run(method, seeds, keeper, number, temperature, pressure, seed, display)
            frames = keeper.frames
        if select is not None:
            from mlff_distiller.sampling import descriptors
            from mlff_distiller.sampling.select import select as farthest

            features = descriptors(frames, on_frame=lambda n: display("select", n, len(frames), ""))
            frames = [frames[k] for k in sorted(farthest(features, select, seed).tolist())]
            out.unlink()
            _append(out, frames)
    if not quiet:
        console.print(f"{len(frames)} structures in {out}", soft_wrap=True)


def _run(
    method: Method,
    seeds: Sequence[Atoms],
    keeper: _Keeper,
    number: int,
    temperature: list[float] | None,
    pressure: list[float] | None,
    seed: int,
    display: Display,
) -> None:
    from mlff_distiller.sampling import DynamicsSettings, RattleSettings, grow, walk, walkers

    temperatures = tuple(temperature or [300.0])

    def shown(n: int) -> None:
        display("sample", n, number, "")

    if method is Method.tree:
        settings = RattleSettings(temperature_K=temperatures)
        grow(seeds, keeper, number, settings, seed, shown)
        return
    dynamics = DynamicsSettings()
    if pressure:
        dynamics = replace(dynamics, ensemble="npt", pressures_GPa=tuple(pressure))
    group = walkers(seeds, temperatures, dynamics)
    walk(group, keeper.calculator, keeper, number, dynamics, seed, None, shown)


def _calculator(
    teacher: str | None, student: Path | None, device: str, python: str | None
) -> Calculator:
    if (teacher is None) == (student is None):
        raise ConfigError("whose forces are to be used?", expected="one of --teacher and --student")
    if student is not None:
        from mlff_distiller.deploy import StudentCalculator

        return StudentCalculator(student, device=device)
    from mlff_distiller.teachers import TeacherCalculator

    return TeacherCalculator(str(teacher), device=device, python=python)


class _Keeper:
    """The sampler's ``label``: evaluates structures and appends them to a file."""

    def __init__(self, calculator: Calculator, out: Path) -> None:
        self.calculator, self.out = calculator, out
        self.frames: list[Atoms] = []

    def __call__(
        self, frames: Sequence[Atoms], provenance: Sequence[dict[str, Any]]
    ) -> list[dict[str, np.ndarray] | None]:
        from ase.calculators.singlepoint import SinglePointCalculator

        from mlff_distiller.errors import DistillerError

        answers: list[dict[str, np.ndarray] | None] = []
        done = []
        for atoms, origin in zip(frames, provenance, strict=True):
            known = atoms.copy()
            try:
                energy = self.calculator.get_potential_energy(known)
                forces = self.calculator.get_forces(known)
            except DistillerError:
                answers.append(None)
                continue
            known.info.update(origin)
            known.calc = SinglePointCalculator(known, energy=energy, forces=forces)
            done.append(known)
            answers.append({"energy": energy, "forces": forces})
        _append(self.out, done)
        self.frames += done
        return answers


def _append(out: Path, frames: Sequence[Atoms]) -> None:
    from ase.io import write

    if frames:
        write(out, list(frames), format="extxyz", append=True)


def plan(
    dataset: Annotated[Path, typer.Argument(help="A dataset's folder, or a run.")],
    sizes: Annotated[
        list[int] | None, typer.Option(help="Labels to train pilots on; repeatable.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Ask this teacher how far it disagrees with itself.")
    ] = None,
    updates: Annotated[int, typer.Option(min=10, help="Updates of each pilot training.")] = 2000,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    teacher_python: Annotated[
        str | None, typer.Option(help="Python of another environment for the teacher.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train pilots on parts of the labels; say what more labels would bring, and cost."""
    from mlff_distiller import planner
    from mlff_distiller.config import Config
    from mlff_distiller.dataset import Dataset
    from mlff_distiller.fit import split_labels
    from mlff_distiller.teachers import TeacherCalculator

    folder = dataset / "dataset" if (dataset / "dataset").is_dir() else dataset
    labels = Dataset(folder)
    config = planner.lower_budget(replace(Config(), device=device), updates)
    source = TeacherCalculator(teacher, device=device, python=teacher_python) if teacher else None
    with Display(console, quiet=quiet or as_json) as display:
        found = planner.plan(
            labels, split_labels(labels, config), config, sizes or (100, 333, 1000), source, display
        )
    if source is not None:
        source.close()
    ahead = [factor * found.points[-1].n_labels for factor in (2, 4, 10)]
    if as_json:
        content = {**asdict(found), "advice": found.advice(), "saturated": found.saturated}
        content["predicted"] = [{"n_labels": n, "error": found.error(n)} for n in ahead]
        print(json.dumps(content, indent=1))
    elif not quiet:
        _print_plan(found, ahead)


def _print_plan(found: Plan, ahead: Sequence[int]) -> None:
    table = Table(box=None, padding=(0, 2))
    for heading in ("labels", "fidelity", "force MAE, meV/Å", "teacher, h", ""):
        table.add_column(heading, justify="right")
    hours = found.seconds_per_label / 3600.0
    for point in found.points:
        table.add_row(
            f"{point.n_labels}",
            f"{1 - point.error:.4f}",
            f"{point.forces_mae_meV_per_A:.1f}",
            f"{point.n_labels * hours:.2g}",
            "measured",
        )
    scale = found.points[-1].forces_mae_meV_per_A / found.points[-1].error
    for n in ahead:
        error = found.error(n)
        table.add_row(
            f"{n}", f"{1 - error:.4f}", f"{scale * error:.1f}", f"{n * hours:.2g}", "predicted"
        )
    console.print(table)
    if found.teacher_noise is not None:
        console.print(f"\nthe teacher disagrees with itself by {found.teacher_noise:.2%} of forces")
    console.print(f"\n{found.advice()}", soft_wrap=True)
