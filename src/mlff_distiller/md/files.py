"""Trajectories written by a thread of their own: extended XYZ, ASE's .traj, or HDF5.

Each format can say how far it has got and what lies before (``mark``), and is opened there again,
so that a run which continues from a checkpoint leaves no frame out, repeats none, and adds nothing
to a file that was damaged meanwhile.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import queue
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import ulm
from ase.io.extxyz import read_extxyz, write_extxyz
from ase.io.trajectory import TrajectoryWriter
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mlff_distiller.durable import explaining, replacing
from mlff_distiller.errors import DistillerError, DynamicsError

WAITING = 8
"""Frames that may wait to be written; then the simulation waits."""
_LOOKED_AT = 1000
"""Atoms on which is tried whether a format can hold what they have."""
SCHEMA = 1

_SIGNATURE, _SUPERBLOCK, _FLAGS = b"\x89HDF\r\n\x1a\n\x03", 48, 11
"""HDF5: how a file begins, the size of its superblock, and where this says that it is open."""
_WORD = 0xFFFFFFFF

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """All systems at one instant."""

    step: int
    time_ps: float
    positions: Array  # (n_atoms, 3) Å, not wrapped
    velocities: Array  # (n_atoms, 3) Å / ASE's unit of time
    forces: Array  # (n_atoms, 3) eV/Å
    cell: Array  # (n_systems, 3, 3) Å
    energy: Array  # (n_systems,) eV
    stress: Array  # (n_systems, 3, 3) eV/Å³; NaN without a volume

    def to_atoms(self, templates: Sequence[Atoms]) -> list[Atoms]:
        """One ``Atoms`` a system, with momenta, and energy, forces and stress in a calculator."""
        frames, start = [], 0
        for system, template in enumerate(templates):
            atoms = template.copy()
            own = slice(start, start + len(atoms))
            start += len(atoms)
            atoms.set_cell(self.cell[system])
            atoms.set_positions(self.positions[own], apply_constraint=False)
            momenta = atoms.get_masses()[:, None] * self.velocities[own]
            atoms.set_momenta(momenta, apply_constraint=False)
            results = {"energy": float(self.energy[system]), "forces": self.forces[own].copy()}
            if np.isfinite(self.stress[system]).all():
                results["stress"] = full_3x3_to_voigt_6_stress(self.stress[system])
            atoms.calc = SinglePointCalculator(atoms, **results)
            atoms.info |= {"step": self.step, "time_ps": round(self.time_ps, 9)}
            if len(templates) > 1:
                atoms.info["system"] = system
            frames.append(atoms)
        return frames


class Mark(NamedTuple):
    """Where a file ends, and what it holds up to there."""

    end: int
    """Bytes or frames."""
    sha256: str | None = None
    """None in checkpoints of earlier versions."""

    def check(self, path: Path, found: Mark) -> None:
        """Raise ``DynamicsError`` if ``found`` of the file is less, or something else."""
        if found.end < self.end or self.sha256 not in (None, found.sha256):
            raise damaged(path, f"{self.end} bytes or frames of SHA-256 {self.sha256}", found)


def damaged(path: Path, expected: object, found: object) -> DynamicsError:
    """The error of a file that the checkpoint cannot be continued in."""
    return DynamicsError(
        f"{path} is not what its checkpoint continues: it was damaged or replaced",
        expected=expected,
        found=found,
        remedy="put it back from a copy; or keep it under another name and start again (overwrite)",
    )


@contextmanager
def reopening(path: Path) -> Iterator[None]:
    """Whatever a library says of a damaged file becomes the error that names it."""
    try:
        yield
    except DistillerError:
        raise
    except Exception as error:
        with explaining(str(path), DynamicsError):
            if isinstance(error, OSError) and error.errno:
                raise
        found = f"{type(error).__name__}: {error}"
        raise damaged(path, "a file that can be read", found) from error


class GrowingText:
    """Text that is appended to a file."""

    def __init__(self, path: Path, mark: Mark | None) -> None:
        self._digest = hashlib.sha256()
        self._error: OSError | None = None
        self._file = path.open("wb" if mark is None else "r+b")
        if mark is not None:
            self._go_to(path, mark)

    def _go_to(self, path: Path, mark: Mark) -> None:
        left = mark.end
        while block := self._file.read(min(left, 1 << 20)):
            self._digest.update(block)
            left -= len(block)
        try:
            mark.check(path, Mark(self._file.tell(), self._digest.hexdigest()))
        except DynamicsError:
            self._file.close()
            raise
        self._file.truncate(mark.end)
        self._file.seek(mark.end)

    def write(self, text: str) -> None:
        content = text.encode()
        self._digest.update(content)
        try:
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            self._error = error
            raise

    def mark(self) -> Mark:
        """Make all of it durable; ``OSError`` if any of it was not written."""
        if self._error is not None:
            raise self._error
        os.fsync(self._file.fileno())
        return Mark(self._file.tell(), self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()


class Format(Protocol):
    """A file that frames are appended to."""

    def append(self, frame: Frame) -> None: ...

    def mark(self) -> Mark:
        """Make all frames durable, and say where the file ends."""

    def close(self) -> None: ...

    def abandon(self) -> None:
        """Close it after an error, writing nothing more."""


class ExtendedXYZ:
    """All systems of a frame one after another: every n_systems-th frame is of one system."""

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: Mark | None) -> None:
        self._templates = [expressible(atoms) for atoms in templates]
        self._file = GrowingText(path, mark)

    def append(self, frame: Frame) -> None:
        text = io.StringIO()
        write_extxyz(text, frame.to_atoms(self._templates))
        self._file.write(text.getvalue())

    def mark(self) -> Mark:
        return self._file.mark()

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        with suppress(OSError):
            self._file.close()


def expressible(template: Atoms) -> Atoms:
    """``template`` without what extended XYZ has no words for; a warning names it."""
    plain = {"numbers", "positions", "masses", "tags"}
    if not (template.info or set(template.arrays) - plain) or _comes_back(template[:_LOOKED_AT]):
        return template
    template, lost = template.copy(), []
    for kind in ("info", "arrays"):
        entries = getattr(template, kind)
        for name in sorted(set(entries) - plain, key=str):
            one = Atoms(template.numbers, template.positions)
            getattr(one, kind)[name] = entries[name]
            if not _comes_back(one):
                del entries[name]
                lost.append(str(name))
    warnings.warn(
        f"extended XYZ cannot hold {', '.join(lost)} of a structure: left out of the trajectory",
        stacklevel=2,
    )
    return template


def _comes_back(atoms: Atoms) -> bool:
    """Whether extended XYZ returns every entry that ``atoms`` have."""
    text = io.StringIO()
    try:
        write_extxyz(text, atoms)
        text.seek(0)
        [again] = read_extxyz(text, slice(None))
    except Exception:  # ASE's writer and reader raise whatever they meet
        return False
    return set(atoms.info) <= set(again.info) and set(atoms.arrays) <= set(again.arrays)


class ASETrajectory:
    """ASE's binary format, systems in the same order."""

    _COUNT = 32
    """Where the header holds the number of frames, a 64-bit integer."""

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: Mark | None) -> None:
        self._templates, self._count, self._digest = templates, 0, hashlib.sha256()
        if mark is not None:
            self._go_to(path, mark)
        self._writer = TrajectoryWriter(str(path), mode="w" if mark is None else "a")
        self._written = path.open("rb")

    def _go_to(self, path: Path, mark: Mark) -> None:
        with path.open("r+b") as file:
            for offset in ulm.read_header(file)[4][: mark.end]:
                self._take(file, int(offset))
            mark.check(path, Mark(self._count, self._digest.hexdigest()))
            file.seek(self._COUNT)
            file.write(mark.end.to_bytes(8, "little"))

    def _take(self, file: BinaryIO, offset: int) -> None:
        """Count a frame: its JSON at ``offset``, after its length, and the arrays listed there."""
        read = partial(os.pread, file.fileno())
        content = read(int.from_bytes(read(8, offset), "little"), offset + 8)
        self._digest.update(content)
        waiting = [json.loads(content)]
        while waiting:
            for name, value in waiting.pop().items():
                if name == "ndarray":
                    shape, dtype, start = value
                    self._digest.update(read(math.prod(shape) * np.dtype(dtype).itemsize, start))
                elif isinstance(value, dict):
                    waiting.append(value)
        self._count += 1

    def append(self, frame: Frame) -> None:
        for atoms in frame.to_atoms(self._templates):
            self._writer.write(atoms)
            backend = self._writer.backend
            self._take(self._written, int(backend.offsets[backend.nitems - 1]))

    def mark(self) -> Mark:
        os.fsync(self._written.fileno())
        return Mark(self._count, self._digest.hexdigest())

    def close(self) -> None:
        self._written.close()
        self._writer.close()

    def abandon(self) -> None:
        with suppress(OSError):
            self._written.close()
            self._writer.backend.fd.close()


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


