"""``NEPEvaluator``: energy, forces and virial of one structure at a time by the Warp kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from mlff_distiller.errors import DeviceMemoryError, KernelError
from mlff_distiller.kernels.compiling import Launch, load, warp_device
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.nep.reference import ZBL_COULOMB, ZBL_LENGTH, Parameters, Shape
from mlff_distiller.kernels.nep.warp import (
    Kernels,
    Specialization,
    build,
)
from mlff_distiller.kernels.nep.warp_functions import ZBL_SIZE
from mlff_distiller.kernels.nep.warp_lanes import WARP
from mlff_distiller.kernels.systems import Systems
from mlff_distiller.kernels.types import vec6d, vec7d

SKIN = 1.0
"""Å. A rebuild costs a few evaluations, a skipped neighbour about a thirtieth of a near one."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Views of memory that the next evaluation overwrites."""

    energy: float  # eV
    energies: Array  # (n_atoms,) eV
    forces: Array  # (n_atoms, 3) eV/Å
    virial: Array  # (6,) eV: xx, yy, zz, yz, xz, xy; stress is -virial / volume


class NEPEvaluator:
    """A NEP4 model on one device, for structure after structure.

    Memory is allocated when the number of atoms, the neighbours' number or the set of types that
    are present changes, and not otherwise. Only the types present are considered, so an element's
    crystal costs the same in a model of one type or of sixteen. On a GPU a structure's second
    evaluation records one CUDA graph, from its positions to its results, for those that follow.
    Not for use from several threads at once.

    Dynamics that stays on the device calls ``prepare`` and ``rebuild``, moves ``positions`` and
    ``neighbors.inside`` itself, and calls ``compute`` and ``total``, which do nothing once
    ``neighbors.moved`` is set; results are in ``forces`` and ``totals``.

    Parameters
    ----------
    parameters
        Of T types; any device and dtype.
    reference_energies
        (T,) eV, added in float64.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    dtype
        Of the arithmetic. Differences of positions, sums over atoms and results are float64.
    skin
        Å; see ``VerletList``.
    n_threads
        CPU cores to use; as many as torch uses if None.
    lanes
        Threads that share an atom: 1 or ``WARP``; what suits the device if None.
    """

    def __init__(
        self,
        shape: Shape,
        parameters: Parameters,
        reference_energies: Tensor,
        *,
        device: str = "cpu",
        dtype: Literal["float32", "float64"] = "float32",
        skin: float = SKIN,
        n_threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        self.shape, self.device, self.dtype = shape, warp_device(device), np.dtype(dtype)
        self.n_threads = n_threads or torch.get_num_threads()
        self._parameters, self._reference_energies = parameters, reference_energies
        self._skin = skin
        self._lanes = lanes or (1 if self.device.is_cpu else WARP)
        self._with_graphs = self.device.is_cuda
        self._given: tuple[bytes, bytes | None] | None
        self._release()

    def evaluate(
        self,
        positions: Array | Tensor,  # (n_atoms, 3) Å
        types: NDArray[np.int64],  # (n_atoms,)
        cell: Array,  # (3, 3) Å
        pbc: NDArray[np.bool_],  # (3,)
    ) -> Evaluation:
        """Energy, forces and virial. Waits for the device.

        Raises
        ------
        DeviceMemoryError
            The structure does not fit; smaller ones can be evaluated next.
        """
        with self._memory_for(len(types)):
            self.prepare(types)
            on_device = isinstance(positions, Tensor) and positions.is_cuda
            if isinstance(positions, Tensor) and positions.is_cuda:
                # Warp has a stream of its own.
                torch.cuda.current_stream(positions.device).synchronize()
                wp.copy(self.positions, wp.from_torch(positions.contiguous(), dtype=wp.vec3d))
            else:
                np.copyto(self._views["positions"], positions)
            if self.neighbors.is_current(self.positions, cell, pbc):
                self._run(positions_are_there=on_device)
                if not self._views["moved"][0]:
                    return self._results()
            if not on_device and self.device.is_cuda:
                wp.copy(self.positions, self._host[0])
            self.rebuild(cell, pbc)
            self._run(positions_are_there=True)
            return self._results()

    # -- what dynamics calls -------------------------------------------------------------------

    def prepare(self, types: NDArray[np.int64], sizes: NDArray[np.int64] | None = None) -> None:
        """Make room for atoms of these types, in systems of these sizes or in one."""
        given = types.tobytes(), None if sizes is None else sizes.tobytes()
        if given != self._given:
            self._given = None  # until all is there
            self._set_types(types, np.array([len(types)]) if sizes is None else sizes)
            self._given = given

    def rebuild(self, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        """Find neighbours anew; True if arrays were replaced, and graphs are to be recorded anew.

        ``cell`` and ``pbc`` are those of one system or of each.
        """
        self.neighbors.set(self.positions, cell, pbc, self.systems)
        self.neighbors.rebuild()
        if self.neighbors.version == self._version:
            return False
        self._record()
        return True

    def compute(self) -> None:
        """Launch energies, forces and virials of all atoms."""
        self._gradients()
        self._forces()

    def total(self) -> None:
        """Launch their sums over each system."""
        self._chunk_totals()
        self._totals()

    # -- what depends on the atoms' number and types -------------------------------------------

    def _release(self) -> None:
        """Keep nothing of what came before."""
        self._present = self._sizes = np.empty(0, dtype=np.int64)
        self._given = None
        self._version = -1
        self._graph: Any = None
        self.positions: wp.array = None
        self.forces: wp.array
        self.energies: wp.array
        self.totals: wp.array
        self.systems: Systems
        self.neighbors: VerletList
        for name in ("_g", "_virials", "_exchanged", "forces", "energies", "systems", "neighbors"):
            setattr(self, name, None)
        self._gradients: Callable[[], None] = _unprepared
        self._forces = self._chunk_totals = self._totals = self._gradients
        self._host: tuple[wp.array, ...] = ()
        self._views: dict[str, Any] = {}

    @contextmanager
    def _memory_for(self, n_atoms: int) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            lacking = isinstance(error, MemoryError) or "allocat" in str(error)
            if not lacking or isinstance(error, DeviceMemoryError):
                raise
            needed = n_atoms * self.bytes_per_atom() / 2**30
            self._release()
            raise DeviceMemoryError(
                f"{n_atoms} atoms do not fit into the memory of {self.device.alias}",
                found=f"about {needed:.2g} GiB are needed ({error})",
                remedy="take fewer atoms, or a smaller skin",
            ) from error

    def bytes_per_atom(self) -> int:
        """About what an atom takes on the device."""
        n_slots = self.neighbors.capacity if self.neighbors is not None else 0
        return (3 * self.dtype.itemsize + 12) * n_slots + 280

    def _set_types(self, types: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        present, compact = np.unique(types, return_inverse=True)
        if not np.array_equal(present, self._present):
            self._set_present(present)
        with wp.ScopedDevice(self.device):
            if not np.array_equal(sizes, self._sizes):
                self._sizes = np.empty(0, dtype=np.int64)  # until all is there
                self._allocate(len(types), sizes)
            self._atom_types.assign(compact.reshape(-1).astype(np.int32))
        self._sizes = sizes.copy()
        self._version = -1

    def _set_present(self, present: NDArray[np.int64]) -> None:
        """Upload what these types need, and load kernels for them."""
        p = self._parameters
        spec = Specialization(
            self.shape,
            len(present) == 1,
            p.zbl is not None,
            self.dtype == np.float64,
            "cpu" if self.device.is_cpu else "cuda",
            self._lanes,
        )
        self._kernels: Kernels = build(spec)
        load(self._kernels.module, self.device)
        self._model = _upload(self._kernels, p, self._reference_energies, present, self.device)
        cutoff = float(self._model["cutoffs"].numpy().max())
        self.neighbors = VerletList(cutoff, self._skin, self.device, self.n_threads)
        self._present = present
        self._sizes = np.empty(0, dtype=np.int64)

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
        parts = {
            "moved": (wp.int32, 1, 8),
            "totals": (vec7d, n_systems, 56 * n_systems),
            "energies": (wp.float64, n_atoms, 8 * n_atoms),
            "forces": (wp.vec3d, n_atoms, 24 * n_atoms),
        }
        n_bytes = sum(size for _, _, size in parts.values())
        self._exchanged = on_host = wp.zeros(n_bytes // 8, dtype=wp.float64)
        positions = self.positions
        if self.device.is_cuda:
            on_host = wp.empty_like(self._exchanged, device="cpu", pinned=True)
            positions = wp.empty_like(self.positions, device="cpu", pinned=True)
        self._host = positions, on_host
        self._views = {"positions": positions.numpy(), "results": on_host.numpy()}
        start = 0
        for name, (dtype, length, size) in parts.items():
            device, host = (
                wp.array(ptr=whole.ptr + start, dtype=dtype, shape=length, device=whole.device)
                for whole in (self._exchanged, on_host)
            )
            self._views[name] = host.numpy()
            if name == "moved":
                self.neighbors.moved = device
            else:
                setattr(self, name, device)
            start += size

    def _record(self) -> None:
        k, m, near, n = self._kernels, self._model, self.neighbors, self.systems.n_atoms
        types, n_types = self._atom_types, len(self._present)
        skip, systems = near.moved, self.systems
        self._g = None  # before there are twice as many
        self._g = wp.zeros((n, near.capacity), dtype=k.types.vec3, device=self.device)
        edges = (near.inside, near.shifts, types, n_types, near.counts, near.neighbors, near.images)
        model = (m["cutoffs"], m["c_radial"], m["c_angular"], m["zbl"], *m["network"])
        results = (self._g, self.energies, self._virials)
        gradients = (k.gradients, (skip, *edges, *model, *results))
        pairs = (near.counts, near.neighbors, near.reverse)
        forces = (k.forces, (skip, *pairs, self._g, self.forces))
        chunk = (skip, systems.chunks, self.energies, self._virials, self._partial)
        total = (skip, systems.first_chunk, self._partial, self.totals)
        cores, threads = self.n_threads, k.threads
        self._gradients = Launch([gradients], n, self.device, cores, threads)
        self._forces = Launch([forces], n, self.device, cores, threads)
        self._chunk_totals = Launch([(k.chunk_totals, chunk)], systems.n_chunks, self.device)
        self._totals = Launch([(k.totals, total)], systems.n_systems, self.device)
        self._version, self._graph, self._n_runs = near.version, None, 0

    # -- one evaluation ------------------------------------------------------------------------

    def _run(self, *, positions_are_there: bool) -> None:
        """From positions, in pinned memory or already on the device, to results on the host."""
        self._n_runs += 1
        if not self._with_graphs or positions_are_there or self._n_runs < 2:
            self._launch(positions_are_there=positions_are_there)
        else:
            if self._graph is None:
                self._capture()
            if self._graph is None:
                self._launch(positions_are_there=False)
            else:
                wp.capture_launch(self._graph)
        if self.device.is_cuda:
            wp.synchronize_stream(self.device.stream)

    def _capture(self) -> None:
        try:
            with wp.ScopedCapture(device=self.device, force_module_load=False) as capture:
                self._launch(positions_are_there=False)
            self._graph = capture.graph
        except Exception as error:
            self._with_graphs = False
            warnings.warn(f"evaluations go without a CUDA graph, slower: {error}", stacklevel=4)

    def _launch(self, *, positions_are_there: bool) -> None:
        if self.device.is_cuda and not positions_are_there:
            wp.copy(self.positions, self._host[0])
        self.neighbors.moved.zero_()
        self.neighbors.follow()
        self.compute()
        self.total()
        if self.device.is_cuda:
            wp.copy(self._host[1], self._exchanged)

    def _results(self) -> Evaluation:
        views = self._views
        totals = views["totals"][0]
        return Evaluation(float(totals[0]), views["energies"], views["forces"], totals[1:])


def _unprepared() -> None:
    raise KernelError("nothing to evaluate", remedy="call prepare() and rebuild() first")


def _upload(
    kernels: Kernels,
    p: Parameters,
    reference_energies: Tensor,
    present: NDArray[np.int64],
    device: wp.Device,
) -> dict[str, Any]:
    """Arrays of the types ``present``, pairs flattened, as the kernels want them."""
    n_types, types = len(present), kernels.types
    real = np.float64 if types.real is wp.float64 else np.float32

    def array(values: Array, dtype: Any) -> wp.array:
        # Given, because a vector of length one would be taken for a number.
        shape = values.shape[: values.ndim - len(getattr(dtype, "_shape_", ()))]
        values = np.ascontiguousarray(values, dtype=real)
        return wp.array(values, dtype=dtype, shape=shape, device=device)

    def own(values: Tensor) -> Array:
        return values.detach().cpu().double().numpy()[present]

    def pairs(values: Tensor) -> Array:
        chosen: Array = own(values)[:, present]
        return chosen.reshape(n_types**2, *chosen.shape[2:])

    def network() -> tuple[wp.array, ...]:
        w0 = own(p.w0) * p.scaler.detach().cpu().double().numpy()  # (types, neurons, descriptors)
        rest = (array(own(p.b0), types.real), array(own(p.w1), types.real))
        reference = wp.array(own(reference_energies) - b1, dtype=wp.float64, device=device)
        if kernels.lanes == 1:
            return array(w0, types.descriptors), *rest, reference
        by_input = w0.transpose(0, 2, 1)
        return array(w0, types.real), array(by_input, types.real), *rest, reference

    cutoffs = np.stack([pairs(p.cutoff_radial), pairs(p.cutoff_angular)], 1)
    b1 = float(p.b1.detach())
    zbl = np.zeros((n_types**2, ZBL_SIZE))
    if p.zbl is not None:
        table, charges = pairs(p.zbl.table), own(p.zbl.charges)
        zi, zj = np.repeat(charges, n_types), np.tile(charges, n_types)
        zbl[:, 0] = table[:, 0]
        zbl[:, 1] = np.minimum(table[:, 1], cutoffs[:, 1])  # GPUMD takes the angular pairs
        zbl[:, 2] = 0.5 * ZBL_COULOMB * zi * zj
        zbl[:, 3::2] = table[:, 2::2]
        zbl[:, 4::2] = table[:, 3::2] * ((zi**0.23 + zj**0.23) * ZBL_LENGTH)[:, None]
    return {
        "cutoffs": array(cutoffs, types.vec2),
        "c_radial": array(pairs(p.c_radial).transpose(0, 2, 1), types.radial),
        "c_angular": array(pairs(p.c_angular).transpose(0, 2, 1), types.angular),
        "network": network(),
        "zbl": array(zbl, types.zbl),
    }
