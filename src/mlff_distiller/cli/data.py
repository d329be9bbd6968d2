"""``mlff-distiller data``: look at, check, import, export, merge, split and select labels."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlff_distiller.cli.progress import Display
from mlff_distiller.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from mlff_distiller.dataset import Dataset, Record

app = typer.Typer(no_args_is_help=True, help="Look at, check, import and divide labels.")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Folder = Annotated[Path, typer.Argument(help="A dataset's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_AT_ONCE = 1024
_SHOWN = 10


class Export(StrEnum):
    """Formats that can be written."""

    extxyz = "extxyz"
    nep = "nep"
    deepmd = "deepmd"


@app.command(epilog="Example: mlff-distiller data info run/dataset")
def info(path: Folder, as_json: AsJson = False) -> None:
    """Count the labels of a dataset and say whose they are."""
    from mlff_distiller.dataset import Dataset

    dataset = Dataset(path)
    teacher = dataset.metadata.get("teacher", {})
    facts = {
        "n_labels": len(dataset),
        "n_atoms": int(sum(dataset.n_atoms)),
        "n_groups": len(set(dataset.groups.tolist())),
        "teacher": teacher.get("name"),
        "teacher_licence": teacher.get("licence"),
        "label_set_hash": dataset.label_set_hash(),
    }
    print_facts(facts, as_json)


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    """A table of two columns, or JSON."""
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table(box=None, padding=(0, 2), show_header=False)
    for key, value in facts.items():
        if isinstance(value, dict):
            value = [
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            ]
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        table.add_row(key, escape(str(shown)) if value is not None else "unknown")
    console.print(table)


@app.command(epilog="Example: mlff-distiller data verify run/dataset")
def verify(
    path: Annotated[Path, typer.Argument(help="A dataset's folder, or one shard.")],
) -> None:
    """Check every record of a dataset against its checksum; exit code 1 if anything is damaged."""
    from mlff_distiller.dataset import verify

    report = verify(path)
    for problem in report.problems:
        errors.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
    console.print(f"{report.n_records} records read, {len(report.problems)} problems")
    if not report.ok:
        raise typer.Exit(1)


@app.command(
    "import",
    epilog="Example: mlff-distiller data import train.xyz --out labels --forces-key REF_forces "
    "--forces-unit eV/angstrom --energy-key REF_energy --energy-unit eV",
)
def import_(
    sources: Annotated[list[Path], typer.Argument(help="Files, or folders of DeePMD systems.")],
    out: Annotated[Path, typer.Option(help="Dataset to make; the same command continues it.")],
    format: Annotated[
        str | None,
        typer.Option(help="extxyz, nep, deepmd, spice, mace-hdf5, ase-db or ase; else guessed."),
    ] = None,
    level: Annotated[str, typer.Option(help="Name of the level of theory.")] = "imported",
    energy_key: Annotated[str | None, typer.Option(help="Name of the energy.")] = None,
    forces_key: Annotated[str | None, typer.Option(help="Name of the forces.")] = None,
    stress_key: Annotated[
        str | None, typer.Option(help="Name of the stress; none: leave it out.")
    ] = None,
    virial_key: Annotated[str | None, typer.Option(help="Name of the virial.")] = None,
    energy_unit: Annotated[str | None, typer.Option(help="eV, hartree, kcal/mol ...")] = None,
    forces_unit: Annotated[str | None, typer.Option(help="eV/angstrom, hartree/bohr ...")] = None,
    length_unit: Annotated[str | None, typer.Option(help="angstrom, bohr or nm.")] = None,
    stress_unit: Annotated[
        str | None, typer.Option(help="eV/angstrom^3, GPa, kbar ...; of a virial: eV ...")
    ] = None,
    stress_sign: Annotated[
        str | None, typer.Option(help="State in which it is positive: tension or compression.")
    ] = None,
    voigt_order: Annotated[
        str | None, typer.Option(help="Of six numbers, such as xx,yy,zz,yz,xz,xy.")
    ] = None,
    type_map: Annotated[
        str | None, typer.Option(help="Elements of DeePMD types without a map, such as O,H.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Import labels of other programs. Units and signs a file does not say must be given."""
    from mlff_distiller.dataset.formats import Conventions
    from mlff_distiller.dataset.importing import REJECTED, import_frames

    conventions = Conventions(
        energy_key, forces_key, stress_key, virial_key, energy_unit, forces_unit, length_unit,
        stress_unit, stress_sign, voigt_order,  # type: ignore[arg-type]  # checked by it
        None if type_map is None else tuple(type_map.split(",")),
    )  # fmt: skip
    with Display(console, quiet=quiet) as display:
        report = import_frames(
            sources,
            out,
            conventions,
            format=format,
            level=level,
            on_progress=lambda share, n: display("import", int(1000 * share), 1000, f"{n} frames"),
        )
    if not quiet:
        console.print(
            f"{report.n_imported} of {report.n_frames} frames imported into {out}, "
            f"{report.n_repeated} repeated, {report.n_rejected} rejected",
            soft_wrap=True,
        )
    if report.n_rejected:
        errors.print(f"rejected frames are named in {out / REJECTED}", soft_wrap=True)
    if not report.n_imported:
        raise typer.Exit(1)


