"""``mlff-distiller data``: look at, check, import, export, merge, split and select labels."""

from __future__ import annotations

import json
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mlff_distiller.cli.options import CONTEXT, REFUSED, AsJson, Quiet, Seed
from mlff_distiller.cli.progress import Display
from mlff_distiller.cli.shown import console, errors, print_facts, print_findings, warn
from mlff_distiller.errors import DatasetError

if TYPE_CHECKING:
    import numpy as np

    from mlff_distiller.dataset import Dataset

app = typer.Typer(
    no_args_is_help=True,
    context_settings=CONTEXT,
    help="Inspect, check, import, merge and divide labels.",
)

Folder = Annotated[Path, typer.Argument(metavar="LABELS", help="A dataset's folder, or a run.")]
NewDataset = Annotated[Path, typer.Option(metavar="FOLDER", help="Dataset to make.")]

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


@app.command(epilog="Example: mlff-distiller data verify run/dataset")
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="LABELS", help="A dataset's folder, a run, or one shard.")
    ],
) -> None:
    """Check every record of a dataset against its checksum; exit code 3 if anything is damaged."""
    from mlff_distiller.dataset import verify

    report = verify(path)
    for problem in report.problems:
        errors.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
    console.print(f"{report.n_records} records read, {len(report.problems)} problems")
    if not report.ok:
        raise typer.Exit(REFUSED)


@app.command(
    "import",
    epilog="Example: mlff-distiller data import train.xyz --out labels --forces-key REF_forces "
    "--forces-unit eV/angstrom --energy-key REF_energy --energy-unit eV",
)
def import_(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCES", help="Files, or folders of DeePMD systems."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Dataset to make; the same command continues it.")
    ],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="extxyz, nep, deepmd, spice, mace-hdf5, ase-db or ase.",
            show_default="guessed",
        ),
    ] = None,
    level: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the level of theory.")
    ] = "imported",
    energy_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the energy.")
    ] = None,
    forces_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the forces.")
    ] = None,
    stress_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the stress; none: leave it out.")
    ] = None,
    virial_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the virial.")
    ] = None,
    energy_unit: Annotated[
        str | None, typer.Option(metavar="UNIT", help="eV, hartree, kcal/mol ...")
    ] = None,
    forces_unit: Annotated[
        str | None, typer.Option(metavar="UNIT", help="eV/angstrom, hartree/bohr ...")
    ] = None,
    length_unit: Annotated[
        str | None, typer.Option(metavar="UNIT", help="angstrom, bohr or nm.")
    ] = None,
    stress_unit: Annotated[
        str | None,
        typer.Option(metavar="UNIT", help="eV/angstrom^3, GPa, kbar ...; of a virial: eV ..."),
    ] = None,
    stress_sign: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="State in which it is positive: tension or compression."),
    ] = None,
    voigt_order: Annotated[
        str | None, typer.Option(metavar="ORDER", help="Of six numbers, such as xx,yy,zz,yz,xz,xy.")
    ] = None,
    type_map: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Elements of DeePMD types without a map, such as O,H."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Import labels of other programs. Units and signs a file does not say must be given."""
    from mlff_distiller.dataset.formats import Conventions
    from mlff_distiller.dataset.importing import REJECTED, import_frames
    from mlff_distiller.labeling import write_findings

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
    if report.contradictions.n:
        warn(f"of repeated structures the first label was kept, but {report.contradictions}")
    for reason, times in report.reasons.most_common(_SHOWN):
        warn(f"{times} rejected: {escape(reason)}")
    if report.n_rejected or report.contradictions.n:
        errors.print(f"rejected frames are named in {out / REJECTED}", soft_wrap=True)
    if not report.n_imported:
        raise typer.Exit(REFUSED)
    findings = write_findings(out)
    if not quiet:
        print_findings(findings, out)


@app.command(epilog="Example: mlff-distiller data export labels --out train.xyz --format nep")
def export(
    path: Folder,
    out: Annotated[Path, typer.Option(metavar="PATH", help="File to write, or folder for deepmd.")],
    format: Annotated[
        Export, typer.Option(metavar="NAME", help="extxyz, nep or deepmd.")
    ] = Export.extxyz,
) -> None:
    """Write labels for other programs; numbers read back bit for bit."""
    from mlff_distiller.dataset import Dataset
    from mlff_distiller.dataset.formats import write_records

    n = write_records(out, Dataset(path).iterate(), format.value)
    console.print(f"{n} frames in {out}", soft_wrap=True)


