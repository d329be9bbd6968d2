"""Extended XYZ as text: frames read one by one without trust, and written without loss."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, islice
from lzma import LZMAError
from pathlib import Path
from typing import IO

import numpy as np
from ase import Atoms
from ase.io.extxyz import read_xyz
from ase.io.formats import get_compression, open_with_compression

from mlff_distiller.dataset.formats.frame import Conventions, Frame
from mlff_distiller.dataset.formats.labels import labels_from_ase
from mlff_distiller.dataset.record import Record
from mlff_distiller.errors import DatasetError
from mlff_distiller.properties import LABELS
from mlff_distiller.structure import atomic_state

_LONGEST_LINE = 1 << 24
_LEAST_PER_ATOM = 2
"""Bytes of the shortest line."""
_KEYS = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}
_RAW = "as_written_"
"""How a stress is called meanwhile: ASE would have nine numbers, and look at six of them."""
_QUOTED = r"""(?:"[^"]*"|'[^']*'|\[[^]]*\]|\{[^}]*\})"""
_TRUTHS = {"t": "T", "true": "T", "1": "T", "f": "F", "false": "F", "0": "F"}


def blocks(path: Path) -> Iterator[tuple[str, int, float]]:
    """The text of each frame, the number of its first line, and the share of the file read.

    ``DatasetError`` names file and line where the file, compressed or not, is not extended XYZ,
    ends early, or declares more atoms than it has bytes.
    """
    try:
        yield from _blocks(path)
    except (EOFError, OSError, LZMAError, zlib.error) as error:
        raise DatasetError(
            f"{path} cannot be read",
            found=f"{type(error).__name__}: {error}",
            remedy="the file is truncated or damaged: restore it from a copy",
        ) from error


def _blocks(path: Path) -> Iterator[tuple[str, int, float]]:
    size, number = path.stat().st_size, 1
    is_plain = get_compression(str(path))[1] is None
    with open_with_compression(str(path), "rb") as stream:
        if size == 0:
            raise DatasetError(f"{path} is empty")
        while header := stream.readline(_LONGEST_LINE):
            if not header.strip():
                number += 1
                continue
            if not re.fullmatch(rb"\s*\d{1,18}\s*", header):
                raise DatasetError(
                    f"{path}, line {number} is not the start of an extended XYZ frame",
                    expected="a number of atoms",
                    found=repr(header[:60].decode("utf-8", "replace")),
                )
            n_atoms, left = int(header), size - stream.tell()
            if is_plain and n_atoms * _LEAST_PER_ATOM > left:
                raise DatasetError(
                    f"{path}, line {number} declares more atoms than the file can hold",
                    expected=f"at most {left // _LEAST_PER_ATOM} in the {left} bytes that follow",
                    found=n_atoms,
                    remedy="the file is truncated or damaged: restore it from a copy",
                )
            readable = iter(partial(stream.readline, _LONGEST_LINE), b"")
            lines = list(islice(readable, n_atoms + 1))
            if len(lines) <= n_atoms or (n_atoms and not lines[-1].strip()):
                raise DatasetError(
                    f"{path}, the frame at line {number} ends early",
                    expected=f"{n_atoms} atoms",
                    found=f"{sum(bool(line.strip()) for line in lines[1:])}",
                    remedy="the file is truncated or damaged: restore it from a copy",
                )
            try:
                text = b"".join(chain([header], lines)).decode("utf-8")
            except UnicodeDecodeError as error:
                raise DatasetError(
                    f"{path}, the frame at line {number} is not text in UTF-8", found=error
                ) from error
            yield text, number, stream.tell() / size if is_plain else 0.0
            number += n_atoms + 2


