"""Files and databases that ASE reads without unpickling anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io import iread
from ase.io.formats import UnknownFileTypeError, filetype

from mlff_distiller.dataset.formats import extxyz, outcar
from mlff_distiller.dataset.formats.doubts import problem_of, refuse_guesses, unconverged
from mlff_distiller.dataset.formats.frame import Conventions, Frame
from mlff_distiller.dataset.formats.labels import labels_from_ase
from mlff_distiller.errors import DatasetError, DistillerError, StructureError

SAFE = frozenset({
    *("abinit-out", "aims", "aims-output", "castep-castep", "cif", "cp2k-dcd", "cp2k-restart"),
    *("crystal", "cube", "elk", "espresso-in", "espresso-out", "extxyz", "gaussian-out"),
    *("gpaw-out", "lammps-data", "lammps-dump-text", "magres", "mol", "nwchem-out", "octopus-in"),
    *("onetep-out", "orca-output", "proteindatabank", "qbox", "res", "sdf", "siesta-xv", "traj"),
    *("turbomole", "vasp", "vasp-out", "vasp-xdatcar", "vasp-xml", "xsf", "xyz"),
})  # fmt: skip
"""ASE's names of formats that are text, or its own trajectories: arrays and JSON."""
_UNCONVERGED = "the SCF stopped before it converged"
_NO_CRYSTAL_A = 1.0
"""Edges of the cell by which PDB says that there is none."""


def structures(path: Path, kind: str) -> Iterator[Atoms]:
    """Frames of a file of ASE's format ``kind``, one by one, as they are meant.

    Raises
    ------
    StructureError
        Elements or places would be guesses; see `doubts`.
    """
    refuse_guesses(path, kind)
    if kind == "extxyz":
        yield from (extxyz.parse(text) for text, _, _ in extxyz.blocks(path))
        return
    if kind == "vasp-out":
        for index, step in enumerate(outcar.steps(path)):
            if step.atoms is None:
                raise StructureError(
                    f"{path} has no structure of step {index}",
                    found=step.problem,
                    remedy="take the structures of its XDATCAR or vasprun.xml",
                )
            yield step.atoms
        return
    cell = None
    for atoms in iread(str(path), ":", kind, do_not_split_by_at_sign=True):
        if kind == "proteindatabank":
            if not len(atoms):  # what ASE finds between ENDMDL and END
                continue
            if atoms.cell.rank == 0 and cell is not None:  # said once, before the first model
                atoms.set_cell(cell)
                atoms.pbc = True
            cell = atoms.cell.copy()
            if (atoms.cell.lengths() <= _NO_CRYSTAL_A).all():
                atoms.cell, atoms.pbc = None, False
        elif kind.startswith("lammps"):
            atoms.calc = None  # a dump's energy is ASE's 0
        yield atoms


def read_file(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Frames of any other file that ASE knows; results are in ASE's units by definition."""
    try:
        kind = filetype(str(path), guess=True)
    except (UnknownFileTypeError, OSError, ValueError, EOFError) as error:
        raise DatasetError(
            f"{path} has an unknown format",
            found=error,
            remedy="name it: --format extxyz, for example",
        ) from error
    if kind == "extxyz":
        yield from extxyz.read(path, conventions)
        return
    if kind not in SAFE:
        raise DatasetError(
            f"{path} has ASE's format {kind!r}, which is not read here",
            expected="one of " + " ".join(sorted(SAFE)),
            remedy="name the format if this is another (--format extxyz), or convert the file to "
            "extended XYZ where you trust it",
        )
    try:
        for index, (atoms, problem, stopped) in enumerate(_steps(path, kind)):
            if atoms is not None:
                problem = _UNCONVERGED if stopped else problem_of(atoms)
            if problem:
                yield Frame(index, atoms or Atoms(), problem=problem)
            elif atoms is not None:
                yield labels_from_ase(atoms, conventions, f"{path}, frame {index}", index, 0.0)
    except DistillerError:
        raise
    except Exception as error:  # on malformed files ASE's readers raise anything
        raise DatasetError(
            f"{path} cannot be read as {kind}",
            found=f"{type(error).__name__}: {error}",
            remedy="the file is truncated or damaged, or ASE cannot parse it: compare with "
            "`ase.io.read`, or convert it to extended XYZ",
        ) from error


def _steps(path: Path, kind: str) -> Iterator[outcar.Step]:
    if kind == "vasp-out":
        refuse_guesses(path, kind)
        yield from outcar.steps(path)
        return
    for atoms, stopped in zip(structures(path, kind), unconverged(path, kind), strict=False):
        yield outcar.Step(atoms, "", stopped)


def _data_of(
    data: Mapping[str, Any], n_atoms: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Numbers of a row's data: vectors of atoms (n_atoms, 3), and the others."""
    values = {name: np.asarray(value) for name, value in data.items()}
    numbers = {name: value for name, value in values.items() if value.dtype.kind in "fiu"}
    of_atoms = {name: value for name, value in numbers.items() if value.shape == (n_atoms, 3)}
    return of_atoms, {name: numbers[name] for name in numbers.keys() - of_atoms.keys()}


def read_database(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Rows of an ASE database (SQLite or JSON), by id."""
    if not path.is_file():
        raise DatasetError(f"{path} is not a file")
    kind = "json" if path.suffix == ".json" else "db"
    try:
        with connect(str(path), type=kind, serial=True) as database:
            total = max(1, database.count())
            for index, row in enumerate(database.select()):
                name = f"{path}, row {row.id}"
                done = (index + 1) / total
                atoms = row.toatoms()
                if atoms.calc is None:  # SchNetPack keeps its labels here, in its own units
                    of_atoms, of_all = _data_of(row.data, len(atoms))
                    atoms.arrays |= of_atoms
                    atoms.info |= of_all
                yield labels_from_ase(atoms, conventions, name, index, done)
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{path} cannot be read as an ASE database", found=f"{type(error).__name__}: {error}"
        ) from error
