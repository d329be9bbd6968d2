"""``PythonTarget``: an engine that calls Python, and takes a student as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.io import iread, write
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import DistillerError, ExportError
from mlff_distiller.export.example import example
from mlff_distiller.export.target import Row, Target
from mlff_distiller.structure import enlarge
from mlff_distiller.students import Student
from mlff_distiller.students.registry import architecture_names

LEAST_ATOMS = 32
"""Atoms of a periodic example structure, at least."""
VACUUM = 10.0
"""Å, on either side, along vectors that are not periodic."""
_SECONDS = 600
_TOLERANCE = 1e-6
"""eV and eV/Å: both compute in float64, from coordinates that units were converted of."""
_DRIFT = 1.0
"""meV per atom in a few hundred steps, which a wrong sign or unit exceeds a hundredfold."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What an engine has for a structure."""

    energy: float  # eV
    forces: Floats  # (n_atoms, 3) eV/Å
    virial: Floats | None = None  # (3, 3) eV


class PythonTarget(Target):
    """Copies the student, a structure and the files of ``inputs/NAME``."""

    architectures: ClassVar[tuple[str, ...]] = architecture_names()
    modules: ClassVar[tuple[str, ...]]  # that have to be installed

    def missing(self) -> str | None:
        absent = [name for name in self.modules if find_spec(name) is None]
        return f"there is no Python package {' and no '.join(absent)}" if absent else None

    def write(self, student: Student, folder: Path, out: Path) -> list[Path]:
        inputs = Path(__file__).with_name("inputs") / self.name
        names = sorted(path.name for path in inputs.iterdir() if path.is_file())
        for name in names:
            shutil.copyfile(inputs / name, out / name)
        if folder.is_dir():
            shutil.copytree(folder, out / "student", dirs_exist_ok=True)
        else:
            shutil.copyfile(folder, out / "student")
        write(out / "structure.extxyz", self.start(example(student, folder)), format="extxyz")
        return [out / name for name in [*names, "structure.extxyz", "student"]]

    def start(self, atoms: Atoms) -> Atoms:
        """The structure to begin with, as the engine wants it."""
        return boxed(enlarge(atoms, LEAST_ATOMS) if atoms.pbc.any() else atoms)

    def check(self, student: Student, out: Path) -> list[Row]:
        start = next(iread(out / "structure.extxyz"))
        own = StudentCalculator(student, dtype="float64")
        with self._explained():
            rows = [
                row
                for what, atoms in self.frames(start)
                for row in compared(what, atoms, self.evaluate(out, atoms), own)
            ]
            return [*rows, *self.run(out, start)]

    def frames(self, start: Atoms) -> Iterator[tuple[str, Atoms]]:
        """Structures to compare, each with a name."""
        yield "structure.extxyz", start
        rattled: Atoms = start.copy()
        rattled.rattle(0.05, seed=0)
        yield "structure.extxyz, rattled", rattled
        if start.pbc.any():
            cluster, slab = rattled.copy(), rattled.copy()
            cluster.pbc = False
            yield "a cluster of it", cluster
            slab.pbc = [True, True, False]
            slab.center(vacuum=VACUUM, axis=2)
            yield "a slab of it", slab
        else:
            small = rattled.copy()
            small.center(vacuum=1.5)
            small.pbc = True
            yield "a small periodic cell of it", small

    @abstractmethod
    def evaluate(self, out: Path, atoms: Atoms) -> Found:
        """What the engine has for ``atoms``, by the student in ``out``, in float64."""

    @abstractmethod
    def run(self, out: Path, start: Atoms) -> list[Row]:
        """Run the input in ``out`` as it stands, and a little dynamics."""

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DistillerError:
            raise
        except Exception as error:
            raise ExportError(
                f"{self.name} could not run the student", found=f"{type(error).__name__}: {error}"
            ) from error


def boxed(atoms: Atoms) -> Atoms:
    """The same in a box with a along x and b in the xy plane, which is what engines want.

    Reduced, if it is periodic along all three; with vacuum along vectors that are not periodic.
    """
    boxed: Atoms = atoms.copy()
    boxed.calc = None
    if not atoms.pbc.all():
        boxed.center(vacuum=VACUUM, axis=np.flatnonzero(~atoms.pbc))
    if boxed.cell.handedness < 0:
        boxed.cell[2] *= -1.0  # the same lattice
    boxed.set_cell(boxed.cell.standard_form()[0], scale_atoms=True)
    if atoms.pbc.all():
        a, b, c = boxed.cell.array
        c = c - b * np.round(c[1] / b[1])
        c = c - a * np.round(c[0] / a[0])
        boxed.set_cell([a, b - a * np.round(b[0] / a[0]), c])
    return boxed


def compared(what: str, atoms: Atoms, found: Found, own: StudentCalculator) -> list[Row]:
    """The largest differences between ``found`` and the student's calculator."""
    energy = abs(found.energy - own.get_property("energy", atoms)) / len(atoms)
    forces = np.abs(found.forces - own.get_property("forces", atoms)).max()
    rows = [
        Row(f"energy, {what}", float(energy), "eV/atom", _TOLERANCE),
        Row(f"forces, {what}", float(forces), "eV/Å", _TOLERANCE),
    ]
    if found.virial is not None:
        stress = voigt_6_to_full_3x3_stress(own.get_property("stress", atoms))
        virial = np.abs(found.virial + stress * atoms.get_volume()).max() / len(atoms)
        rows.append(Row(f"virial, {what}", float(virial), "eV/atom", _TOLERANCE))
    return rows


def drift(what: str, energies: Sequence[float] | Floats, n_atoms: int) -> Row:
    """How far the mean of conserved ``energies`` (eV) moves from first to second half."""
    first, second = np.array_split(np.asarray(energies), 2)
    moved = 1000.0 * abs(float(second.mean() - first.mean())) / n_atoms
    return Row(f"drift of the total energy, {what}", moved, "meV/atom", _DRIFT)


@contextmanager
def run_in_copy(out: Path, *words: str) -> Iterator[Path]:
    """Run Python with ``words`` in a copy of ``out``, which is gone afterwards.

    Raises
    ------
    ExportError
        It failed; its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(out, Path(folder) / "run", ignore=shutil.ignore_patterns(".lock"))
        command = [sys.executable, *words]
        try:
            done = subprocess.run(
                command, cwd=copy, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as late:
            raise ExportError(f"{words[-1]} did not end within {_SECONDS} s") from late
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ExportError(
                f"{words[-1]} failed", found="\n    ".join(said[-5:]) or f"exit {done.returncode}"
            )
        yield copy
