"""What gives a simulation its forces: compiled NEP kernels, or any student through PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import numpy as np
import torch
import warp as wp
from ase import Atoms
from numpy.typing import NDArray

from mlff_distiller.batch import Batch
from mlff_distiller.deploy.backends import BackendName
from mlff_distiller.errors import DynamicsError, StudentError
from mlff_distiller.kernels.compiling import warp_device
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.nep.evaluator import SKIN, NEPEvaluator
from mlff_distiller.kernels.nep.warp import vec7d
from mlff_distiller.kernels.systems import Systems
from mlff_distiller.neighbors import Neighbors
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


class TorchForces:
    """Any student, as PyTorch runs it, on neighbours kept on the device."""

    capturable = False
    exact = False

    def __init__(self, student: Student, frames: Sequence[Atoms], skin: float = SKIN) -> None:
        self.student = student
        self.device = warp_device(str(student.device))
        self.n_threads = torch.get_num_threads()
        _, sizes = _types(student, frames)
        self.systems = Systems.of_sizes(sizes, self.device)
        self.neighbors = VerletList(student.cutoff, skin, self.device, self.n_threads)
        n = self.systems.n_atoms
        with wp.ScopedDevice(self.device):
            self.positions, self.forces = (wp.zeros(n, dtype=wp.vec3d) for _ in range(2))
            self.totals = wp.zeros(self.systems.n_systems, dtype=vec7d)
        batch = Batch.from_atoms(frames).to(student.device)
        self._atomic_numbers, self._system_idx = batch.atomic_numbers, batch.system_idx
        self._pbc = batch.pbc
        self._neighbors: Neighbors

    def rebuild(self, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        self.neighbors.set(self.positions, cell, pbc, self.systems)
        self.neighbors.rebuild()
        self._cell = torch.from_numpy(np.reshape(cell, (-1, 3, 3))).to(self.student.device)
        near = self.neighbors
        with self._ordered():
            counts, table, images, laps, whole = (
                wp.to_torch(array)
                for array in (near.counts, near.neighbors, near.images, near.laps, near.whole)
            )
            slots = torch.arange(table.shape[1], device=counts.device)
            used = slots < counts.unsqueeze(1)  # (n_atoms, n_slots)
            i = used.nonzero()[:, 0]
            j = table[used].long()
            shifts = whole[images[used].long()] - laps[j] + laps[i]
            self._neighbors = Neighbors(i, j, shifts)
        return True

    def compute(self) -> None:
        """Waits for the device: whether an atom has left its skin has to be known."""
        if self.neighbors.moved.numpy()[0]:
            return
        with self._ordered(), torch.no_grad():
            batch = Batch(
                wp.to_torch(self.positions),
                self._atomic_numbers,
                self._system_idx,
                self._current_cell(),
                self._pbc,
            )
            found = self.student(batch, self._neighbors)
            wp.to_torch(self.forces).copy_(found.forces)
            totals = wp.to_torch(self.totals)
            totals[:, 0] = found.energy
            virial = -found.stress * batch.volume[:, None, None]
            for column, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
                totals[:, 1 + column] = virial[:, a, b]

    def total(self) -> None: ...

    def bytes_per_atom(self) -> int:
        return 0

    def _current_cell(self) -> torch.Tensor:
        """The lattice on the device where it is periodic: a barostat may have changed it."""
        lattice = wp.to_torch(self.neighbors.lattice)
        return torch.where(self._pbc.all(1)[:, None, None], lattice, self._cell)

    @contextmanager
    def _ordered(self) -> Iterator[None]:
        """Warp and torch have streams of their own."""
        if not self.device.is_cuda:
            yield
            return
        wp.synchronize_stream(self.device.stream)
        yield
        torch.cuda.current_stream(self.student.device).synchronize()


def choose_forces(
    student: Student,
    frames: Sequence[Atoms],
    dtype: Literal["float32", "float64"] = "float32",
    backend: BackendName = "auto",
    skin: float = SKIN,
) -> Forces:
    """What gives forces of ``student``, already on its device and of ``dtype``.

    Compiled kernels where there are some for it, if ``backend`` is ``auto``.
    """
    if backend not in ("auto", "warp", "torch"):
        raise StudentError("unknown backend", expected="auto, warp or torch", found=backend)
    if not skin > 0:
        raise DynamicsError("the skin must be positive", found=skin)
    if isinstance(student, NEP) and backend != "torch":
        return NEPForces(student, frames, dtype, skin)
    if backend == "warp":
        raise StudentError(
            "there are no compiled kernels for this student",
            expected="a nep student",
            found=student.architecture,
            remedy="take backend='auto' or 'torch'",
        )
    return TorchForces(student, frames, skin)


def _types(
    student: Student, frames: Sequence[Atoms]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Types (n_atoms,) and the number of atoms of each system."""
    numbers = np.concatenate([atoms.numbers for atoms in frames]).astype(np.int64)
    types = student.types(torch.from_numpy(numbers).to(student.device))
    return types.cpu().numpy(), np.array([len(atoms) for atoms in frames])
