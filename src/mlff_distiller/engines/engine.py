"""``Engine``: what computes a student, for arrays on the host and for atoms on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import warp as wp
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from mlff_distiller.batch import Batch, check_structure
from mlff_distiller.engines.threads import on_stream
from mlff_distiller.errors import DeviceMemoryError, StudentError
from mlff_distiller.kernels.compiling import warp_device
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.systems import Systems
from mlff_distiller.neighbors import Neighbors, edge_vectors
from mlff_distiller.students.base import Student

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What one structure has; the arrays are the caller's own."""

    energy: float  # eV
    energies: Array  # (n_atoms,) eV
    forces: Array  # (n_atoms, 3) eV/Å
    virial: Array  # (6,) eV: xx, yy, zz, yz, xz, xy; stress is -virial / volume

    @classmethod
    def of(cls, numbers: Array) -> Evaluation:
        """From energy, virial, energies and forces in a row (7 + 4 n_atoms,); keeps it."""
        end = 7 + (len(numbers) - 7) // 4
        forces = numbers[end:].reshape(-1, 3)
        return cls(float(numbers[0]), numbers[7:end], forces, numbers[1:7])


@dataclass(frozen=True)
class Evaluations:
    """What many structures have, as new tensors on the student's device."""

    energy: Tensor  # (n_systems,) eV
    forces: Tensor  # (n_atoms, 3) eV/Å
    virial: Tensor  # (n_systems, 3, 3) eV; stress is -virial / volume


@dataclass(frozen=True)
class Estimates:
    """How far forces may be trusted, see `ErrorModel`; the arrays are the caller's own."""

    errors: Array  # (n_atoms,) eV/Å
    extrapolation: Array  # (n_atoms,) 1 at the edge of what the student was trained on


