"""``StudentDriver``: a student as a driver of i-PI, all beads in one evaluation.

i-PI takes drivers of others from a file: ``<pes>custom</pes>`` and, as ``<pes_path>``, a file with
two lines, which `mlff-distiller export ipi` writes::

    from mlff_distiller.deploy.ipi import StudentDriver
    __DRIVER_CLASS__ = "StudentDriver"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import units
from ase.io import iread
from numpy.typing import NDArray

from mlff_distiller.batch import Batch
from mlff_distiller.engines.choice import BackendName, choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import StructureError
from mlff_distiller.students import Student

try:
    from ipi.pes.dummy import Dummy_driver
except ImportError as error:
    raise ImportError("i-PI cannot be imported: pip install ipi") from error

Floats = NDArray[np.float64]


class StudentDriver(Dummy_driver):
    """Energy, forces and virial in atomic units, of one structure or of a list.

    Parameters
    ----------
    model
        A student's folder, a bare ``nep.txt``, or a ``Student``.
    template
        A file that ASE reads: elements, and along which vectors it is periodic.

    Others as in `StudentCalculator`, and so are the errors; an element of the template that the
    student lacks is one at once.
    """

    def __init__(
        self,
        model: str | Path | Student,
        template: str | Path,
        *,
        device: str = "auto",
        dtype: Literal["float32", "float64"] = "float32",
        backend: BackendName = "auto",
        compile: bool = False,
        **options: Any,
    ) -> None:
        atoms = next(iread(template, index=0))
        self._numbers, self._pbc = torch.from_numpy(atoms.numbers).long(), torch.tensor(atoms.pbc)
        self._template = template
        student = ready_student(model, device, dtype)
        student.types(self._numbers.to(student.device))  # an element it lacks
        self._engine = choose_engine(student, backend=backend, compile=compile)
        super().__init__(**options)

    def compute(self, cell: Floats | Sequence[Floats], pos: Floats | Sequence[Floats]) -> Any:
        """``(energy, forces (n_atoms, 3), virial (3, 3), "")``, or a list of those.

        ``cell`` (3, 3) has its vectors as columns. Hartree and Bohr throughout.

        Raises
        ------
        StructureError
            i-PI's atoms are not as many as the template's, or cannot be evaluated.
        StudentError
            A result is not finite.
        """
        if isinstance(cell, list):
            return self._evaluate(np.array(cell), np.array(pos))
        return self._evaluate(np.asarray(cell)[None], np.asarray(pos)[None])[0]

    def _evaluate(self, cells: Floats, positions: Floats) -> list[tuple[Any, ...]]:
        n, n_atoms = len(cells), len(self._numbers)
        if positions.shape[1] != n_atoms:
            raise StructureError(
                "i-PI's atoms are not those of the template",
                expected=f"{n_atoms} atoms, as in {self._template}",
                found=f"{positions.shape[1]} atoms",
                remedy="initialise i-PI from the template's file",
            )
        batch = Batch(
            torch.from_numpy(positions.reshape(-1, 3) * units.Bohr),
            self._numbers.repeat(n),
            torch.arange(n).repeat_interleave(n_atoms),
            torch.from_numpy(cells.swapaxes(1, 2) * units.Bohr),
            self._pbc.expand(n, 3),
        )
        found = self._engine.evaluate_many(batch)
        energy, virial = (
            values.cpu().numpy() / units.Hartree for values in (found.energy, found.virial)
        )
        forces = found.forces.cpu().numpy().reshape(n, n_atoms, 3) * (units.Bohr / units.Hartree)
        return [(float(energy[k]), forces[k], virial[k], "") for k in range(n)]
