"""What a simulation writes to files: frames, text that grows, and where a file may go on.

Each file can say how far it has got and what lies before (``Mark``), and is opened there again, so
that a run which continues from a checkpoint leaves nothing out, repeats nothing, and adds nothing
to a file that was damaged meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mlff_distiller.durable import explaining
from mlff_distiller.errors import DistillerError, DynamicsError

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
