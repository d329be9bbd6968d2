"""VASP's OUTCAR, by ASE's parser, without the lines that it stumbles over.

A run with a force field that VASP learns on the fly (``ML_LMLFF``) prints its predictions along
with what it computes, or instead: these are not labels by VASP. Dispersion corrections print a
second energy and second forces, without them. With ``NWRITE = 0`` some steps have no positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms
from ase.io import ParseError
from ase.io.formats import open_with_compression
from ase.io.vasp_parsers.vasp_outcar_parsers import OUTCARChunk, outcarchunks

from mlff_distiller.errors import StructureError

_PREDICTED = "VASP's own force field has predicted it, not computed"
_UNREADABLE = "ASE cannot read its positions, forces or cell, which NWRITE = 0 leaves out"
_UNCORRECTED = re.compile(r"(eV)?\s+w/o vdW =\s*\S+")


class Step(NamedTuple):
    """One ionic step."""

    atoms: Atoms | None
    problem: str
    """Why there are no ``atoms``."""
    stopped: bool = False
    """Whether the SCF ended before it converged."""


class _Plain:
    """The lines of a stream that ASE understands, with what it does not say of them."""

    def __init__(self, path: Path, stream: Any) -> None:
        self.name = str(path)  # ASE looks for constraints in the same folder
        self.n_predicted = 0
        """Steps that were predicted and not computed, and have not been told of."""
        self.most = 0
        """Electronic steps that are allowed."""
        self._waiting = False
        self._lines = self._read(stream)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._lines)

    def _read(self, stream: Any) -> Iterator[str]:
        inside = False
        for line in stream:
            if "ML FORCE on cell" in line or "TOTAL-FORCE (eV/Angst) (ML)" in line:
                inside = True
            if inside:
                if "ML energy  without entropy" in line:
                    inside = False
                    self.n_predicted += self._waiting
                    self._waiting = True
                continue
            if "FREE ENERGIE OF THE ION-ELECTRON SYSTEM" in line:
                self._waiting = False
            elif "NELM" in line and (found := re.search(r"NELM\s*=\s*(\d+)", line)):
                self.most = int(found[1])
            yield _UNCORRECTED.sub("", line)
        self.n_predicted += self._waiting


def steps(path: Path) -> Iterator[Step]:
    """Ionic steps in order, those without labels of VASP's too.

    Raises
    ------
    StructureError
        There are more species than VASP counts the atoms of.
    """
    with open_with_compression(str(path), "r") as stream:
        lines: Any = _Plain(path, stream)
        for chunk in _chunks(lines):
            yield from _predicted(lines)
            stopped = _stopped(chunk, lines.most)
            try:
                yield Step(chunk.build(), "", stopped)
            except Exception as error:  # ASE's parser raises what it likes
                why = str(error).split("\n")[0]
                yield Step(None, f"{_UNREADABLE} ({type(error).__name__}: {why})", stopped)
        yield from _predicted(lines)


def _chunks(lines: Any) -> Iterator[OUTCARChunk]:
    try:
        yield from outcarchunks(lines)
    except ParseError as error:
        if "ion_types" in str(error):
            raise StructureError(
                f"{lines.name} does not say how many atoms there are of each of its species",
                found=f"{error}; VASP writes ten numbers",
                remedy="take its vasprun.xml",
            ) from error
        if not lines.n_predicted:
            raise


def _predicted(lines: _Plain) -> Iterator[Step]:
    while lines.n_predicted:
        lines.n_predicted -= 1
        yield Step(None, _PREDICTED)


def _stopped(chunk: OUTCARChunk, most: int) -> bool:
    """VASP 5 says "EDIFF is reached" after the last electronic step it may take, too."""
    n, stopped = 1, False  # the first line of all is in the header
    for line in chunk.lines:
        if "Iteration" in line and (found := re.search(r"Iteration\s+\d+\(\s*(\d+)\)", line)):
            n = int(found[1])
        elif "aborting loop" in line:
            stopped = "EDIFF is reached" not in line
    return stopped or 0 < most <= n
