"""``NEPEvaluator``: energy, forces and virial of one structure at a time by the Warp kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from mlff_distiller.kernels.compiling import Launch, load, warp_device
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.nep.reference import ZBL_COULOMB, ZBL_LENGTH, Parameters, Shape
from mlff_distiller.kernels.nep.warp import (
    TOTALS_CHUNK,
    Kernels,
    Specialization,
    build,
    vec6d,
    vec7d,
)
from mlff_distiller.kernels.nep.warp_functions import ZBL_SIZE

SKIN = 1.0
"""Å. A rebuild costs a few evaluations, a skipped neighbour about a thirtieth of a near one."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Views of memory that the next evaluation overwrites."""

    energy: float  # eV
    energies: Array  # (n_atoms,) eV
    forces: Array  # (n_atoms, 3) eV/Å
    virial: Array  # (3, 3) eV; stress is -virial / volume


class NEPEvaluator:
    """A NEP4 model on one device, for structure after structure.

    Memory is allocated when the number of atoms, the neighbours' number or the set of types that
    are present changes, and not otherwise. Only the types present are considered, so an element's
    crystal costs the same in a model of one type or of sixteen. Not for use from several threads
    at once.

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
    ) -> None:
        self.shape, self.device, self.dtype = shape, warp_device(device), np.dtype(dtype)
        self.n_threads = n_threads or torch.get_num_threads()
        self._parameters, self._reference_energies = parameters, reference_energies
        self._skin = skin
        self._present: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._types: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._version = -1
        self.positions: wp.array = None
        self.neighbors: VerletList

    def evaluate(
        self,
        positions: Array | Tensor,  # (n_atoms, 3) Å
        types: NDArray[np.int64],  # (n_atoms,)
        cell: Array,  # (3, 3) Å
        pbc: NDArray[np.bool_],  # (3,)
    ) -> Evaluation:
        """Energy, forces and virial. Waits for the device."""
        if not np.array_equal(types, self._types):
            self._set_types(types)
        self._set_positions(positions)
        self.neighbors.update(self.positions, cell, pbc)
        if self.neighbors.version != self._version:
            self._record()
        self._densities()
        self._forces()
        self._chunk_totals()
        self._totals()
        return self._results()

    # -- what depends on the atoms' number and types -------------------------------------------

    def _set_types(self, types: NDArray[np.int64]) -> None:
        present, compact = np.unique(types, return_inverse=True)
        if not np.array_equal(present, self._present):
            self._set_present(present)
        n, n_before = len(types), len(self._types)
        self._types = np.empty(0, dtype=np.int64)  # until all is there
        with wp.ScopedDevice(self.device):
            if n != n_before:
                self._allocate(n)
            self._atom_types.assign(compact.reshape(-1).astype(np.int32))
        self._types = types.copy()
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
        )
        self._kernels: Kernels = build(spec)
        load(self._kernels.module, self.device)
        self._model = _upload(self._kernels, p, self._reference_energies, present, self.device)
        cutoff = float(self._model["cutoffs"].numpy().max())
        self.neighbors = VerletList(cutoff, self._skin, self.device, self.n_threads)
        self._present = present
        self._types = np.empty(0, dtype=np.int64)

    def _allocate(self, n: int) -> None:
        types = self._kernels.types
        pinned = self.device.is_cuda
        self.positions = wp.zeros(n, dtype=wp.vec3d)
        self._atom_types = wp.zeros(n, dtype=int)
        self._s = wp.zeros((n, self.shape.n_max_angular + 1), dtype=types.harmonics)
        self._q_radial = wp.zeros(n, dtype=types.radial)
        self.forces, self._virials = wp.zeros(n, dtype=wp.vec3d), wp.zeros(n, dtype=vec6d)
        self.energies = wp.zeros(n, dtype=wp.float64)
        self._partial = wp.zeros(-(-n // TOTALS_CHUNK), dtype=vec7d)
        self.totals = wp.zeros(1, dtype=vec7d)
        on_device = (self.positions, self.energies, self.forces, self.totals)
        self._host = [
            wp.empty_like(array, device="cpu", pinned=True) if pinned else array
            for array in on_device
        ]
        self._views = [array.numpy() for array in self._host]

    def _record(self) -> None:
        k, m, near, n = self._kernels, self._model, self.neighbors, len(self._types)
        s, q, types, n_types = self._s, self._q_radial, self._atom_types, len(self._present)
        edges = (near.inside, near.shifts, types, n_types, near.counts, near.neighbors, near.images)
        basis = (m["cutoffs"], m["c_radial"], m["c_angular"])
        network = (types, m["scaler"], m["w0"], m["b0"], m["w1"], m["reference"])
        results = (self.energies, self.forces, self._virials)
        chunks = len(self._partial)
        both = [(k.density, (*edges, *basis, s, q)), (k.network, (*network, s, q, self.energies))]
        force = (k.force, (*edges, *basis, m["zbl"], s, q, *results))
        chunk = (k.chunk_totals, (self.energies, self._virials, n, self._partial))
        total = (k.totals, (self._partial, chunks, self.totals))
        self._densities = Launch(both, n, self.device, self.n_threads)
        self._forces = Launch([force], n, self.device, self.n_threads)
        self._chunk_totals = Launch([chunk], chunks, self.device)
        self._totals = Launch([total], 1, self.device)
        self._version = near.version

    # -- in and out ----------------------------------------------------------------------------

    def _set_positions(self, positions: Array | Tensor) -> None:
        if isinstance(positions, Tensor) and positions.is_cuda:
            torch.cuda.current_stream(positions.device).synchronize()  # Warp has its own stream
            wp.copy(self.positions, wp.from_torch(positions.contiguous(), dtype=wp.vec3d))
            return
        np.copyto(self._views[0], positions)
        if self.device.is_cuda:
            wp.copy(self.positions, self._host[0])

    def _results(self) -> Evaluation:
        if self.device.is_cuda:
            on_device = (self.energies, self.forces, self.totals)
            for host, array in zip(self._host[1:], on_device, strict=True):
                wp.copy(host, array)
            wp.synchronize_stream(self.device.stream)
        _, energies, forces, totals = self._views
        energy, xx, yy, zz, yz, xz, xy = totals[0].tolist()
        virial = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        return Evaluation(energy, energies, forces, virial)


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
        "scaler": array(p.scaler.detach().cpu().double().numpy()[None], types.descriptors),
        "w0": array(own(p.w0), types.descriptors),
        "b0": array(own(p.b0), types.real),
        "w1": array(own(p.w1), types.real),
        "reference": wp.array(own(reference_energies) - b1, dtype=wp.float64, device=device),
        "zbl": array(zbl, types.zbl),
    }