@app.command(epilog="Example: mlff-distiller data export labels --out train.xyz --format nep")
def export(
    path: Folder,
    out: Annotated[Path, typer.Option(help="File to write, or folder for deepmd.")],
    format: Annotated[Export, typer.Option(help="What to write.")] = Export.extxyz,
) -> None:
    """Write labels for other programs; numbers read back bit for bit."""
    from mlff_distiller.dataset import Dataset
    from mlff_distiller.dataset.formats import write_records

    n = write_records(out, Dataset(path).iterate(), format.value)
    console.print(f"{n} frames in {out}", soft_wrap=True)


@app.command(epilog="Example: mlff-distiller data merge a b --out both")
def merge(
    paths: Annotated[list[Path], typer.Argument(help="Datasets' folders.")],
    out: Annotated[Path, typer.Option(help="Dataset to make.")],
    allow_mixed: Annotated[
        bool, typer.Option(help="Merge labels of different teachers: seldom a good idea.")
    ] = False,
) -> None:
    """Put datasets of one teacher together; labels that are in several are kept once."""
    from mlff_distiller.dataset import Dataset

    parts = [Dataset(path) for path in paths]
    teachers = [part.metadata.get("teacher") for part in parts]
    others = [path for path, teacher in zip(paths, teachers, strict=True) if teacher != teachers[0]]
    if others and not allow_mixed:
        raise ConfigError(
            f"{others[0]} and {paths[0]} have different teachers",
            expected=_shown(teachers[0]),
            found=_shown(teachers[paths.index(others[0])]),
            remedy="--allow-mixed merges them all the same",
        )
    groups = _Renumbered()
    records = (
        groups.of(number, record) for number, part in enumerate(parts) for record in part.iterate()
    )
    metadata = {"teacher": teachers[0] if not others else {"name": "mixed", "of": teachers}}
    n, repeated = _write(out, metadata, records)
    console.print(f"{n} labels in {out}, {repeated} repeated", soft_wrap=True)


def _shown(teacher: Any) -> str:
    return json.dumps(teacher, sort_keys=True)