@app.command(epilog="Example: mlff-distiller data merge a b --out both")
def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="LABELS", help="Datasets' folders.")],
    out: NewDataset,
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed",
            metavar="",
            help="Merge labels of different teachers: seldom a good idea.",
        ),
    ] = False,
    keep_first: Annotated[
        bool,
        typer.Option(
            "--keep-first",
            metavar="",
            help="Where labels contradict each other, keep the first dataset's.",
        ),
    ] = False,
) -> None:
    """Merge datasets of one teacher; a label that is in several is kept once."""
    from mlff_distiller.dataset.merging import Contradictions, merge

    left_out = Contradictions() if keep_first else None
    n, repeated = merge(paths, out, allow_mixed=allow_mixed, left_out=left_out)
    console.print(f"{n} labels in {out}, {repeated} repeated", soft_wrap=True)
    if left_out is not None and left_out.n:
        warn(f"left out were {left_out}")


@app.command(epilog="Example: mlff-distiller data split labels --out parts --test 0.1")
def split(
    path: Folder,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of train, validation and test.")
    ],
    validation: Annotated[float, typer.Option(metavar="X", help="Its share, more than 0.")] = 0.1,
    test: Annotated[float, typer.Option(metavar="X", help="Its share, more than 0.")] = 0.1,
    seed: Seed = 0,
) -> None:
    """Divide labels by whole groups, and warn of structures that are in two parts all the same."""
    from mlff_distiller.dataset.merging import divide

    parts = divide(path, out, validation=validation, test=test, seed=seed)
    for name, part in parts.items():
        console.print(f"{len(part)} labels in {out / name}", soft_wrap=True)
    for name in ("validation", "test"):
        found = _similar(parts["train"], parts[name])
        if len(found):
            warn(
                f"{len(set(found[:, 1].tolist()))} structures of {name} are in train too, "
                "but for rotation, order or cell: see `data compare`"
            )


@app.command(epilog="Example: mlff-distiller data compare train test")
def compare(
    path: Folder,
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="Another dataset; without: within one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find equal structures, however turned or renumbered; the exit code is 3 if there are any."""
    from mlff_distiller.dataset import Dataset

    parts = [path] if other is None else [path, other]
    found = _similar(*map(Dataset, parts)).tolist()
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
        raise typer.Exit(REFUSED)


def _similar(*parts: Dataset) -> np.ndarray:
    from mlff_distiller.sampling import find_similar

    return find_similar(*([record.atoms for record in part.iterate()] for part in parts))


@app.command(epilog="Example: mlff-distiller data select labels --number 500 --out few")
def select(
    path: Folder,
    out: NewDataset,
    number: Annotated[
        int, typer.Option("--number", "-n", metavar="N", min=1, help="Labels to keep.")
    ],
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Keep the labels whose structures are farthest from each other."""
    import numpy as np

    from mlff_distiller.dataset import Dataset
    from mlff_distiller.dataset.merging import write_dataset
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
            on_frame=lambda n: display("describe", n, len(dataset), ""),
        )
    chosen = np.sort(farthest(features, number, seed))
    n, _ = write_dataset(out, dataset.metadata, dataset.iterate(chosen))
    if not quiet:
        console.print(f"{n} labels in {out}", soft_wrap=True)


@app.command(epilog="Example: mlff-distiller data stats labels --html labels.html")
def stats(
    path: Folder,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="File for the plots.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Elements, sizes, energies, forces, distances; and plots of them."""
    from mlff_distiller.dataset import Dataset
    from mlff_distiller.labeling import check_labels
    from mlff_distiller.reports.dataset import survey, write_page

    dataset = Dataset(path)
    with Display(console, quiet=quiet or as_json) as display:
        found = survey(dataset, lambda n: display("read", n, len(dataset), ""))
    suspicious = Counter(finding.check for finding in check_labels(dataset))
    print_facts(found.facts() | {"suspicious labels": dict(suspicious)}, as_json)
    if html is not None:
        write_page(html, found, path.name)
        if not as_json:
            console.print(f"plots in {html}", soft_wrap=True)
