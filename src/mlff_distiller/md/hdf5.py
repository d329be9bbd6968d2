"""Trajectories in HDF5, readable while they grow and after whatever ends the writer."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms

from mlff_distiller.durable import replacing
from mlff_distiller.md.files import Frame, Mark, damaged

SCHEMA = 1

_SIGNATURE, _SUPERBLOCK, _FLAGS = b"\x89HDF\r\n\x1a\n\x03", 48, 11
"""HDF5: how a file begins, the size of its superblock, and where this says that it is open."""
_WORD = 0xFFFFFFFF


class HDF5Trajectory:
    """Arrays over frames; README.md of the documentation lists them. Readable while it grows.

    Written in HDF5's single-writer, multiple-readers mode, so whatever kills the writer leaves
    frames up to the last mark readable. Such a file is then copied once, up to the mark.
    """

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: Mark | None) -> None:
        n_atoms, n_systems = sum(map(len, templates)), len(templates)
        shapes = {
            "step": ((), "i8"),
            "time_ps": ((), "f8"),
            "positions": ((n_atoms, 3), "f8"),
            "velocities": ((n_atoms, 3), "f4"),
            "forces": ((n_atoms, 3), "f4"),
            "cell": ((n_systems, 3, 3), "f8"),
            "energy": ((n_systems,), "f8"),
            "stress": ((n_systems, 3, 3), "f8"),
        }
        fixed = {
            "atomic_numbers": np.concatenate([atoms.numbers for atoms in templates]),
            "masses": np.concatenate([atoms.get_masses() for atoms in templates]),
            "system_idx": np.repeat(np.arange(n_systems), [len(a) for a in templates]),
            "pbc": np.stack([atoms.pbc for atoms in templates]),
        }
        self._types = {name: dtype for name, (_, dtype) in shapes.items()}
        self._digests = {name: hashlib.sha256() for name in shapes}
        self._path, self._fixed = path, fixed
        if mark is None:
            path.write_bytes(self._empty(shapes))  # fails without a trace in HDF5
        self._file = (
            h5py.File(path, "r+", libver="latest") if mark is None else self._reopened(mark)
        )
        self._rows = {name: self._file[name] for name in shapes}  # closed with the file, not before
        try:
            with _as_os_error():
                self._file.swmr_mode = True
        except Exception:
            self.abandon()
            raise

    def _empty(self, shapes: dict[str, tuple[tuple[int, ...], str]]) -> memoryview:
        content = io.BytesIO()
        with h5py.File(content, "w", libver="latest") as file:
            file.attrs["schema"] = SCHEMA
            file.attrs["format"] = "mlff-distiller trajectory"
            for name, values in self._fixed.items():
                file.create_dataset(name, data=values)
            for name, (shape, dtype) in shapes.items():
                size = max(1, int(np.prod(shape)) * int(dtype[1]))
                chunk = (max(1, 65536 // size), *shape)
                rows = {"shape": (0, *shape), "maxshape": (None, *shape), "chunks": chunk}
                file.create_dataset(name, dtype=dtype, **rows)
        return content.getbuffer()

    def _reopened(self, mark: Mark) -> h5py.File:
        with self._path.open("rb") as start:
            head = start.read(_FLAGS + 1)
        if not head.startswith(_SIGNATURE):
            raise OSError("no HDF5 file")
        killed = head[_FLAGS:] != b"\0"
        if killed:
            # Not read in HDF5's mode for readers: it tries damaged metadata again without end.
            with replacing(self._path) as temporary:
                shutil.copyfile(self._path, temporary)
                _clear_flags(temporary)
                self._cut(temporary, mark).close()
        return self._cut(self._path, mark)

    def _cut(self, path: Path, mark: Mark) -> h5py.File:
        file = h5py.File(path, "r+", libver="latest")
        try:
            self._check(file, mark)
            for name in self._types:
                file[name].resize(mark.end, axis=0)
        except BaseException:
            file.close()
            raise
        return file

    def _check(self, file: h5py.File, mark: Mark) -> None:
        for name, values in self._fixed.items():
            if not np.array_equal(file[name], values):
                raise damaged(self._path, f"{name} of the structures", "others")
        end = min(len(file[name]) for name in self._types)
        self._digests = {name: hashlib.sha256() for name in self._types}
        for name, digest in self._digests.items():
            step = file[name].chunks[0]
            for start in range(0, min(end, mark.end), step):
                digest.update(file[name][start : min(start + step, mark.end)].tobytes())
        mark.check(self._path, Mark(end, self._sha256()))

    def _sha256(self) -> str:
        return hashlib.sha256(b"".join(d.digest() for d in self._digests.values())).hexdigest()

    def append(self, frame: Frame) -> None:
        with _as_os_error():
            count = len(self._rows["step"])
            for name, dtype in self._types.items():
                row = np.asarray(getattr(frame, name), dtype)
                self._rows[name].resize(count + 1, axis=0)
                self._rows[name][count] = row
                self._digests[name].update(row.tobytes())

    def mark(self) -> Mark:
        with _as_os_error():
            self._file.flush()
        return Mark(len(self._rows["step"]), self._sha256())

    def close(self) -> None:
        self.mark()  # what fails here leaves a file that can still be abandoned
        self._file.close()

    def abandon(self) -> None:
        """HDF5 crashes in a process that cannot write what it still holds: it goes nowhere."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._file.id.get_vfd_handle())
        os.close(nowhere)
        with suppress(OSError, RuntimeError):
            self._file.close()


def _clear_flags(path: Path) -> None:
    """Take from a file what says that somebody writes it: his flags, in a checked superblock."""
    with path.open("r+b") as file:
        block = bytearray(file.read(_SUPERBLOCK))
        if _lookup3(block[:-4]) != bytes(block[-4:]):
            raise OSError("its first bytes are damaged")
        block[_FLAGS] = 0
        file.seek(0)
        file.write(block[:-4] + _lookup3(block[:-4]))


def _lookup3(content: bytes | bytearray) -> bytes:
    """HDF5's checksum of whole words: Bob Jenkins' lookup3 (2006)."""
    words = np.frombuffer(content, "<u4").tolist()
    v = [(0xDEADBEEF + len(content)) & _WORD] * 3

    def turned(x: int, k: int) -> int:
        return (x << k | x >> (32 - k)) & _WORD

    while len(words) > 3:
        v, words = [(x + y) & _WORD for x, y in zip(v, words[:3], strict=True)], words[3:]
        for n, k in enumerate((4, 6, 8, 16, 19, 4)):
            x, y, z = n % 3, (n + 2) % 3, (n + 1) % 3
            v[x] = (v[x] - v[y]) & _WORD ^ turned(v[y], k)
            v[y] = (v[y] + v[z]) & _WORD
    v = [(x + y) & _WORD for x, y in zip(v, [*words, 0, 0], strict=False)]
    for n, k in enumerate((14, 11, 25, 16, 4, 14, 24)):
        x, y = (n + 2) % 3, (n + 1) % 3
        v[x] = ((v[x] ^ v[y]) - turned(v[y], k)) & _WORD
    return v[2].to_bytes(4, "little")


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What HDF5 says of the disk in its own words, as others say it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
