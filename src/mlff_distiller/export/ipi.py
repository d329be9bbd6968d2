"""i-PI: path-integral dynamics, all beads in one evaluation."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import iread, write

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import ExportError
from mlff_distiller.export.python import Found, PythonTarget, drift, run_in_copy
from mlff_distiller.export.target import Row

_CONSERVED = 2
"""Column of the properties that ``input.xml`` asks for."""
_PRINTED = 1e-5
"""eV/Å: the run is in float32, and positions are printed to 10⁻⁸ Å."""


class IPI(PythonTarget):
    """An input with 8 beads, and the file by which i-PI finds `StudentDriver`."""

    name = "ipi"
    install = "pip install ipi"
    modules = ("ipi",)
    distributions = ("ipi",)

    def evaluate(self, out: Path, atoms: Atoms) -> Found:
        from ipi.pes import load_pes

        driver = load_pes("custom", str(out / "driver.py"))
        with tempfile.TemporaryDirectory() as folder:
            template = Path(folder) / "template.xyz"
            write(template, atoms, format="extxyz")
            own = driver(out / "student", template, dtype="float64")
        cell, positions = atoms.cell.array.T / units.Bohr, atoms.positions / units.Bohr
        energy, forces, virial, _ = own(cell, positions)
        return Found(
            energy * units.Hartree, forces * (units.Hartree / units.Bohr), virial * units.Hartree
        )

    def run(self, out: Path, start: Atoms) -> list[Row]:
        with run_in_copy(out, _program(), "input.xml") as folder:
            energies = np.loadtxt(folder / "simulation.out")[:, _CONSERVED]
            positions, forces = (
                [next(iread(path, index=-1)) for path in sorted(folder.glob(f"simulation.{of}_*"))]
                for of in ("pos", "for")
            )
        own = StudentCalculator(out / "student")
        largest, moving = 0.0, start.copy()
        for place, bead in zip(positions, forces, strict=True):
            moving.positions = place.positions
            differences = bead.get_forces() - own.get_property("forces", moving)
            largest = max(largest, float(np.abs(differences).max()))
        what = f"{len(energies) - 1} steps of {len(forces)} beads"
        return [
            Row(f"forces, {what}, the last of them", largest, "eV/Å", _PRINTED),
            drift(what, energies, len(start)),
        ]


def _program() -> str:
    """The script ``i-pi`` of this Python, or of the PATH."""
    own = Path(sys.executable).with_name("i-pi")
    program = str(own) if own.is_file() else shutil.which("i-pi")
    if program is None:
        raise ExportError("there is no program i-pi on the PATH", remedy=IPI.install)
    return program


TARGET = IPI
