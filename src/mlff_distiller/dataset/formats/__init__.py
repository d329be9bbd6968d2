"""Formats of others: what they say of structures and labels, in our units, never guessed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from ase.io.formats import get_compression

from mlff_distiller.dataset.formats import ase_files, deepmd, extxyz, hdf5, nep
from mlff_distiller.dataset.formats.frame import Conventions, Frame, Reader
from mlff_distiller.dataset.record import Record
from mlff_distiller.durable import new_path, replacing
from mlff_distiller.errors import ConfigError, DatasetError
from mlff_distiller.structure import ATOMIC_STATE

READERS: dict[str, Reader] = {
    "extxyz": extxyz.read,
    "nep": nep.read,
    "deepmd": deepmd.read,
    "spice": hdf5.read_spice,
    "mace-hdf5": hdf5.read_mace,
    "ase-db": ase_files.read_database,
    "ase": ase_files.read_file,
}
WRITERS = ("extxyz", "nep", "deepmd")
_NO_PLACE = {"extxyz": (), "nep": ("spin", *ATOMIC_STATE), "deepmd": ATOMIC_STATE}
"""What of a structure's electronic state a format cannot say."""

_SUFFIXES = {".xyz": "extxyz", ".extxyz": "extxyz", ".db": "ase-db", ".json": "ase-db"}


def detect(path: Path) -> str:
    """Name of the format of ``path``; nep's is never guessed, as its file looks like any extxyz."""
    if path.is_dir():
        return "deepmd"
    if not path.exists():
        raise DatasetError(f"there is no file or folder {path}")
    if path.suffix in (".h5", ".hdf5"):
        return hdf5.kind_of(path)
    plain = Path(get_compression(str(path))[0])
    return _SUFFIXES.get(plain.suffix.lower(), "ase")


def read_frames(
    path: Path, conventions: Conventions | None = None, format: str | None = None
) -> Iterator[Frame]:
    """Frames of ``path``, one by one; what is wrong with one alone is its ``problem``.

    ``DatasetError`` if the file as a whole cannot be read, or if it leaves a choice open that
    ``conventions`` does not close.
    """
    name = format or detect(path)
    if name not in READERS:
        raise ConfigError("there is no such format", expected=", ".join(READERS), found=name)
    frame = None
    for frame in READERS[name](path, conventions or Conventions()):
        yield frame
    if frame is None:
        raise DatasetError(
            f"{path} holds no frame",
            found=f"nothing, read as {name}",
            remedy="name the format if it is another (--format), or convert the file to extended "
            "XYZ",
        )


def write_records(path: Path, records: Iterable[Record], format: str) -> int:
    """Write a new file, or folder for deepmd; the number of frames.

    Warns, once, where the format has no place for spin, charges or moments of atoms.
    """
    if format not in WRITERS:
        raise ConfigError("there is no such format", expected=", ".join(WRITERS), found=format)
    records = _warned(records, format)
    if format == "deepmd":
        with new_path(path), replacing(path) as partial:
            return deepmd.write(partial, records)
    write = extxyz.write if format == "extxyz" else nep.write
    n = 0
    with (
        new_path(path),
        replacing(path) as partial,
        partial.open("w", encoding="utf-8") as stream,
    ):
        for record in records:
            write(stream, record)
            n += 1
    return n


def _warned(records: Iterable[Record], format: str) -> Iterator[Record]:
    lost: set[str] = set()
    for record in records:
        for name in {*record.atoms.info, *record.atoms.arrays}.intersection(_NO_PLACE[format]):
            if name not in lost:
                lost.add(name)
                formula = record.atoms.get_chemical_formula()
                warnings.warn(
                    f"{name!r} is left out ({formula}, ...): the format {format} has no place for"
                    " it, and frames that differ in it alone look like contradictions",
                    stacklevel=3,
                )
        yield record


__all__ = ["READERS", "WRITERS", "Conventions", "Frame", "detect", "read_frames", "write_records"]
