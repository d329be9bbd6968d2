"""Trajectories in ASE's formats: extended XYZ and .traj."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from ase import Atoms
from ase.io import ulm
from ase.io.extxyz import read_extxyz, write_extxyz
from ase.io.trajectory import TrajectoryWriter

from mlff_distiller.md.files import Frame, GrowingText, Mark

_LOOKED_AT = 1000
"""Atoms on which is tried whether a format can hold what they have."""


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
