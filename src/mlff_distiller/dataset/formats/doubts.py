"""Where a reader of ASE would guess, or believe what the file takes back; here it does neither.

LAMMPS numbers atom types, and a type is not an element; asked for elements without being told
them, it writes C. A log that holds two runs is read with the
elements of the first. A PDB file may give an atom two places, or its name alone. Sites may be
occupied in part. An SCF that stopped unconverged prints an energy all the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from ase.io.formats import open_with_compression

from mlff_distiller.errors import StructureError

_SAME_MASS = 0.3
"""u: isotopic mixtures are nearer; deuterium and repartitioned hydrogen are farther."""
_ONCE = {
    "vasp-out": rb"ions per type =",
    "aims-output": rb"Invoking FHI-aims",
    "orca-output": rb"\* O +R +C +A \*",
    "abinit-out": rb"\.Version .* of ABINIT",
}
"""What a log says once, where the elements of a run are read."""
_STOPPED = {
    "aims-output": rb"(?i)self-consistency cycle not converged",
    "castep-castep": rb"has not reached the groundstate",
    "espresso-out": rb"convergence NOT achieved",
    "gaussian-out": rb"Convergence failure",
    "gpaw-out": rb"Did not converge",
    "nwchem-out": rb"Calculation failed to converge",
    "octopus-in": rb"SCF \*not\* converged",
    "orca-output": rb"SCF NOT CONVERGED|not fully converged",
}
"""What a log says of an SCF that did not converge; of which frame, ASE's reader does not tell."""


def refuse_guesses(path: Path, kind: str) -> None:
    """`StructureError` if ASE's reader of ``kind`` would have to guess elements or places.

    Reads the text of formats known for it once.
    """
    if kind == "lammps-dump-text":
        _refuse_types(path, _masses_of_dump(path))
    elif kind == "lammps-data":
        _refuse_types(path, _masses_of_data(path))
    elif kind == "lammps-dump-binary":
        _refuse_types(path, None)
    elif kind in ("gromacs", "gromos"):
        raise StructureError(
            f"{path} names atoms, but not their elements",
            expected="a format that says the elements",
            found=f"ASE's format {kind}: CA may be an alpha carbon or calcium",
            remedy="convert it to extended XYZ, with a topology for instance",
        )
    elif kind == "proteindatabank":
        _check_pdb(path)
    elif kind in _ONCE:
        runs = sum(bool(re.search(_ONCE[kind], line)) for line in _lines(path))
        if runs > 1:
            raise StructureError(
                f"{path} holds several joined outputs, and only the first gives the elements",
                expected="one run per file",
                found=f"{runs} runs",
                remedy="give each output as a separate file",
            )


def problem_of(atoms: Atoms) -> str:
    """Why ``atoms`` are not a valid structure although the reader made them; '' if they are."""
    if not len(atoms):
        return "it has no atoms"
    told = atoms.info.get("occupancy")
    shares = [
        share
        for site in (told.values() if isinstance(told, dict) else ())
        for share in (site.values() if isinstance(site, dict) else (site,))
    ]
    for name in ("occupancy", "occupancies"):
        values = np.asarray(atoms.arrays.get(name, ()))
        if values.dtype.kind == "f":  # where nothing is known, programs write 0
            shares += values[values != 0.0].tolist()
    odd = [share for share in shares if isinstance(share, int | float) and abs(share - 1) > 1e-3]
    if odd:
        return f"a site is occupied in part, by {odd[0]:g}: make an ordered structure of it"
    return ""


def unconverged(path: Path, kind: str) -> Iterator[bool]:
    """Yield for each frame whether its SCF stopped unconverged, as far as the file says."""
    if kind == "vasp-xml":
        yield from _of_vasprun(path)
    if kind in _STOPPED and any(re.search(_STOPPED[kind], line) for line in _lines(path)):
        while True:
            yield True
    while True:
        yield False


