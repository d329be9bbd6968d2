"""Trajectories written by a thread of their own: extended XYZ, ASE's .traj, or HDF5.

Each format can say how far it has got (``mark``) and go back there (``cut``), so that a run which
continues from a checkpoint leaves no frame out and repeats none.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from ase.io.trajectory import TrajectoryWriter
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mlff_distiller.durable import replacing
from mlff_distiller.errors import DynamicsError

WAITING = 8
"""Frames that may wait to be written; then the simulation waits."""
SCHEMA = 1

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


class Format(Protocol):
    """A file that frames are appended to."""

    def append(self, frame: Frame) -> None: ...

    def mark(self) -> int:
        """Make all frames durable, and say where the file ends."""

    def close(self) -> None: ...


class ExtendedXYZ:
    """All systems of a frame one after another: every n_systems-th frame is of one system."""

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: int | None) -> None:
        self._templates = templates
        self._file = path.open("w" if mark is None else "r+", encoding="utf-8")
        if mark is not None:
            self._file.truncate(mark)
            self._file.seek(mark)

    def append(self, frame: Frame) -> None:
        write_extxyz(self._file, frame.to_atoms(self._templates))

    def mark(self) -> int:
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


class ASETrajectory:
    """ASE's binary format, systems in the same order."""

    _COUNT = 32
    """Where the header holds the number of frames, a 64-bit integer."""

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: int | None) -> None:
        self._templates, self._path, self._count = templates, path, mark or 0
        if mark == 0:
            mark = None
        if mark is not None:
            with path.open("r+b") as file:
                file.seek(self._COUNT)
                if int.from_bytes(file.read(8), "little") < mark:
                    raise DynamicsError(f"{path} has lost frames", expected=f"{mark} frames")
                file.seek(self._COUNT)
                file.write(mark.to_bytes(8, "little"))
        self._writer = TrajectoryWriter(str(path), mode="w" if mark is None else "a")

    def append(self, frame: Frame) -> None:
        for atoms in frame.to_atoms(self._templates):
            self._writer.write(atoms)
            self._count += 1

    def mark(self) -> int:
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return self._count

    def close(self) -> None:
        self._writer.close()


class HDF5Trajectory:
    """Arrays over frames; README.md of the documentation lists them. Readable while it grows.

    Written in HDF5's single-writer, multiple-readers mode, so whatever kills the writer leaves
    frames up to the last mark readable. Such a file is then copied once, up to the mark.
    """

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: int | None) -> None:
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
        if mark is not None:
            self._file = self._reopened(path, mark)
        else:
            self._file = h5py.File(path, "w", libver="latest")
            self._file.attrs["schema"] = SCHEMA
            self._file.attrs["format"] = "mlff-distiller trajectory"
            fixed = {
                "atomic_numbers": np.concatenate([atoms.numbers for atoms in templates]),
                "masses": np.concatenate([atoms.get_masses() for atoms in templates]),
                "system_idx": np.repeat(np.arange(n_systems), [len(a) for a in templates]),
                "pbc": np.stack([atoms.pbc for atoms in templates]),
            }
            for name, values in fixed.items():
                self._file.create_dataset(name, data=values)
            for name, (shape, dtype) in shapes.items():
                size = max(1, int(np.prod(shape)) * int(dtype[1]))
                chunk = (max(1, 65536 // size), *shape)
                rows = {"shape": (0, *shape), "maxshape": (None, *shape), "chunks": chunk}
                self._file.create_dataset(name, dtype=dtype, **rows)
        self._names = tuple(shapes)
        self._file.swmr_mode = True

    @staticmethod
    def _reopened(path: Path, mark: int) -> h5py.File:
        try:
            file = h5py.File(path, "r+", libver="latest")
        except OSError:  # its writer was killed
            with (
                h5py.File(path, "r", libver="latest", swmr=True, locking=False) as old,
                replacing(path) as temporary,
                h5py.File(temporary, "w", libver="latest") as new,
            ):
                for name, dataset in old.items():
                    old.copy(dataset, new, name)
                new.attrs.update(old.attrs)
            file = h5py.File(path, "r+", libver="latest")
        if len(file["step"]) < mark:
            file.close()
            raise DynamicsError(f"{path} has lost frames", expected=f"{mark} frames")
        for name in file:
            if file[name].maxshape[0] is None:
                file[name].resize(mark, axis=0)
        return file

    def append(self, frame: Frame) -> None:
        count = len(self._file["step"])
        for name in self._names:
            dataset = self._file[name]
            dataset.resize(count + 1, axis=0)
            dataset[count] = getattr(frame, name)

    def mark(self) -> int:
        self._file.flush()
        return len(self._file["step"])

    def close(self) -> None:
        self._file.close()


FORMATS: dict[str, Callable[[Path, Sequence[Atoms], int | None], Format]] = {
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

    def __init__(self, path: Path, templates: Sequence[Atoms], mark: int | None = None) -> None:
        self._path = path
        self._format = FORMATS[path.suffix](path, templates, mark)
        self._queue: queue.Queue[Frame | None] = queue.Queue(WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write, name="trajectory", daemon=True)
        self._thread.start()

    def append(self, frame: Frame) -> None:
        """Hand over a frame; waits only where many wait already."""
        self._check()
        self._queue.put(frame)

    def mark(self) -> int:
        """Wait until all frames are durable, and say where the file ends, to reopen it there."""
        self._queue.join()
        self._check()
        try:
            return self._format.mark()
        except OSError as error:
            self._error = error
            self._check()
            raise

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._queue.put(None)
        self._thread.join()
        self._format.close()

    def _check(self) -> None:
        if self._error is not None:
            raise DynamicsError(
                f"the trajectory {self._path} cannot be written: {self._error}",
                remedy="make room, and give the same command again to continue from the checkpoint",
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
