"""GPUMD: a ``nep.txt`` within its limits, and a run to begin with. calorine stands in for it."""

from __future__ import annotations

import copy
import math
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from ase import Atoms
from ase.io import read, write

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.durable import write_text
from mlff_distiller.errors import StudentError
from mlff_distiller.export.example import example
from mlff_distiller.export.target import Row, Target
from mlff_distiller.structure import default_time_step_fs, enlarge
from mlff_distiller.students import NEP, Student, write_nep

_EXAMPLE_ATOMS = 200
_MARGIN = 1.25
_LIMITS = {"energies": ("eV", 1e-6), "forces": ("eV/Å", 1e-6), "stress": ("eV/Å³", 1e-7)}
"""Wider than those of float64 engines: the file has seven decimals."""


class GPUMD(Target):
    """``potential nep.txt``."""

    name: ClassVar[str] = "gpumd"
    architectures: ClassVar[tuple[str, ...]] = ("nep",)
    install: ClassVar[str] = "pip install calorine"
    distributions: ClassVar[tuple[str, ...]] = ("calorine",)

    def missing(self) -> str | None:
        return None if find_spec("calorine") else "calorine is not installed"

    def write(self, student: Student, folder: Path, out: Path) -> list[Path]:
        nep = cast(NEP, student)
        _within_limits(nep)
        atoms = enlarge(example(student, folder), _EXAMPLE_ATOMS)
        for axis in np.flatnonzero(~atoms.pbc).tolist():
            atoms.center(vacuum=10.0, axis=axis)
        write(out / "model.xyz", atoms, columns=["symbols", "positions"], format="extxyz")
        slots = _slots(folder)
        write_nep(copy.deepcopy(nep).double(), out / "nep.txt", max_neighbors=slots)
        write_text(out / "run.in", _run(atoms))
        write_text(out / "README.md", _readme(nep))
        return [out / name for name in ("README.md", "run.in", "model.xyz", "nep.txt")]

    def check(self, student: Student, out: Path) -> list[Row]:
        from calorine.calculators import CPUNEP

        atoms = cast(Atoms, read(out / "model.xyz"))
        atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
        others = CPUNEP(str(out / "nep.txt"), atoms=atoms)
        own = StudentCalculator(
            copy.deepcopy(student), device="cpu", dtype="float64", backend="torch"
        )
        rows = []
        for quantity, (unit, limit) in _LIMITS.items():
            if quantity == "energies":
                limit *= max(1.0, float(student.reference_energies.abs().max()) / 10.0)
            if quantity == "stress" and not atoms.pbc.all():
                continue
            theirs, ours = (c.get_property(quantity, atoms) for c in (others, own))
            worst = float(np.abs(theirs - ours).max())
            rows.append(Row(f"{quantity}, {len(atoms)} atoms, calorine", worst, unit, limit))
        return rows


TARGET = GPUMD


def _within_limits(student: NEP) -> None:
    """What GPUMD allocates for."""
    shape = student.shape
    angular = (shape.n_max_angular + 1) * shape.n_invariants
    fewer = "nep.n_max_angular or nep.l_max"
    sizes = (
        ("n_max", max(shape.n_max_radial, shape.n_max_angular), 16, f"nep.n_max_radial or {fewer}"),
        (
            "basis_size",
            max(shape.basis_size_radial, shape.basis_size_angular),
            16,
            "nep.basis_size",
        ),
        ("descriptors", shape.n_descriptors, 103, f"nep.n_max_radial, {fewer}"),
        ("angular descriptors", angular, 90, fewer),
        ("neurons", shape.neurons + 1, 200, "nep.neurons"),
    )
    for what, found, most, setting in sizes:
        if found > most:
            raise StudentError(
                f"the student has more {what} than GPUMD takes",
                expected=f"at most {most}",
                found=found,
                remedy=f"train a student with a smaller {setting}",
            )


def _slots(folder: Path) -> tuple[int, int]:
    """The most neighbours in the training data, from the student's own file; else the most."""
    path = folder / "nep.txt" if folder.is_dir() else folder
    lines = path.read_text(encoding="ascii").splitlines()[:4] if path.is_file() else []
    for line in lines:
        if line.startswith("cutoff"):
            radial, angular = (math.ceil(int(word) / _MARGIN) for word in line.split()[-2:])
            return radial, angular
    return 655, 655


def _run(atoms: Atoms) -> str:
    return f"""potential    nep.txt
velocity     300
ensemble     nve
time_step    {default_time_step_fs(atoms):g}
dump_thermo  100
dump_exyz    100
run          1000
"""


def _readme(student: NEP) -> str:
    return f"""# A nep student of {", ".join(student.elements)} in GPUMD

`gpumd` in this folder runs `run.in`: 1000 steps of NVE from 300 K, beginning with `model.xyz`.
Replace that by a structure of your own. Build GPUMD from its repository: pip does not have it.

`nep.txt` also runs in calorine (`CPUNEP("nep.txt")`, `pip install calorine`), against which
`mlff-distiller export gpumd ... --check` compares. GPUMD computes in float32.
"""
