"""What gives a simulation its forces: compiled NEP kernels, or any student through PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
import warp as wp
from ase import Atoms
from numpy.typing import NDArray

from mlff_distiller.engines.backends import BackendName
from mlff_distiller.engines.nep import SKIN, NEPEvaluator
from mlff_distiller.engines.torch import SKIN as TORCH_SKIN
from mlff_distiller.engines.torch import TorchEvaluator, pays_to_compile
from mlff_distiller.errors import DynamicsError, StudentError
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.systems import Systems
from mlff_distiller.students import NEP, Student

Array = NDArray[np.float64]


class Forces(Protocol):
    """Forces on the atoms of some systems, whose positions stay on the device.

    Whoever moves ``positions`` also moves ``neighbors.inside`` and sets ``neighbors.moved``
    once an atom has left its skin. ``compute`` and ``total`` then do nothing until ``rebuild``.
    """

    device: wp.Device
    n_threads: int
    systems: Systems
    neighbors: VerletList
    positions: wp.array  # (n_atoms,) vec3d, Å
    forces: wp.array  # (n_atoms,) vec3d, eV/Å
    totals: wp.array  # (n_systems,) vec7d: energy, and the virial's xx yy zz yz xz xy, eV
    capturable: bool
    """Whether ``compute`` and ``total`` may be recorded into a CUDA graph."""
    exact: bool
    """Whether results are the same, bit for bit, whenever neighbours were last found."""

    def rebuild(self, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        """Find neighbours anew; True if graphs are to be recorded anew."""

    def compute(self) -> None: ...

    def total(self) -> None: ...

    def bytes_per_atom(self) -> int: ...


class NEPForces(NEPEvaluator):
    """A NEP by compiled kernels."""

    capturable = True
    exact = True

    def __init__(
        self,
        student: NEP,
        frames: Sequence[Atoms],
        dtype: Literal["float32", "float64"] = "float32",
        skin: float = SKIN,
    ) -> None:
        super().__init__(
            student.shape,
            student.nep4(),
            student.reference_energies,
            device=str(student.device),
            dtype=dtype,
            skin=skin,
        )
        types, sizes = _types(student, frames)
        with self._memory_for(len(types)):
            self.prepare(types, sizes)

    def rebuild(self, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        with self._memory_for(self.systems.n_atoms):
            return super().rebuild(cell, pbc)


class TorchForces(TorchEvaluator):
    """Any student, as PyTorch runs it."""

    def __init__(
        self, student: Student, frames: Sequence[Atoms], skin: float = TORCH_SKIN, **options: Any
    ) -> None:
        numbers = np.concatenate([atoms.numbers for atoms in frames]).astype(np.int64)
        sizes = np.array([len(atoms) for atoms in frames])
        super().__init__(student, numbers, sizes, skin, **options)


def choose_forces(
    student: Student,
    frames: Sequence[Atoms],
    dtype: Literal["float32", "float64"] = "float32",
    backend: BackendName = "auto",
    skin: float | None = None,
    *,
    compile: bool = False,
    n_steps: int = 0,
) -> Forces:
    """What gives forces of ``student``, already on its device and of ``dtype``.

    Our own kernels where there are some for it, if ``backend`` is ``auto``; otherwise PyTorch's,
    fused first if ``compile``, or where it pays for ``n_steps``.
    """
    if backend not in ("auto", "warp", "torch"):
        raise StudentError("unknown backend", expected="auto, warp or torch", found=backend)
    if skin is not None and not skin > 0:
        raise DynamicsError("the skin must be positive", found=skin)
    if isinstance(student, NEP) and backend != "torch":
        return NEPForces(student, frames, dtype, skin or SKIN)
    if backend == "warp":
        raise StudentError(
            "there are no compiled kernels for this student",
            expected="a nep student",
            found=student.architecture,
            remedy="take backend='auto' or 'torch'",
        )
    n_atoms = sum(len(atoms) for atoms in frames)
    compile = compile or pays_to_compile(n_steps, n_atoms, on_gpu=student.device.type == "cuda")
    return TorchForces(student, frames, skin or TORCH_SKIN, compile=compile)


def _types(
    student: Student, frames: Sequence[Atoms]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Types (n_atoms,) and the number of atoms of each system."""
    numbers = np.concatenate([atoms.numbers for atoms in frames]).astype(np.int64)
    types = student.types(torch.from_numpy(numbers).to(student.device))
    return types.cpu().numpy(), np.array([len(atoms) for atoms in frames])
