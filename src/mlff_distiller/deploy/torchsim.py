"""``MLFFDModel``: a student as a model of TorchSim, which needs Python 3.12 or later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.engines.choice import BackendName, choose_engine
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.students import Student

try:
    import torch_sim
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError(
        "TorchSim cannot be imported: it needs Python 3.12 or later, and "
        "pip install torch-sim-atomistic"
    ) from error


class MLFFDModel(ModelInterface):
    """All systems of a state in one evaluation; energies in eV, lengths in Å.

    Gives ``energy`` (n_systems,), ``forces`` (n_atoms, 3) and ``stress`` (n_systems, 3, 3), NaN
    where a cell has no volume, in the state's dtype. Not differentiable.

    Parameters
    ----------
    model
        A student's folder, a bare ``nep.txt``, or a ``Student``.
    dtype
        Precision of the network; positions, cells and sums are float64.

    Others as in `StudentCalculator`, and so are the errors.
    """

    def __init__(
        self,
        model: str | Path | Student,
        *,
        device: str = "auto",
        dtype: Literal["float32", "float64"] = "float32",
        backend: BackendName = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        student = ready_student(model, device, dtype)
        self._engine = choose_engine(student, backend=backend, compile=compile)
        self._device, self._dtype = student.device, torch.float64
        self._compute_forces = self._compute_stress = True

    @property
    def compute_stress(self) -> bool:
        """Whether ``forward`` gives the stress."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    @property
    def compute_forces(self) -> bool:
        """Whether ``forward`` gives forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    def forward(self, state: torch_sim.SimState, **_: Any) -> dict[str, Tensor]:
        """Evaluate ``state``.

        Raises
        ------
        StructureError
            A system cannot be evaluated (NaN, singular cell, unknown element).
        StudentError
            A result is not finite.
        """
        cell = state.row_vector_cell.detach()
        batch = Batch(
            state.positions.detach().double(),
            state.atomic_numbers.long(),
            state.system_idx,
            cell.double(),
            state.pbc.expand(len(cell), 3),
        )
        found = self._engine.evaluate_many(batch)
        results = {"energy": found.energy}
        if self._compute_forces:
            results["forces"] = found.forces
        if self._compute_stress:
            volume = batch.volume.to(found.virial)[:, None, None]
            results["stress"] = -found.virial / torch.where(volume > 0, volume, torch.nan)
        return {name: value.to(state.positions) for name, value in results.items()}