_FULL = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Places of xx, yy, zz, yz, xz, xy in a matrix."""


class Engine(ABC):
    """A student on its device, for structure after structure.

    Callers on the host call ``evaluate``, programs that move many systems ``evaluate_many``.
    Dynamics that stays on the device calls ``for_frames``, then ``rebuild``, ``compute`` and
    ``total``, and where wanted ``estimate_errors``. What moves ``positions`` also moves
    ``neighbors.inside``, and sets ``neighbors.moved`` once an atom has left its skin. These then do
    nothing, or nothing of worth, until ``rebuild``.

    Nothing is compiled or allocated before there are atoms, and memory is allocated again only
    when they are others. Copies, also by pickling, start without atoms. Not for use from several
    threads at once.

    Parameters
    ----------
    student
        On its device, and of the dtype to compute in. Differences of positions, sums over atoms
        and results are float64.
    skin
        Å; see ``VerletList``.
    n_threads
        CPU cores to use; as many as torch uses if None.
    """

    capturable: ClassVar[bool]
    """Whether ``compute`` and ``total`` may be recorded into a CUDA graph."""
    exact: ClassVar[bool]
    """Whether results are the same, bit for bit, whenever neighbours were last found."""
    student: Student
    skin: float
    device: wp.Device
    n_threads: int
    systems: Systems
    neighbors: VerletList
    positions: wp.array  # (n_atoms,) vec3d, Å
    forces: wp.array  # (n_atoms,) vec3d, eV/Å
    totals: wp.array  # (n_systems,) vec7d: energy, and the virial's xx yy zz yz xz xy, eV
    errors: wp.array | None = None
    """(n_atoms,) float64, eV/Å; None for a student without an error model."""
    extrapolation: wp.array | None = None
    """(n_atoms,) float64; see `Estimates`."""
    _cores: int | None
    _given: tuple[bytes, bytes | None] | None = None
    _many: tuple[object, Tensor, Tensor] = (None, torch.empty(0), torch.empty(0))

    def __init__(
        self, student: Student, skin: float, n_threads: int | None = None, **settings: Any
    ) -> None:
        self._settings = {"student": student, "skin": skin, "_cores": n_threads, **settings}
        self._release()

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._release()

    # -- for callers on the host ---------------------------------------------------------------

    def evaluate(
        self,
        positions: Array,  # (n_atoms, 3) Å
        numbers: NDArray[np.int64],  # (n_atoms,) atomic numbers
        cell: Array,  # (3, 3) Å
        pbc: NDArray[np.bool_],  # (3,)
    ) -> Evaluation:
        """Energy, forces and virial of one structure. Waits for the device.

        Raises
        ------
        DeviceMemoryError
            The structure does not fit; smaller ones can be evaluated next.
        KernelError
            Kernels cannot be compiled here.
        UnknownElementError
            The student does not know an element.
        """
        try:
            with self._memory(len(numbers)):
                self.prepare(numbers)
                return self._evaluate(positions, cell, pbc)
        except BaseException:
            self._release()  # whatever is half done
            raise

    @abstractmethod
    def _evaluate(self, positions: Array, cell: Array, pbc: NDArray[np.bool_]) -> Evaluation: ...

    # -- for programs that move many systems ---------------------------------------------------

    def evaluate_many(self, batch: Batch) -> Evaluations:
        """Energies, forces and virials of all systems in one evaluation. Waits for the device.

        ``batch`` is on any device. Neighbours are found again where elements, sizes or cells
        changed since the last call, or an atom has left its skin.

        Raises
        ------
        StructureError
            A system cannot be evaluated (empty, NaN, singular cell, unknown element).
        StudentError
            A result is not finite.
        DeviceMemoryError, KernelError
            As ``evaluate`` does.
        """
        try:
            # Whatever modes the caller has set.
            with torch.inference_mode(False), torch.device("cpu"), self._memory(batch.n_atoms):
                return self._evaluate_many(batch.to(self.student.device))
        except BaseException:
            self._release()  # whatever is half done
            raise

    def _evaluate_many(self, batch: Batch) -> Evaluations:
        # Also waits for what the caller's stream does: kernels run on another.
        cell, pbc = batch.cell.cpu().numpy(), batch.pbc.cpu().numpy()
        is_current = self._has_room(batch) and self.neighbors.is_current(self.positions, cell, pbc)
        if not (is_current and torch.isfinite(batch.positions).all()):
            for index, atoms in enumerate(batch.to_atoms()):
                check_structure(atoms, f"structure {index}")
        if not self._has_room(batch):
            self.prepare(batch.atomic_numbers.cpu().numpy(), batch.atoms_per_system.cpu().numpy())
            self._many = self._given, batch.atomic_numbers.clone(), batch.system_idx.clone()
        positions = batch.positions.detach().contiguous()
        wp.copy(self.positions, wp.from_torch(positions, dtype=wp.vec3d))
        moved = self.neighbors.moved
        if is_current:
            moved.zero_()
            self.neighbors.follow()
            self.compute()
            self.total()
        if not is_current or moved.numpy()[0]:
            self.rebuild(cell, pbc)
            self.compute()
            self.total()
            moved.numpy()  # waits
        return self._found_many()

    def _has_room(self, batch: Batch) -> bool:
        """Whether ``prepare`` was last called for these atoms."""
        given, numbers, system_idx = self._many
        return (
            self._given is not None
            and given is self._given
            and torch.equal(numbers, batch.atomic_numbers)
            and torch.equal(system_idx, batch.system_idx)
        )

    def _found_many(self) -> Evaluations:
        totals, forces = wp.to_torch(self.totals).clone(), wp.to_torch(self.forces).clone()
        is_bad = ~torch.isfinite(totals).all(1)
        if is_bad.any():
            raise StudentError(
                "the student gave a result that is not finite",
                found=f"structures {is_bad.nonzero().flatten()[:5].tolist()}",
                remedy="look for atoms on top of each other; restart from the last good frame",
            )
        return Evaluations(totals[:, 0], forces, totals[:, 1:][:, _FULL])

    # -- for dynamics on the device ------------------------------------------------------------

    def for_frames(self, frames: Sequence[Atoms]) -> Self:
        """The same, with room for these systems."""
        numbers = np.concatenate([atoms.numbers for atoms in frames]).astype(np.int64)
        with self._memory(len(numbers)):
            self.prepare(numbers, np.array([len(atoms) for atoms in frames]))
        return self

    @abstractmethod
    def rebuild(self, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        """Find neighbours; True if arrays were replaced, and graphs are to be recorded again.

        ``cell`` and ``pbc`` are those of one system or of each.
        """

    @abstractmethod
    def compute(self) -> None:
        """Launch energies, forces and virials of all atoms."""

    @abstractmethod
    def total(self) -> None:
        """Launch their sums over each system."""

    # -- errors of forces ----------------------------------------------------------------------

    def estimates(self) -> Estimates | None:
        """Those of the atoms last evaluated, one system or many; None without an error model.

        Waits for the device.
        """
        if self.errors is None or self.extrapolation is None:
            return None
        with torch.inference_mode(False), torch.device("cpu"), self._memory(len(self.errors)):
            self.estimate_errors()
            return Estimates(self.errors.numpy().copy(), self.extrapolation.numpy().copy())

    def estimate_errors(self) -> None:
        """Launch the estimates of all atoms, into ``errors`` and ``extrapolation``.

        Of positions and neighbours as they are: after ``compute``, before anybody moves an atom.
        Does nothing for a student without an error model. The first call after ``rebuild`` has
        replaced arrays may compile and allocate: graphs are recorded after it. Cost: half of
        ``compute`` for a ``nep``.
        """
        model = self.student.error_model
        if model is None:
            return
        with on_stream(self.device):
            lattice = wp.to_torch(self.neighbors.lattice)
            positions = wp.to_torch(self.positions)
            periodic = torch.ones(len(lattice), 3, dtype=torch.bool, device=lattice.device)
            system_idx = wp.to_torch(self.systems.system_idx).long()
            batch = Batch(positions, self._all_types, system_idx, lattice, periodic)
            pairs = self._pairs()
            # Those of the skin change nothing but the last digits, with when the list was built.
            seen = edge_vectors(batch, pairs).norm(dim=1) < self.student.cutoff
            near = Neighbors(pairs.i[seen], pairs.j[seen], pairs.shifts[seen])
            found = model.estimate(self.student, self._all_types, batch, near)
            for array, values in zip((self.errors, self.extrapolation), found, strict=True):
                wp.to_torch(array).copy_(values)

    def _pairs(self) -> Neighbors:
        """Those of the list, with shifts of atoms that are not wrapped into their cell."""
        near = self.neighbors
        counts, table, images, laps, whole = (
            wp.to_torch(array)
            for array in (near.counts, near.neighbors, near.images, near.laps, near.whole)
        )
        used = torch.arange(table.shape[1], device=counts.device) < counts.unsqueeze(1)
        i, j = used.nonzero()[:, 0], table[used].long()
        return Neighbors(i, j, whole[images[used].long()] - laps[j] + laps[i])

    # -- what depends on the atoms' number and types -------------------------------------------

    def prepare(self, numbers: NDArray[np.int64], sizes: NDArray[np.int64] | None = None) -> None:
        """Make room for atoms of ``numbers`` (n_atoms,), in systems of ``sizes`` or in one."""
        given = numbers.tobytes(), None if sizes is None else sizes.tobytes()
        if given != self._given:
            self._given = None  # until all is there
            types = self.student.types(torch.from_numpy(numbers).to(self.student.device))
            self._make_room(types, np.array([len(numbers)]) if sizes is None else sizes)
            if self.student.error_model is not None:
                self._all_types = types
                with wp.ScopedDevice(self.device):
                    self.errors, self.extrapolation = (
                        wp.zeros(len(numbers), dtype=wp.float64) for _ in range(2)
                    )
            self._given = given

    @abstractmethod
    def _make_room(self, types: Tensor, sizes: NDArray[np.int64]) -> None:
        self.device = warp_device(str(self.student.device))
        self.n_threads = self._cores or torch.get_num_threads()

    def _release(self) -> None:
        """Keep nothing but what it was made with."""
        self.__dict__ = {"_settings": self._settings, **self._settings}

    @contextmanager
    def _memory(self, n_atoms: int) -> Iterator[None]:
        """A lack of memory becomes an error that names it, after which all of it is free."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            lacking = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
            if isinstance(error, DeviceMemoryError) or not (lacking or "allocat" in str(error)):
                raise
            self._release()
            raise DeviceMemoryError(
                f"{n_atoms} atoms do not fit into the memory of {self.student.device}",
                found=str(error).split(". ")[0] or None,
                remedy="take fewer atoms, or a smaller skin",
            ) from error
