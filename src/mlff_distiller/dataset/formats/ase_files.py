"""Files and databases that ASE reads without unpickling anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ase.db import connect
from ase.io import iread
from ase.io.formats import UnknownFileTypeError, filetype

from mlff_distiller.dataset.formats.frame import Conventions, Frame
from mlff_distiller.dataset.formats.labels import labels_from_ase
from mlff_distiller.errors import DatasetError

SAFE = frozenset({
    *("abinit-out", "aims", "aims-output", "castep-castep", "cif", "cp2k-dcd", "cp2k-restart"),
    *("crystal", "cube", "elk", "espresso-in", "espresso-out", "extxyz", "gaussian-out"),
    *("gpaw-out", "lammps-data", "lammps-dump-text", "magres", "mol", "nwchem-out", "octopus-in"),
    *("onetep-out", "orca-output", "proteindatabank", "qbox", "res", "sdf", "siesta-xv", "traj"),
    *("turbomole", "vasp", "vasp-out", "vasp-xdatcar", "vasp-xml", "xsf", "xyz"),
})  # fmt: skip
"""ASE's names of formats that are text, or its own trajectories: arrays and JSON."""


def read_file(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Frames of any other file that ASE knows; results are in ASE's units by definition."""
    try:
        kind = filetype(str(path), guess=True)
    except (UnknownFileTypeError, OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{path} is of no format that is known", found=error) from error
    if kind not in SAFE:
        raise DatasetError(
            f"{path} is of ASE's format {kind!r}, which is not read here",
            expected="one of " + " ".join(sorted(SAFE)),
            remedy="convert it to extended XYZ where you trust it",
        )
    try:
        for index, atoms in enumerate(iread(str(path), index=":", format=kind)):
            name = f"{path}, frame {index}"
            is_text = kind == "extxyz"
            yield labels_from_ase(atoms, conventions, name, index, 0.0, is_text=is_text)
    except DatasetError:
        raise
    except Exception as error:  # on malformed files ASE's readers raise anything
        raise DatasetError(
            f"{path} cannot be read as {kind}",
            found=f"{type(error).__name__}: {error}",
            remedy="the file is truncated or damaged: restore it from a copy",
        ) from error


def read_database(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Rows of an ASE database (SQLite or JSON), by id."""
    if not path.is_file():
        raise DatasetError(f"{path} is no file")
    kind = "json" if path.suffix == ".json" else "db"
    try:
        with connect(str(path), type=kind, serial=True) as database:
            total = max(1, database.count())
            for index, row in enumerate(database.select()):
                name = f"{path}, row {row.id}"
                done = (index + 1) / total
                yield labels_from_ase(row.toatoms(), conventions, name, index, done)
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{path} cannot be read as an ASE database", found=f"{type(error).__name__}: {error}"
        ) from error
