"""``NEPEngine``: a NEP by compiled Warp kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from mlff_distiller.engines.engine import Array, Engine, Evaluation
from mlff_distiller.kernels.compiling import Launch, load
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.nep.reference import ZBL_COULOMB, ZBL_LENGTH
from mlff_distiller.kernels.nep.warp import Kernels, Specialization, build
from mlff_distiller.kernels.nep.warp_errors import build_errors
from mlff_distiller.kernels.nep.warp_functions import ZBL_SIZE
from mlff_distiller.kernels.nep.warp_lanes import WARP
from mlff_distiller.kernels.systems import Systems
from mlff_distiller.kernels.types import vec6d, vec7d
from mlff_distiller.students.error_model import LARGEST
from mlff_distiller.students.nep import NEP

SKIN = 1.0
"""Å. A rebuild costs a few evaluations, a skipped neighbour about a thirtieth of a near one."""


class NEPEngine(Engine):
    """A NEP by compiled kernels; see ``kernels/nep``.

    Only the types present are considered, so an element's crystal costs the same in a model of one
    type or of sixteen. On a GPU a structure's second evaluation records one CUDA graph, from its
    positions to its results, for those that follow.

    Parameters
    ----------
    lanes
        Threads that share an atom: 1 or ``WARP``; what suits the device if None.
    """

    capturable = True
    exact = True
    student: NEP
    energies: wp.array  # (n_atoms,) float64, eV
    _estimate: Callable[[], None] | None = None
    _dtype: torch.dtype
    _lanes: int
    _with_graphs: bool
    _present = _sizes = np.empty(0, dtype=np.int64)

    def __init__(
        self,
        student: NEP,
        skin: float = SKIN,
        *,
        n_threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        on_gpu = student.device.type == "cuda"
        super().__init__(
            *(student, skin, n_threads),
            _dtype=student.dtype,
            _lanes=lanes or (WARP if on_gpu else 1),
            _with_graphs=on_gpu,
        )

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
        if self.errors is None:
            return
        if self._estimate is None:
            self._estimate = self._record_estimate()
        self._estimate()

    def _record_estimate(self) -> Callable[[], None]:
        kernels, n = build_errors(self._spec, LARGEST), self.systems.n_atoms
        load(kernels.module, self.device)
        real, near, skip = self._kernels.types.real, self.neighbors, self.neighbors.moved
        squares = wp.zeros(n, dtype=real, device=self.device)
        network, law = self._model["errors"]
        places = (skip, near.inside, near.shifts, self._atom_types)
        pairs = (near.counts, near.neighbors, near.images)
        steps = (
            (kernels.distances, (*self._seen, *network, squares)),
            (
                kernels.estimates,
                (*places, *pairs, squares, *law, self.errors, self.extrapolation),
            ),
        )
        launches = [Launch([step], n, self.device, self.n_threads) for step in steps]

        def estimate() -> None:
            for launch in launches:
                launch()

        return estimate

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

    def _set_present(self, present: NDArray[np.int64]) -> None:
        """Upload what these types need, and load kernels for them."""
        self._spec = spec = Specialization(
            self.student.shape,
            len(present) == 1,
            self.student.zbl is not None,
            self._dtype == torch.float64,
            "cpu" if self.device.is_cpu else "cuda",
            self._lanes,
        )
        self._kernels: Kernels = build(spec)
        load(self._kernels.module, self.device)
        self._model = _upload(self._kernels, self.student, present, self.device)
        cutoff = float(self._model["cutoffs"].numpy().max())
        if self.student.error_model is not None:
            cutoff = max(cutoff, self.student.error_model.reach)
        self.neighbors = VerletList(cutoff, self.skin, self.device, self.n_threads)
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
        self._seen = (skip, *edges, *model[:3])
        pairs = (near.counts, near.neighbors, near.reverse)
        forces = (k.forces, (skip, *pairs, self._g, self.forces))
        chunk = (skip, systems.chunks, self.energies, self._virials, self._partial)
        total = (skip, systems.first_chunk, self._partial, self.totals)
        cores, threads = self.n_threads, k.threads
        self._gradients: Callable[[], None] = Launch([gradients], n, self.device, cores, threads)
        self._forces = Launch([forces], n, self.device, cores, threads)
        self._chunk_totals = Launch([(k.chunk_totals, chunk)], systems.n_chunks, self.device)
        self._totals = Launch([(k.totals, total)], systems.n_systems, self.device)
        self._version, self._graph, self._n_runs = near.version, None, 0
        self._estimate = None

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
            with wp.ScopedCapture(device=self.device, force_module_load=False) as capture:
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


def _upload(
    kernels: Kernels, student: NEP, present: NDArray[np.int64], device: wp.Device
) -> dict[str, Any]:
    """Arrays of the types ``present``, pairs flattened, as the kernels want them."""
    n_types, types, p = len(present), kernels.types, student.nep4()
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

    w0 = own(p.w0) * p.scaler.detach().cpu().double().numpy()  # (types, neurons, descriptors)

    def network() -> tuple[wp.array, ...]:
        rest = (array(own(p.b0), types.real), array(own(p.w1), types.real))
        reference = wp.array(own(student.reference_energies) - b1, dtype=wp.float64, device=device)
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
    errors: tuple[Any, ...] = ()
    if (known := student.error_model) is not None:
        hidden = wp.types.vector(student.shape.neurons, types.real)
        mean, whitening = (array(own(x), hidden) for x in (known.mean, known.whitening))
        scale, edge = (
            wp.array(own(x), dtype=wp.float64, device=device) for x in (known.scale, known.edge)
        )
        law = types.real(known.reach), scale, edge, wp.float64(known.power)
        inputs = array(w0, types.descriptors), array(own(p.b0), types.real)
        errors = (*inputs, mean, whitening), law
    return {
        "cutoffs": array(cutoffs, types.vec2),
        "c_radial": array(pairs(p.c_radial).transpose(0, 2, 1), types.radial),
        "c_angular": array(pairs(p.c_angular).transpose(0, 2, 1), types.angular),
        "network": network(),
        "zbl": array(zbl, types.zbl),
        "errors": errors,
    }


ENGINE = NEPEngine
"""The engine of students whose ``kernels`` have this module's name."""