def _lines(path: Path) -> Iterator[bytes]:
    with open_with_compression(str(path), "rb") as stream:
        yield from stream


def _refuse_types(path: Path, masses: set[float] | None) -> None:
    """``masses`` from which elements are found; None where there is a type alone."""
    odd = [mass for mass in sorted(masses or ()) if np.abs(atomic_masses - mass).min() > _SAME_MASS]
    if masses is None or odd:
        raise StructureError(
            f"{path} does not assign elements to its types",
            expected="a column 'element', or masses of elements",
            found=f"a mass of {odd[0]:g} u" if odd else "types alone, which would become H, He ...",
            remedy="write element names (`dump_modify ID element Al Cu`), or convert it to "
            "extended XYZ",
        )


def _masses_of_dump(path: Path) -> set[float] | None:
    """Those that elements are found by; None if any frame has neither masses nor elements.

    Where all elements are C, which LAMMPS writes unless it is told, masses count all the same.
    """
    masses: set[float] = set()
    seen: dict[bytes, set[bytes]] = {b"element": set(), b"type": set(), b"mass": set()}
    columns: dict[bytes, int] = {}
    for line in _lines(path):
        if line.startswith(b"ITEM:"):
            columns = {}
            if line.startswith(b"ITEM: ATOMS"):
                names = line.split()[2:]
                if b"element" not in names and b"mass" not in names:
                    return None
                columns = {name: names.index(name) for name in seen if name in names}
        elif columns and len(words := line.split()) > max(columns.values()):
            for name, column in columns.items():
                seen[name].add(words[column])
            if b"element" not in columns:
                masses.add(float(words[columns[b"mass"]]))
    if seen[b"element"] != {b"C"}:
        return masses
    found = {float(mass) for mass in seen[b"mass"]}
    if any(abs(mass - atomic_masses[6]) > _SAME_MASS for mass in found):
        return None
    if not found:
        n = len(seen[b"type"])
        warnings.warn(
            f"in {path} all atoms are C{f', of {n} types' if n > 1 else ''}: LAMMPS writes so where"
            " `dump_modify ID element` does not name the elements",
            stacklevel=4,
        )
    return masses


def _masses_of_data(path: Path) -> set[float] | None:
    masses: set[float] = set()
    inside = found = False
    for line in _lines(path):
        words = line.partition(b"#")[0].split()
        if words and words[0][:1].isalpha():
            inside = words == [b"Masses"]
            found |= inside
        elif inside and len(words) == 2:
            masses.add(float(words[1]))
    return masses if found else None


def _check_pdb(path: Path) -> None:
    places: set[bytes] = set()
    for line in _lines(path):
        if line.startswith((b"ATOM  ", b"HETATM")):
            places |= {line[16:17]} - {b" "}
            if not line[76:78].strip():
                raise StructureError(
                    f"{path} does not give the element of an atom",
                    expected="element symbols in columns 77 and 78",
                    found=repr(line[:27].decode("utf-8", "replace")),
                    remedy="add them: a name alone may be an alpha carbon or calcium",
                )
    if len(places) > 1:
        raise StructureError(
            f"{path} has atoms in several alternate locations",
            expected="one location indicator in column 17",
            found=", ".join(sorted(place.decode("utf-8", "replace") for place in places)),
            remedy="keep one of them (`pdb_selaltloc` of pdb-tools)",
        )


def _of_vasprun(path: Path) -> Iterator[bool]:
    """It is not said; as with pymatgen, the last step VASP may take counts as one too few."""
    most = 0
    try:
        with open_with_compression(str(path), "rb") as stream:
            for _, element in ElementTree.iterparse(stream):
                if element.tag == "i" and element.get("name") == "NELM":
                    most = most or int(element.text or 0)  # a later one is of response functions
                elif element.tag == "calculation":
                    yield 0 < most <= len(element.findall("scstep"))
                    element.clear()
    except (ElementTree.ParseError, ValueError):  # the reader itself names what is damaged
        return