def parse(text: str) -> Atoms:
    """One frame, as ASE reads it; ``ValueError`` says what it cannot read.

    Names of cell, columns and periodicity may be written in any case, as by GPUMD.
    """
    number, _, rest = text.partition("\n")
    comment, _, rows = rest.partition("\n")
    try:
        text = f"{number}\n{_as_ase_spells(comment)}\n{rows}"
        (atoms,) = read_xyz(io.StringIO(text), slice(0, 1))
    except Exception as error:  # on malformed text ASE raises anything
        raise ValueError(f"not readable as extended XYZ: {error}") from error
    if not isinstance(atoms, Atoms):
        raise ValueError("not readable as extended XYZ")
    for name in ("stress", "virial"):
        if (values := atoms.info.pop(_RAW + name, None)) is not None:
            atoms.info[name] = values
    return atoms


def _as_ase_spells(comment: str) -> str:
    names = "|".join(_KEYS)
    comment = re.sub(rf"(?i)\b({names})\s*=\s*", lambda m: f"{_KEYS[m[1].lower()]}=", comment)

    def periodic(found: re.Match[str]) -> str:
        words = re.findall(r"\w+", found[1])
        truths = [_TRUTHS.get(word.lower()) for word in words]
        if len(truths) != 3 or None in truths:
            raise ValueError(f"{found[0]} is not three of T and F")
        return f'pbc="{" ".join(map(str, truths))}"'

    comment = re.sub(rf"(?<!\S)(stress|virial)=({_QUOTED})", rf"{_RAW}\1=\2", comment)
    return re.sub(rf"""\bpbc=({_QUOTED}|\S+)""", periodic, comment)


def read(path: Path, conventions: Conventions) -> Iterator[Frame]:
    """Frames of an extended XYZ file by ASE's conventions, or by those that are given."""
    for index, (text, line, progress) in enumerate(blocks(path)):
        try:
            atoms = parse(text)
        except ValueError as error:
            yield Frame(index, Atoms(), problem=f"line {line}: {error}", progress=progress)
            continue
        name = f"{path}, frame {index} (line {line})"
        yield labels_from_ase(atoms, conventions, name, index, progress)


def write_frame(
    stream: IO[str], atoms: Atoms, header: Mapping[str, object], columns: Mapping[str, np.ndarray]
) -> None:
    """One frame with positions and ``columns`` (n_atoms,) or (n_atoms, 3).

    Floats read back bit for bit.
    """
    words = [f"{key}={_value(value)}" for key, value in header.items()]
    names = "".join(f":{name}:R:{value[0].size}" for name, value in columns.items())
    if atoms.cell.any():
        words.insert(0, f'Lattice="{_numbers(atoms.cell.array)}"')
    words.append('pbc="' + " ".join("FT"[int(axis)] for axis in atoms.pbc) + '"')
    words.append(f"Properties=species:S:1:pos:R:3{names}")
    table = np.column_stack([atoms.positions, *columns.values()]).tolist()
    stream.write(f"{len(atoms)}\n{' '.join(words)}\n")
    stream.writelines(
        f"{symbol} {' '.join(map(repr, row))}\n"
        for symbol, row in zip(atoms.get_chemical_symbols(), table, strict=True)
    )


def write(stream: IO[str], record: Record) -> None:
    """One frame by ASE's conventions: energy eV, forces eV/Å, stress eV/Å³, tension positive.

    ``energies`` has ASE's name and unit too; ``forces_spread``, eV/Å, has none with ASE.
    """
    labels = record.labels
    header: dict[str, object] = {"energy": float(labels["energy"])}
    if "stress" in labels:
        header["stress"] = labels["stress"]
    columns = {name: labels[name] for name in labels if LABELS[name].per == "atom"}
    columns |= atomic_state(record.atoms)
    write_frame(stream, record.atoms, header | record.atoms.info, columns)


def _value(value: object) -> str:
    return f'"{_numbers(value)}"' if isinstance(value, np.ndarray) else repr(value)


def _numbers(array: np.ndarray) -> str:
    return " ".join(map(repr, np.asarray(array, dtype=np.float64).ravel().tolist()))
