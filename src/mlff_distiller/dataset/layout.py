"""The file format of a shard: writing it, and finding its columns without trusting it.

One HDF5 file, datasets contiguous and unfiltered at the root, no links but hard ones, no
attributes but three plain ones, metadata with HDF5's own checksums (superblock 2). What is read
together lies together: a record is one piece of each of four tables, and of one more for each
optional column of atoms, a table that is there only if some record has it.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import h5py
import numpy as np

from mlff_distiller.dataset.columns import COLUMNS, OPTIONAL, Column, Per, Rows
from mlff_distiller.errors import DatasetError

SCHEMA, _LEAST_WRITTEN = 4, 3
"""The newest version of shards, and the oldest that is written, where it has room for what there
is: those of ``LAYOUTS`` are read, others refused."""

INDEX = ("offsets", "info_offsets")
"""Datasets next to the tables: (n + 1,) int64."""

_CHECKSUM = Column("system", (), np.dtype("<u8"))


@dataclass(frozen=True)
class Table:
    """One dataset of a shard: a row for each atom, system or byte of provenance.

    Its ``columns`` lie side by side as an HDF5 compound; a single one is a plain array.
    """

    per: Per
    columns: tuple[str, ...]
    optional: bool = False
    """Left out of a shard in which no record has it."""

    @cached_property
    def dtype(self) -> np.dtype:
        columns = COLUMNS | {"checksum": _CHECKSUM}
        if len(self.columns) == 1:
            column = columns[self.columns[0]]
            return np.dtype((column.dtype, column.shape))
        return np.dtype([(name, columns[name].dtype, columns[name].shape) for name in self.columns])


_APART = (
    *("positions", "atomic_numbers", "cell", "pbc", "charge", "spin"),
    *("energy", "forces", "stress"),
    *("key", "group", "info"),
)
_TOGETHER = {
    "identity": Table("system", ("key", "group", "checksum")),
    "systems": Table("system", ("cell", "pbc", "charge", "spin", "energy", "stress")),
    "atoms": Table("atom", ("positions", "atomic_numbers", "forces")),
    "info": Table("byte", ("info",)),
}


def _optional(*names: str) -> dict[str, Table]:
    return {name: Table("atom", (name,), optional=True) for name in names}


LAYOUTS: dict[int, dict[str, Table]] = {
    1: {
        **{name: Table(COLUMNS[name].per, (name,)) for name in _APART},
        "checksum": Table("system", ("checksum",)),
    },
    2: _TOGETHER,
    3: _TOGETHER | _optional("forces_spread", "energies"),
    4: _TOGETHER | _optional("forces_spread", "energies", "initial_charges", "initial_magmoms"),
}
"""Tables by schema, never to be changed. Schema 1 had every column apart: thirteen reads for a
record."""

_FORMAT = b"mlff-distiller shard"
_SIGNATURE = b"\x89HDF\r\n\x1a\n\x02"


def image(rows: Rows) -> memoryview:
    """The bytes of the file that holds ``rows``; equal rows give equal bytes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v108", "v108")) as file:
        file.attrs["format"] = np.bytes_(_FORMAT)
        held = {name for name in OPTIONAL if rows.holds(name).any()}
        schema = next(n for n in range(_LEAST_WRITTEN, SCHEMA + 1) if held <= {*LAYOUTS[n]})
        file.attrs["schema"] = np.int64(schema)
        file.attrs["index_checksum"] = np.uint64(rows.index_checksum())
        file["offsets"], file["info_offsets"] = rows.offsets, rows.info_offsets
        columns = {**rows.columns, "checksum": rows.checksums()}
        for name, table in LAYOUTS[schema].items():
            if not table.optional or name in held:
                file[name] = _pack(table, columns)
    return buffer.getbuffer()


