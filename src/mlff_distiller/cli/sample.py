"""``mlff-distiller sample`` and ``plan``: structures before labels, and how many labels to buy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mlff_distiller.cli.progress import Display
from mlff_distiller.durable import replacing
from mlff_distiller.errors import ConfigError, StructureError

if TYPE_CHECKING:
    import numpy as np
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from mlff_distiller.workflows.plan import Plan

console = Console(highlight=False)


class Method(StrEnum):
    """How structures are made."""

    tree = "tree"
    md = "md"
    scan = "scan"
    approach = "approach"
    pool = "pool"
    probe = "probe"


_FREE = (Method.scan, Method.approach, Method.probe)
"""Need no forces."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def sample(
    structures: Annotated[list[str], typer.Argument(help="Files ASE reads; every frame a seed.")],
    out: Annotated[Path, typer.Option(help="extxyz file to write; must not exist.")],
    method: Annotated[
        Method,
        typer.Option(
            help="Rattle-relax tree, molecular dynamics, scan of the cell; approach: pairs "
            "pushed together; pool: make none, --select from those given; probe: pairs "
            "displaced both ways, for train --probes."
        ),
    ] = Method.tree,
    number: Annotated[
        int,
        typer.Option("--number", "-n", min=1, help="Structures; pairs of probe."),
    ] = 100,
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
    allow_download: Annotated[
        bool, typer.Option(help="Let the teacher fetch its weights.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Make structures worth labelling. Those of tree and MD carry the energies and forces used.

    Structures are appended as they are made: what an interrupted run wrote is good.
    """
    from mlff_distiller.sampling import probes
    from mlff_distiller.structure import enlarge
    from mlff_distiller.workflows.distill import read_structures

    if out.exists():
        raise ConfigError(f"{out} exists", remedy="remove it, or choose another --out")
    if method is Method.pool and select is None:
        raise ConfigError("--method pool selects from the structures given", expected="--select N")
    with Display(console, quiet=quiet) as display:
        frames: list[Atoms] = []
        if method is Method.pool:
            frames = _pool(structures)
        elif method is Method.scan:
            frames = _scanned(read_structures(structures))
        elif method is Method.approach:
            frames = _pushed(read_structures(structures), number, seed)
        elif method is Method.probe:
            seeds = read_structures(structures)
            frames = [atoms for pair in probes(seeds, number, seed) for atoms in pair]
        _check_selection(select, len(frames) or number)
        if not frames:
            seeds = [
                enlarge(atoms, 32) if atoms.pbc.any() else atoms
                for atoms in read_structures(structures)
            ]
            with _calculator(
                teacher, student, device, teacher_python, allow_download, display
            ) as source:
                keeper = _Keeper(source, out)
                _run(method, seeds, keeper, number, temperature, pressure, seed, display)
            frames = keeper.frames
        if select is not None:
            frames = _most_different(frames, select, seed, display)
        if select is not None or method in _FREE:  # what tree and MD made is there already
            with replacing(out) as partial:
                _append(partial, frames)
    if not quiet:
        console.print(f"{len(frames)} structures in {out}", soft_wrap=True)


def _check_selection(select: int | None, most: int) -> None:
    if select is not None and select > most:
        raise ConfigError(
            "--select asks for more structures than there are to choose from",
            expected=f"at most {most}",
            found=select,
            remedy="lower --select, raise --number, or give more structures",
        )


def _scanned(seeds: Sequence[Atoms]) -> list[Atoms]:
    from mlff_distiller.sampling import ScanSettings, scan

    frames, origins = scan(seeds, ScanSettings())
    if not frames:
        raise StructureError(
            "there is no cell to scan",
            expected="a structure that is periodic in three directions",
            found=", ".join(atoms.get_chemical_formula() for atoms in seeds[:3]),
            remedy="give a crystal, or sample by --method tree or md",
        )
    for atoms, origin in zip(frames, origins, strict=True):
        atoms.info.update(origin)
    return frames


def _pushed(seeds: Sequence[Atoms], number: int, seed: int) -> list[Atoms]:
    from mlff_distiller.sampling import ApproachSettings, approach
    from mlff_distiller.structure import enlarge

    seeds = [enlarge(atoms, 32) if atoms.pbc.any() else atoms for atoms in seeds]
    frames, origins = approach(seeds, number, ApproachSettings(), seed)
    if not frames:
        raise StructureError(
            "no two atoms can be pushed together",
            expected="atoms closer than 4 Å to each other",
            found=", ".join(atoms.get_chemical_formula() for atoms in seeds[:3]),
        )
    for atoms, origin in zip(frames, origins, strict=True):
        atoms.info.update(origin)
    return frames


def _pool(structures: Sequence[str]) -> list[Atoms]:
    """The different structures given, each with its file, frame and kin."""
    from mlff_distiller.batch import check_structure
    from mlff_distiller.labeling import read_structures

    frames = []
    for structure in read_structures(structures).all:
        check_structure(structure.atoms, structure.name)
        structure.atoms.info.update(structure.origin)
        frames.append(structure.atoms)
    return frames


def _most_different(frames: list[Atoms], n: int, seed: int, display: Display) -> list[Atoms]:
    from mlff_distiller.sampling import descriptors
    from mlff_distiller.sampling import select as farthest

    features = descriptors(
        frames,
        threads=len(os.sched_getaffinity(0)),
        on_frame=lambda done: display("describe", done, len(frames), ""),
    )
    chosen = farthest(features, n, seed, on_choice=lambda done: display("select", done, n, ""))
    return [frames[k] for k in sorted(chosen.tolist())]


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


@contextmanager
def _calculator(
    teacher: str | None,
    student: Path | None,
    device: str,
    python: str | None,
    allow_download: bool,
    display: Display,
) -> Iterator[Calculator]:
    """The teacher, started, so that it says itself why it cannot; or the student."""
    if (teacher is None) == (student is None):
        raise ConfigError("whose forces are to be used?", expected="one of --teacher and --student")
    if student is not None:
        from mlff_distiller.deploy import StudentCalculator

        yield StudentCalculator(student, device=device)
        return
    from mlff_distiller.teachers import TeacherCalculator

    with TeacherCalculator(
        str(teacher), device=device, python=python, allow_download=allow_download
    ) as source:
        display("teacher", 1, 1, source.identity.name)
        yield source


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
                if origin["source"] == "seed":
                    raise
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
    allow_download: Annotated[
        bool, typer.Option(help="Let the teacher fetch its weights.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train pilots on parts of the labels; say what more labels would bring, and cost."""
    from mlff_distiller.dataset import Dataset
    from mlff_distiller.teachers import TeacherCalculator
    from mlff_distiller.workflows import plan as planner
    from mlff_distiller.workflows.config import Config
    from mlff_distiller.workflows.train import split_labels

    folder = dataset / "dataset" if (dataset / "dataset").is_dir() else dataset
    labels = Dataset(folder)
    config = planner.lower_budget(replace(Config(), device=device), updates)
    source = None
    if teacher:
        source = TeacherCalculator(
            teacher, device=device, python=teacher_python, allow_download=allow_download
        )
    with Display(console, quiet=quiet or as_json) as display:
        if source is not None:  # before hours of training, not after
            display("teacher", 1, 1, source.identity.name)
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
