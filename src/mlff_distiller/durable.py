"""Writes that survive a crash: temporary file in the same folder, fsync, rename."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; an empty one where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class EventLog:
    """JSON lines, one event a line; a torn last line, from a crash, is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, stage: str, **figures: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "stage": stage, **figures})
        with self.path.open("ab+") as stream:
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                line = line if stream.read(1) == b"\n" else "\n" + line
            stream.write(line.encode("utf-8") + b"\n")

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """Events of ``stage``, in order."""
        rows = []
        for line in (
            self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        ):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row.get("stage") == stage:
                rows.append(row)
        return rows