FORMATS: dict[str, Callable[[Path, Sequence[Atoms], Mark | None], Format]] = {
    ".extxyz": ExtendedXYZ,
    ".xyz": ExtendedXYZ,
    ".traj": ASETrajectory,
    ".h5": HDF5Trajectory,
    ".hdf5": HDF5Trajectory,
}


def check_format(path: Path) -> None:
    """Raise ``DynamicsError`` if no format goes by the file's name."""
    if path.suffix not in FORMATS:
        raise DynamicsError(
            f"the format of {path.name!r} is not known", expected=f"one of {', '.join(FORMATS)}"
        )


class TrajectoryThread:
    """Appends frames to a file while the simulation goes on.

    Raises
    ------
    DynamicsError
        From ``append`` or ``mark``: the frames before could not be written.
    """

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: Mark | None = None) -> None:
        self._path = path
        with explaining(str(path), DynamicsError) if mark is None else reopening(path):
            self._format = FORMATS[path.suffix](path, templates, mark)
        self._queue: queue.Queue[Frame | None] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write, name="trajectory", daemon=True)
        self._thread.start()

    def append(self, frame: Frame) -> None:
        """Hand over a frame; waits only where many wait already."""
        self._check()
        self._queue.put(frame)

    def mark(self) -> Mark:
        """Wait until all frames are durable, and say where the file ends, to reopen it there."""
        self._queue.join()
        self._check()
        try:
            return self._format.mark()
        except Exception as error:
            self._error = error
            self._check()
            raise

    def close(self) -> None:
        """Write what waits, and close the file; after an error, only close it."""
        self._queue.put(None)
        self._thread.join()
        if self._error is None:
            try:
                self._format.close()
                return
            except Exception as error:
                self._error = error
                self._format.abandon()
                self._check()
        self._format.abandon()

    def _check(self) -> None:
        if self._error is not None:
            with explaining(f"the trajectory {self._path} cannot be written", DynamicsError):
                if isinstance(self._error, OSError):
                    raise self._error
            raise DynamicsError(
                f"the trajectory {self._path} cannot be written",
                found=f"{type(self._error).__name__}: {self._error}",
                remedy="the structure's info and arrays may hold what the format cannot: remove "
                "them, or choose another format",
            ) from self._error

    def _write(self) -> None:
        while True:
            frame: Any = self._queue.get()
            try:
                if frame is None:
                    return
                if self._error is None:
                    self._format.append(frame)
            except Exception as error:
                self._error = error
            finally:
                self._queue.task_done()
