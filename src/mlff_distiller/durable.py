"""Writes that survive a crash (temporary file in the same folder, fsync, rename), one at a time.

Who writes holds a `Lock`; what the disk refuses is said in words by `explaining`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlff_distiller.errors import ConfigError, DistillerError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up: free space, then run the same command again",
    errno.EFBIG: "files may not become so large here: choose another place",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "give yourself write permission, or choose another folder",
    errno.EPERM: "give yourself write permission, or choose another folder",
    errno.ENOTDIR: "a file is in the way: choose another folder",
    errno.EISDIR: "a folder is in the way: choose another name",
    errno.EEXIST: "a file is in the way: choose another folder",
    errno.ENOENT: "a file is gone: restore it from a copy",
    errno.EIO: "the disk or its connection fails: copy what is left and check it",
}
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What file systems of clusters answer that are mounted without locks."""


@contextlib.contextmanager
def explaining(what: str, error: type[DistillerError] = ConfigError) -> Iterator[None]:
    """Turn an ``OSError`` of the block into an ``error`` with ``what``, the file and a remedy."""
    try:
        yield
    except OSError as refused:
        where = f" ({refused.filename})" if refused.filename else ""
        raise error(
            f"{what}: {refused.strerror or refused}{where}",
            remedy=_REMEDIES.get(refused.errno or 0, "see the operating system's message above"),
        ) from refused


class Lock:
    """The right to write ``path``, a file or an existing folder; taken at once or not at all.

    A context manager. It is an exclusive ``flock`` on ``FOLDER/.lock``, or on ``.FILE.lock``
    next to a file, which is removed when the lock is freed. The kernel frees it when the process
    ends, however it ends. A forked child does not share it.

    Parameters
    ----------
    what
        Begins the messages; by default ``path``.
    in_use, refused
        What is raised where another process holds the lock, and where the disk refuses it.
    """

    def __init__(
        self,
        path: Path,
        what: str = "",
        *,
        in_use: type[DistillerError] = ConfigError,
        refused: type[DistillerError] = ConfigError,
    ) -> None:
        self._descriptor = -1
        what, path = what or str(path), path.resolve()
        self._path = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
        with explaining(what, refused):
            holder = self._take()
        if holder is not None:
            raise in_use(
                f"{what} is being written by another process",
                found=holder or "a process that has not yet left its number",
                remedy="wait until it ends, or stop it, or choose another place",
            )
        _HELD.add(self)

    def _take(self) -> str | None:
        """None, or who holds the lock."""
        while True:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(self._descriptor, 200, 0).decode("utf-8", "replace").strip()
                self._close()
                return holder
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    self._close()
                    raise
                warnings.warn(
                    f"{self._path.parent} is on a file system without locks: see to it yourself "
                    "that no other process writes there",
                    stacklevel=4,
                )
            if self._is_there():
                break
            self._close()  # its last holder has removed it meanwhile
        with contextlib.suppress(OSError):  # a full disk must not keep anyone from trying
            os.ftruncate(self._descriptor, 0)
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            text = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
            os.pwrite(self._descriptor, text.encode(), 0)
        return None

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def release(self) -> None:
        """Free the lock; a second call does nothing."""
        if self.held:
            with contextlib.suppress(OSError):
                if self._is_there():
                    self._path.unlink()
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def __reduce__(self) -> str:
        raise TypeError("a lock cannot be copied or sent to another process")


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Close the child's copies: a lock lives until its last copy is closed."""
    for lock in list(_HELD):
        lock._close()


os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, made if need be; what was made and left empty is removed."""
    made = not folder.exists()
    try:
        with explaining(f"{folder} cannot be used"):
            folder.mkdir(parents=True, exist_ok=True)
            with Lock(folder):
                yield
    finally:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder that must not exist yet; its own folder is made."""
    with explaining(f"{path} cannot be made"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with Lock(path):
            if path.exists():
                raise ConfigError(f"{path} exists", remedy="remove it, or choose another --out")
            yield


def _fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, it durably becomes ``path``.

    Works for a file and for a folder. A folder already at ``path`` is removed first, so a
    crash can leave no folder, but never a half-written one. When the block raises, nothing
    at ``path`` has changed and the temporary is gone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        if temporary.is_dir():
            for member in temporary.rglob("*"):
                _fsync_path(member)
            if path.is_dir():
                shutil.rmtree(path)
        _fsync_path(temporary)
        temporary.replace(path)
        _fsync_path(path.parent)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left in ``folder``; call only while holding its lock."""
    for leftover in folder.glob(".*.partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Durably replace ``path`` by ``content``."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Durably replace ``path`` by ``text`` in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Durably replace ``path`` by JSON. NaN and infinity are refused: JSON has neither."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(
    path: Path,
    form: Mapping[str, Any] | None = None,
    *,
    error: type[DistillerError] = ConfigError,
    remedy: str = "restore it from a copy",
) -> dict[str, Any]:
    """The object in ``path``; an empty one where there is no such file.

    ``form`` is an example: what it holds must be there and of the same types, to any depth; None
    stands for anything, and a list's first entry for all of them. An ``error`` names a file that
    cannot be read, holds no JSON, or is of another form.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return {}
        found: object = "a link to nothing"
    except (OSError, ValueError, RecursionError) as damage:  # no UTF-8 is a ValueError too
        found = damage.strerror if isinstance(damage, OSError) else damage
    else:
        found = _difference(content, form or {}, "")
        if not found:
            return dict(content)
    raise error(
        f"{path} is damaged, or not one of ours",
        expected="JSON as it was written here",
        found=found,
        remedy=remedy,
    )


def _difference(content: Any, form: Any, place: str) -> str:
    """Where ``content`` is not of ``form``, in words; empty if nowhere."""
    if form is None:
        return ""
    if not isinstance(content, type(form)):
        return f"{place or 'all of it'} is {type(content).__name__}, no {type(form).__name__}"
    if isinstance(form, Mapping):
        missing = [f"{place}.{key}".lstrip(".") for key in form if key not in content]
        if missing:
            return f"{missing[0]} is missing"
        parts = [(content[key], own, f"{place}.{key}".lstrip(".")) for key, own in form.items()]
    else:
        inner = form[0] if isinstance(form, list) and form else None
        parts = [(own, inner, f"{place}[{k}]") for k, own in enumerate(content)] if inner else []
    return next(filter(None, (_difference(*part) for part in parts)), "")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class EventLog:
    """JSON lines, one event per line; what is not an event, as a torn line, is left out.

    It is a record for people and plots: nothing that was paid for is in it alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, stage: str, **figures: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "stage": stage, **figures})
        with self.path.open("ab+") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read(1) == b"\n" else "\n" + line
            stream.write(line.encode("utf-8") + b"\n")

    def rows(self, stage: str, *names: str) -> list[dict[str, Any]]:
        """Events of ``stage`` that have all ``names``, in order."""
        rows = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and row.get("stage") == stage and row.keys() >= set(names):
                rows.append(row)
        return rows
