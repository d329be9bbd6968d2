"""``KernelEngine``: a student by compiled Warp kernels, which write to arrays that stay."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from mlff_distiller.engines.engine import Array, Engine, Evaluation
from mlff_distiller.kernels.compiling import Launch, load, recording
from mlff_distiller.kernels.nep.reference import ZBL_COULOMB, ZBL_LENGTH
from mlff_distiller.kernels.nep.warp_functions import ZBL_SIZE
from mlff_distiller.kernels.systems import Systems
from mlff_distiller.kernels.types import vec6d, vec7d
from mlff_distiller.kernels.warp_estimates import build as build_estimates
from mlff_distiller.students.error_model import LARGEST


class KernelEngine(Engine):
    """A student by compiled kernels, for the types present.

    On a GPU a structure's second evaluation records one CUDA graph, from its positions to its
    results, for those that follow.
    """

    capturable = True
    exact = True
    measured_on: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    """Types of devices on which it was tried and is faster than PyTorch."""
    energies: wp.array  # (n_atoms,) float64, eV
    _kernels: Any  # with sums, vec3, and threads that share an atom
    _atom_types: wp.array  # (n_atoms,) among those present
    _virials: wp.array  # (n_atoms,) vec6d, eV
    _partial: wp.array  # (n_chunks,) vec7d
    _with_graphs: bool
    _estimate: Callable[[], None] | None = None
    _present = _sizes = np.empty(0, dtype=np.int64)

    def _evaluate(self, positions: Array, cell: Array, pbc: NDArray[np.bool_]) -> Evaluation:
        np.copyto(self._positions_seen, positions)
        if not (self.neighbors.is_current(self.positions, cell, pbc) and self._run()):
            if self.device.is_cuda:
                wp.copy(self.positions, self._host[0])
            self.rebuild(cell, pbc)
            self._run()
        return Evaluation.of(self._found[1:].copy())

    # -- for dynamics on the device ------------------------------------------------------------

    def rebuild(self, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        with self._memory(self.systems.n_atoms):
            self.neighbors.set(self.positions, cell, pbc, self.systems)
            self.neighbors.rebuild()
            if self.neighbors.version == self._version:
                return False
            self._record()
            return True

    def compute(self) -> None:
        self._gradients()
        self._forces()

    def total(self) -> None:
        self._chunk_totals()
        self._totals()

    def estimate_errors(self) -> None:
        if self.errors is not None:
            if self._estimate is None:
                self._estimate = self._record_estimate()
            self._estimate()

    # -- what depends on the atoms' number and types -------------------------------------------

    def _make_room(self, types: Tensor, sizes: NDArray[np.int64]) -> None:
        super()._make_room(types, sizes)
        present, compact = np.unique(types.cpu().numpy(), return_inverse=True)
        if not np.array_equal(present, self._present):
            self._set_present(present)
        with wp.ScopedDevice(self.device):
            if not np.array_equal(sizes, self._sizes):
                self._sizes = np.empty(0, dtype=np.int64)  # until all is there
                self._allocate(len(types), sizes)
            self._atom_types.assign(compact.reshape(-1).astype(np.int32))
        self._sizes = sizes.copy()
        self._version = -1

    @abstractmethod
    def _set_present(self, present: NDArray[np.int64]) -> None:
        """Upload what these types need, and load kernels and a list of neighbours for them."""

    def _record(self) -> None:
        """The launches of an evaluation; again when the list's arrays were replaced."""
        k, near, systems, skip = self._kernels, self.neighbors, self.systems, self.neighbors.moved
        n, here = systems.n_atoms, self.device
        self._g = None  # before there are twice as many
        self._g = wp.zeros((n, near.capacity), dtype=k.vec3, device=here)
        self._gradients = self._record_gradients()
        pairs = (near.counts, near.neighbors, near.reverse)
        forces = (k.sums.forces, (skip, *pairs, self._g, self.forces))
        chunk = (skip, systems.chunks, self.energies, self._virials, self._partial)
        total = (skip, systems.first_chunk, self._partial, self.totals)
        self._forces = Launch([forces], n, here, self.n_threads, k.threads)
        self._chunk_totals = Launch([(k.sums.chunk_totals, chunk)], systems.n_chunks, here)
        self._totals = Launch([(k.sums.totals, total)], systems.n_systems, here)
        self._version, self._graph, self._n_runs = near.version, None, 0
        self._estimate = None

    @abstractmethod
    def _record_gradients(self) -> Callable[[], None]:
        """What computes energies and virials of atoms, and dE/dr_ij of each slot."""

    def _record_estimate(self) -> Callable[[], None]:
        """The launches of an estimate of all atoms' errors, after ``compute``."""
        model, near, n = self.student.error_model, self.neighbors, self.systems.n_atoms
        assert model is not None
        real = self._kernels.vec3._wp_scalar_type_
        k = build_estimates("cpu" if self.device.is_cpu else "cuda", real, LARGEST)
        load(k.module, self.device)
        squares = wp.zeros(n, dtype=real, device=self.device)
        distances = self._record_squares(squares)
        present = torch.from_numpy(self._present)
        scale, edge = (
            wp.array(own[present].double().cpu().numpy(), dtype=wp.float64, device=self.device)
            for own in (model.scale, model.edge)
        )
        arguments = (
            *(near.moved, near.inside, near.shifts, self._atom_types),
            *(near.counts, near.neighbors, near.images, squares),
            *(real(model.reach), scale, edge, wp.float64(model.power)),
            *(self.errors, self.extrapolation),
        )
        step = [(k.estimates, arguments)]
        average = Launch(step, n, self.device, self.n_threads, k.threads)

        def estimate() -> None:
            distances()
            average()

        return estimate

    @abstractmethod
    def _record_squares(self, squares: wp.array) -> Callable[[], None]:
        """What computes d_i^2 of atoms, as `ErrorModel` has it, into ``squares``."""

    def _allocate(self, n: int, sizes: NDArray[np.int64]) -> None:
        self._g = self._graph = None  # before there are twice as many
        self.systems = Systems.of_sizes(sizes, self.device)
        self.positions = wp.zeros(n, dtype=wp.vec3d)
        self._atom_types = wp.zeros(n, dtype=int)
        self._virials = wp.zeros(n, dtype=vec6d)
        self._partial = wp.zeros(self.systems.n_chunks, dtype=vec7d)
        self._set_results(n, self.systems.n_systems)

    def _set_results(self, n_atoms: int, n_systems: int) -> None:
        """What goes to the host, in one piece: a copy takes microseconds, whatever its size."""
        parts = (
            (self.neighbors, "moved", wp.int32, 1, 1),
            (self, "totals", vec7d, n_systems, 7 * n_systems),
            (self, "energies", wp.float64, n_atoms, n_atoms),
            (self, "forces", wp.vec3d, n_atoms, 3 * n_atoms),
        )
        self._exchanged = on_host = wp.zeros(sum(part[-1] for part in parts), dtype=wp.float64)
        positions = self.positions
        if self.device.is_cuda:
            on_host = wp.empty_like(self._exchanged, device="cpu", pinned=True)
            positions = wp.empty_like(self.positions, device="cpu", pinned=True)
        self._host = positions, on_host
        self._positions_seen, self._found = positions.numpy(), on_host.numpy()
        self._moved = self._found[:1].view(np.int32)
        start = self._exchanged.ptr
        for owner, name, dtype, length, n_numbers in parts:
            setattr(owner, name, wp.array(ptr=start, dtype=dtype, shape=length, device=self.device))
            start += 8 * n_numbers

    # -- one evaluation ------------------------------------------------------------------------

    def _run(self) -> bool:
        """From positions to results on the host; False if an atom has left its skin."""
        self._n_runs += 1
        if self._with_graphs and self._n_runs > 1 and self._graph is None:
            self._capture()
        if self._graph is None:
            self._launch()
        else:
            wp.capture_launch(self._graph)
        if self.device.is_cuda:
            wp.synchronize_stream(self.device.stream)
        return not self._moved[0]

    def _capture(self) -> None:
        try:
            with (
                recording(),
                wp.ScopedCapture(device=self.device, force_module_load=False) as capture,
            ):
                self._launch()
            self._graph = capture.graph
        except Exception as error:
            self._with_graphs = False
            warnings.warn(f"evaluations go without a CUDA graph, slower: {error}", stacklevel=4)

    def _launch(self) -> None:
        if self.device.is_cuda:
            wp.copy(self.positions, self._host[0])
        self.neighbors.moved.zero_()
        self.neighbors.follow()
        self.compute()
        self.total()
        if self.device.is_cuda:
            wp.copy(self._host[1], self._exchanged)


def repulsion_rows(
    table: Array,  # (T, T, 10): inner and outer radius (Å) and a1, b1 .. a4, b4
    charges: Array,  # (T,)
    outermost: float | Array,  # Å
) -> Array:
    """Half the screened repulsion of each pair of types, as kernels want it: (T^2, ZBL_SIZE)."""
    n_types = len(charges)
    zi, zj = np.repeat(charges, n_types), np.tile(charges, n_types)
    pairs = table.reshape(n_types**2, -1)
    rows = np.zeros((n_types**2, ZBL_SIZE))
    rows[:, 0] = pairs[:, 0]
    rows[:, 1] = np.minimum(pairs[:, 1], outermost)
    rows[:, 2] = 0.5 * ZBL_COULOMB * zi * zj
    rows[:, 3::2] = pairs[:, 2::2]
    rows[:, 4::2] = pairs[:, 3::2] * ((zi**0.23 + zj**0.23) * ZBL_LENGTH)[:, None]
    return rows