class _Renumbered:
    """Groups of several datasets, which may use the same numbers."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}

    def of(self, part: int, record: Record) -> Record:
        from dataclasses import replace

        own = self._numbers.setdefault((part, record.group), len(self._numbers))
        return replace(record, group=own)


def _write(out: Path, metadata: dict[str, Any], records: Iterable[Record]) -> tuple[int, int]:
    """A new dataset of ``records``, each key once; numbers of records and of repetitions."""
    from mlff_distiller.dataset import DatasetWriter

    if out.exists():
        raise ConfigError(f"{out} exists", remedy="remove it, or choose another --out")
    waiting: dict[str, Record] = {}
    repeated = 0
    with DatasetWriter(out, metadata) as writer:
        for record in records:
            if record.key in waiting or record.key in writer:
                repeated += 1
                continue
            waiting[record.key] = record
            if len(waiting) == _AT_ONCE:
                writer.append(list(waiting.values()))
                waiting.clear()
        writer.append(list(waiting.values()))
        return len(writer), repeated


@app.command(epilog="Example: mlff-distiller data split labels --out parts --test 0.1")
def split(
    path: Folder,
    out: Annotated[Path, typer.Option(help="Folder of train, validation and test.")],
    validation: Annotated[float, typer.Option(help="Its share, more than 0.")] = 0.1,
    test: Annotated[float, typer.Option(help="Its share, more than 0.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice.")] = 0,
) -> None:
    """Divide labels by whole groups of kin, and look for what is in two parts all the same."""
    from mlff_distiller.dataset import Dataset, split_by_group

    dataset = Dataset(path)
    parts = split_by_group(dataset.groups, (1.0 - validation - test, validation, test), seed)
    names = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    for name, numbers in names.items():
        n, _ = _write(out / name, dataset.metadata, dataset.iterate(numbers))
        console.print(f"{n} labels in {out / name}", soft_wrap=True)
    for name in ("validation", "test"):
        found = _similar(Dataset(out / "train"), Dataset(out / name))
        if len(found):
            console.print(
                f"[yellow]warning:[/] {len(set(found[:, 1].tolist()))} structures of {name} are in "
                f"train too, but for rotation, order or cell: see `data compare`",
                soft_wrap=True,
            )


@app.command(epilog="Example: mlff-distiller data compare train test")
def compare(
    path: Folder,
    other: Annotated[
        Path | None, typer.Argument(help="Another dataset; without: within one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find structures that are the same, however turned or renumbered; exit code 1 if there are."""
    from mlff_distiller.dataset import Dataset

    first = Dataset(path)
    second = None if other is None else Dataset(other)
    found = _similar(first, second).tolist()
    if as_json:
        print(json.dumps({"n_pairs": len(found), "pairs": found}))
    else:
        where = f"within {path}" if other is None else f"of {path} and {other}"
        console.print(f"{len(found)} pairs of equal structures {where}", soft_wrap=True)
        for a, b in found[:_SHOWN]:
            console.print(f"  record {a} and record {b}")
        if len(found) > _SHOWN:
            console.print(f"  and {len(found) - _SHOWN} more: --json")
    if found:
        raise typer.Exit(1)


def _similar(first: Dataset, second: Dataset | None) -> Any:
    from mlff_distiller.sampling import find_similar

    frames = [
        [record.atoms for record in part.iterate()] for part in (first, second) if part is not None
    ]
    return find_similar(*frames, threads=_cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@app.command(epilog="Example: mlff-distiller data select labels --number 500 --out few")
def select(
    path: Folder,
    out: Annotated[Path, typer.Option(help="Dataset to make.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Labels to keep.")],
    seed: Annotated[int, typer.Option(min=0, help="Decides ties.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Keep the labels whose structures are farthest from each other."""
    import numpy as np

    from mlff_distiller.dataset import Dataset
    from mlff_distiller.sampling import descriptors
    from mlff_distiller.sampling import select as farthest

    dataset = Dataset(path)
    if number > len(dataset):
        raise DatasetError(f"{path} has fewer labels", expected=number, found=len(dataset))
    elements = sorted(
        {int(z) for record in dataset.iterate() for z in np.unique(record.atoms.numbers)}
    )
    with Display(console, quiet=quiet) as display:
        features = descriptors(
            (record.atoms for record in dataset.iterate()),
            elements,
            threads=_cores(),
            on_frame=lambda n: display("describe", n, len(dataset), ""),
        )
    chosen = np.sort(farthest(features, number, seed))
    n, _ = _write(out, dataset.metadata, dataset.iterate(chosen))
    if not quiet:
        console.print(f"{n} labels in {out}", soft_wrap=True)


@app.command(epilog="Example: mlff-distiller data stats labels --html labels.html")
def stats(
    path: Folder,
    html: Annotated[Path | None, typer.Option(help="File for the plots.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Elements, sizes, energies, forces, distances; and plots of them."""
    from mlff_distiller.dataset import Dataset
    from mlff_distiller.reports.dataset import survey, write_page

    dataset = Dataset(path)
    with Display(console, quiet=quiet or as_json) as display:
        found = survey(dataset, lambda n: display("read", n, len(dataset), ""))
    print_facts(found.facts(), as_json)
    if html is not None:
        write_page(html, found, path.name)
        if not as_json:
            console.print(f"plots in {html}", soft_wrap=True)
