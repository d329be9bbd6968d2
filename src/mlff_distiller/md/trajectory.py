"""Trajectories written by a thread of their own, in the format that a file's name asks for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from mlff_distiller.durable import explaining
from mlff_distiller.errors import DynamicsError
from mlff_distiller.md.files import Format, Frame, Mark, reopening
from mlff_distiller.md.formats import ASETrajectory, ExtendedXYZ
from mlff_distiller.md.hdf5 import HDF5Trajectory

WAITING = 8
"""Frames that may wait to be written; then the simulation waits."""

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
