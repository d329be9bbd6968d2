"""The lock of the one writer, and what the disk refuses said in words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path

from mlff_distiller.errors import DatasetError, DatasetInUseError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up: free space, then run the same command again",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "give yourself write permission, or choose another folder",
    errno.EPERM: "give yourself write permission, or choose another folder",
    errno.ENOTDIR: "a file is in the way: choose another folder",
    errno.EEXIST: "a file is in the way: choose another folder",
    errno.ENOENT: "a file of the dataset is gone: restore it from a copy",
    errno.EIO: "the disk or its connection fails: copy what is left and check it",
}


@contextlib.contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``DatasetError`` with path and remedy."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise DatasetError(
            f"dataset {path}: {error.strerror or error} ({where})",
            remedy=_REMEDIES.get(error.errno or 0, "see the operating system's message above"),
        ) from error


class WriterLock:
    """An exclusive ``flock`` on ``folder/.lock``, taken at once or not at all.

    The kernel frees it when the process ends, however it ends. A forked child does not share it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"
        self._descriptor = -1
        with explaining(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._descriptor, 200, 0).decode("utf-8", "replace").strip()
                self.release()
                raise DatasetInUseError(
                    f"dataset {folder} is being written by another process",
                    found=holder or "a process that has not yet left its number",
                    remedy="wait until it ends, or stop it, or choose another folder",
                ) from None
            except OSError:
                self.release()
                raise
            self._write_holder()
        _HELD.add(self)

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def release(self) -> None:
        """Free the lock; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()

    def __reduce__(self) -> str:
        raise TypeError("a dataset's writer cannot be copied or sent to another process")

    def _write_holder(self) -> None:
        """Leave word of who holds the lock; a full disk must not keep anyone from trying."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            text = f"process {os.getpid()} on {socket.gethostname()}\n"
            os.pwrite(self._descriptor, text.encode(), 0)


_HELD: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Close the child's copies: a lock lives until its last copy is closed."""
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_forget_in_child)
