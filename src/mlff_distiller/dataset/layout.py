"""The file format of a shard: writing it, and finding its columns without trusting it.

One HDF5 file, datasets contiguous and unfiltered at the root, no links but hard ones, no
attributes but three plain ones, metadata with HDF5's own checksums (superblock 2).
"""

from __future__ import annotations

import io
import os
import stat

import h5py
import numpy as np

from mlff_distiller.dataset.columns import COLUMNS, Column, Rows
from mlff_distiller.errors import DatasetError

SCHEMA = 1
"""Version of shards and manifests; another one is refused."""

INDEX: dict[str, Column] = {
    "offsets": Column("system", (), np.dtype("<i8")),
    "info_offsets": Column("system", (), np.dtype("<i8")),
    "checksum": Column("system", (), np.dtype("<u8")),
}
"""Columns of the file beside those of the records; both offsets have one row more."""

_FORMAT = b"mlff-distiller shard"
_SIGNATURE = b"\x89HDF\r\n\x1a\n\x02"


def image(rows: Rows) -> bytes:
    """The file that holds ``rows``; equal rows give equal bytes."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v108", "v108")) as file:
        file.attrs["format"] = np.bytes_(_FORMAT)
        file.attrs["schema"] = np.int64(SCHEMA)
        file.attrs["index_checksum"] = np.uint64(rows.index_checksum())
        file["offsets"], file["info_offsets"] = rows.offsets, rows.info_offsets
        file["checksum"] = rows.checksums()
        for name, array in rows.columns.items():
            file[name] = array
    return buffer.getvalue()


def size_of_shard(descriptor: int) -> int:
    """Bytes; refuses what is no file of this format before HDF5 sees it."""
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


def check_attributes(file: h5py.File) -> int:
    """Refuse any attribute that is not a plain number or short text; return the index checksum."""
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
    if found["schema"] != SCHEMA:
        raise other_schema("it", int(found["schema"]))
    if not isinstance(found.get("index_checksum"), np.uint64):
        raise DatasetError("the checksum of the index is missing")
    return int(found["index_checksum"])


def other_schema(name: str, found: int) -> DatasetError:
    """The error for a shard or manifest of schema ``found``."""
    newer = "this dataset was written by a newer version of MLFF Distiller: upgrade"
    older = "this dataset was written by an older version of MLFF Distiller: read it with that one"
    return DatasetError(
        f"{name} is of another schema",
        expected=f"schema {SCHEMA}",
        found=f"schema {found}",
        remedy=newer if found > SCHEMA else older,
    )


def find_columns(file: h5py.File, size: int) -> tuple[dict[str, int], int, int, int]:
    """Byte position of every dataset; numbers of records, atoms and bytes of provenance."""
    n_objects = file.id.get_num_objs()
    if n_objects != len(COLUMNS) + len(INDEX):
        raise DatasetError("unexpected contents", found=f"{n_objects} objects in the root")
    n = _rows_in(file, "offsets") - 1
    n_atoms, n_bytes = _rows_in(file, "atomic_numbers"), _rows_in(file, "info")
    if n < 1:
        raise DatasetError("offsets are empty")
    lengths = {"system": n, "atom": n_atoms, "byte": n_bytes}
    places = {
        name: _place(file, name, column.dtype, (lengths[column.per], *column.shape), size)
        for name, column in COLUMNS.items()
    }
    for name, column in INDEX.items():
        length = n if name == "checksum" else n + 1
        places[name] = _place(file, name, column.dtype, (length,), size)
    return places, n, n_atoms, n_bytes


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


def _place(file: h5py.File, name: str, dtype: np.dtype, shape: tuple[int, ...], size: int) -> int:
    """Byte position of a contiguous, unfiltered dataset that lies within the file."""
    dataset = _dataset(file, name)
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
    place, n_bytes = dataset.get_offset(), dtype.itemsize
    for length in shape:  # Python's integers: a declared size may exceed 64 bits
        n_bytes *= int(length)
    if place is None or place + n_bytes > size:
        raise DatasetError(
            f"{name!r} reaches beyond the end of the file",
            expected=f"at most {size} bytes",
            found=f"{n_bytes} bytes at {place}",
        )
    return int(place)