def unpack(table: Table, array: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table's rows, each contiguous."""
    if len(table.columns) == 1:
        return {table.columns[0]: array}
    return {name: array[name].copy() for name in table.columns}


def _pack(table: Table, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    if len(table.columns) == 1:
        return columns[table.columns[0]]
    array = np.empty(len(columns[table.columns[0]]), table.dtype)
    for name in table.columns:
        array[name] = columns[name]
    return array


def size_of_shard(descriptor: int) -> int:
    """Bytes; refuses what is not a file of this format before HDF5 sees it."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError("not a regular file")
    if status.st_size == 0:
        raise DatasetError("the file is empty")
    start = os.pread(descriptor, len(_SIGNATURE), 0)
    if start != _SIGNATURE:
        raise DatasetError(
            "not a shard: it does not start like one", expected=_SIGNATURE, found=start
        )
    return status.st_size


def check_attributes(file: h5py.File) -> tuple[int, int]:
    """Schema and index checksum; refuses any attribute but plain numbers and short texts."""
    for number in range(h5py.h5a.get_num_attrs(file.id)):
        attribute = h5py.h5a.open(file.id, index=number)
        kind = attribute.get_type()
        plain = kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) or (
            kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
        )
        if not plain or attribute.shape != () or attribute.get_storage_size() > 1024:
            raise DatasetError(
                f"attribute {attribute.name!r} is refused", expected="one number or a short text"
            )
    found = {name: file.attrs[name] for name in file.attrs}
    if found.get("format") != _FORMAT or not isinstance(found.get("schema"), np.int64):
        raise DatasetError("HDF5, but not a shard", expected=_FORMAT, found=found.get("format"))
    schema = int(found["schema"])
    if schema not in LAYOUTS:
        raise other_schema("it", schema, SCHEMA)
    if not isinstance(found.get("index_checksum"), np.uint64):
        raise DatasetError("the checksum of the index is missing")
    return schema, int(found["index_checksum"])


def other_schema(name: str, found: int, newest: int) -> DatasetError:
    """The error for a shard or manifest of schema ``found``."""
    newer = "this dataset was written by a newer version of MLFF Distiller: upgrade"
    older = "this dataset was written by an older version of MLFF Distiller: read it with that one"
    return DatasetError(
        f"{name} has another schema",
        expected=f"schema {newest}",
        found=f"schema {found}",
        remedy=newer if found > newest else older,
    )


def tables_of(file: h5py.File, schema: int) -> dict[str, Table]:
    """Those of the schema, except optional ones that are absent."""
    return {
        name: table
        for name, table in LAYOUTS[schema].items()
        if not table.optional or file.id.links.exists(name.encode())
    }


def find_places(
    file: h5py.File, tables: Mapping[str, Table], size: int
) -> tuple[dict[str, int], int, int, int]:
    """Byte position of every dataset; numbers of records, atoms and bytes of provenance."""
    n_objects = file.id.get_num_objs()
    if n_objects != len(tables) + len(INDEX):
        raise DatasetError("unexpected contents", found=f"{n_objects} objects in the root")
    n = _rows_in(file, "offsets") - 1
    if n < 1:
        raise DatasetError("offsets are empty")
    of_atoms = next(name for name, table in tables.items() if table.per == "atom")
    rows = {"system": n, "atom": _rows_in(file, of_atoms), "byte": _rows_in(file, "info")}
    places = {
        name: _place(file, name, table.dtype, rows[table.per], size)
        for name, table in tables.items()
    }
    for name in INDEX:
        places[name] = _place(file, name, np.dtype("<i8"), n + 1, size)
    return places, n, rows["atom"], rows["byte"]


def _rows_in(file: h5py.File, name: str) -> int:
    shape = _dataset(file, name).shape
    return int(shape[0]) if len(shape) else 0


def _dataset(file: h5py.File, name: str) -> h5py.h5d.DatasetID:
    """Open a dataset without ever following a soft, external or user-defined link."""
    encoded = name.encode()
    if not file.id.links.exists(encoded):
        raise DatasetError(f"dataset {name!r} is missing")
    if file.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
        raise DatasetError(f"{name!r} is a soft or external link, which is refused")
    if h5py.h5o.get_info(file.id, encoded).type != h5py.h5o.TYPE_DATASET:
        raise DatasetError(f"{name!r} is not a dataset")
    return h5py.h5d.open(file.id, encoded)


def _place(file: h5py.File, name: str, row: np.dtype, n_rows: int, size: int) -> int:
    """Byte position of a contiguous, unfiltered dataset that lies within the file."""
    dataset, dtype, shape = _dataset(file, name), row.base, (n_rows, *row.shape)
    creation = dataset.get_create_plist()
    if (
        creation.get_layout() != h5py.h5d.CONTIGUOUS
        or creation.get_nfilters()
        or creation.get_external_count()
    ):
        raise DatasetError(f"{name!r} is refused: chunked, filtered, virtual or stored elsewhere")
    if not dataset.get_type().equal(h5py.h5t.py_create(dtype, logical=True)):
        raise DatasetError(f"{name!r} has the wrong type", expected=dtype, found=dataset.dtype)
    if dataset.shape != shape:
        raise DatasetError(f"{name!r} has the wrong shape", expected=shape, found=dataset.shape)
    if h5py.h5a.get_num_attrs(dataset):
        raise DatasetError(f"{name!r} has attributes, which are refused")
    place, n_bytes = dataset.get_offset(), row.itemsize * n_rows
    if place is None or place + n_bytes > size:
        raise DatasetError(
            f"{name!r} reaches beyond the end of the file",
            expected=f"at most {size} bytes",
            found=f"{n_bytes} bytes at {place}",
        )
    return int(place)
