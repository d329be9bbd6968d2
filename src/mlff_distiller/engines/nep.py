"""``NEPEngine``: a NEP by compiled Warp kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from mlff_distiller.engines.engine import Array
from mlff_distiller.engines.kernels import KernelEngine, repulsion_rows
from mlff_distiller.kernels.compiling import Launch, load
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.nep.warp import Kernels, Specialization, build
from mlff_distiller.kernels.nep.warp_errors import build_errors
from mlff_distiller.kernels.nep.warp_functions import ZBL_SIZE
from mlff_distiller.kernels.nep.warp_simd import packed_networks, packed_pairs
from mlff_distiller.kernels.types import WARP
from mlff_distiller.students.nep import NEP

SKIN = 1.0
"""Å. A rebuild costs a few evaluations, a skipped neighbour about a thirtieth of a near one."""


class NEPEngine(KernelEngine):
    """A NEP by compiled kernels; see ``kernels/nep``.

    Only the types present are considered, so an element's crystal costs the same in a model of one
    type or of sixteen.

    Parameters
    ----------
    lanes
        Threads that share an atom: ``WARP``, or 1 on a CPU; what suits the device if None.
    """

    student: NEP
    _dtype: torch.dtype
    _lanes: int

    def __init__(
        self,
        student: NEP,
        skin: float | None = None,
        *,
        n_threads: int | None = None,
        lanes: int | None = None,
    ) -> None:
        on_gpu = student.device.type == "cuda"
        super().__init__(
            *(student, skin or SKIN, n_threads),
            _dtype=student.dtype,
            _lanes=lanes or (WARP if on_gpu else 1),
            _with_graphs=on_gpu,
        )

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
        cutoff = float(self._model["cutoff"])
        if self.student.error_model is not None:
            cutoff = max(cutoff, self.student.error_model.reach)
        self.neighbors = VerletList(cutoff, self.skin, self.device, self.n_threads)
        self._present = present
        self._sizes = np.empty(0, dtype=np.int64)

    def _record_gradients(self) -> Callable[[], None]:
        k, m, near = self._kernels, self._model, self.neighbors
        types, n_types = self._atom_types, len(self._present)
        edges = (near.inside, near.shifts, types, n_types, near.counts, near.neighbors, near.images)
        self._seen = (near.moved, *edges, *m["tables"])
        gradients = (near.moved, *edges, *m["parameters"], self._g, self.energies, self._virials)
        n, cores = self.systems.n_atoms, self.n_threads
        return Launch([(k.gradients, gradients)], n, self.device, cores, k.threads)

    def _record_squares(self, squares: wp.array) -> Callable[[], None]:
        kernels = build_errors(self._spec)
        load(kernels.module, self.device)
        arrays = (*self._seen, *self._model["errors"], self._g, squares)
        n, cores = self.systems.n_atoms, self.n_threads
        return Launch([(kernels.distances, arrays)], n, self.device, cores, kernels.threads)


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
    b0, w1 = own(p.b0), own(p.w1)
    b1 = float(p.b1.detach())
    reference = wp.array(own(student.reference_energies) - b1, dtype=wp.float64, device=device)
    cutoffs = np.stack([pairs(p.cutoff_radial), pairs(p.cutoff_angular)], 1)
    zbl = np.zeros((n_types**2, ZBL_SIZE))
    if p.zbl is not None:  # GPUMD takes the angular pairs
        zbl = repulsion_rows(own(p.zbl.table)[:, present], own(p.zbl.charges), cutoffs[:, 1])
    c_radial, c_angular = pairs(p.c_radial), pairs(p.c_angular)
    tables = (
        array(cutoffs, types.vec2),
        array(c_radial.transpose(0, 2, 1), types.radial),
        array(c_angular.transpose(0, 2, 1), types.angular),
    )
    if kernels.lanes == 1:
        packed = packed_networks(w0, b0, w1, float64=real is np.float64)
        numbers = packed_pairs(cutoffs, zbl, c_radial, c_angular), packed
        parameters = (*(array(np.ravel(one), types.real) for one in numbers), reference)
    else:
        networks = (array(one, types.real) for one in (w0, w0.transpose(0, 2, 1), b0, w1))
        parameters = (*tables, array(zbl, types.zbl), *networks, reference)
    errors: tuple[Any, ...] = ()
    if (known := student.error_model) is not None:
        hidden = wp.types.vector(student.shape.neurons, types.real)
        mean, whitening = own(known.mean), own(known.whitening)
        if kernels.lanes == 1:
            inputs = array(w0, types.descriptors), array(b0, types.real)
            errors = (*inputs, *(array(x, hidden) for x in (mean, whitening)))
        else:
            by_input = w0.transpose(0, 2, 1), b0, mean, whitening.transpose(0, 2, 1)
            errors = tuple(array(x, types.real) for x in by_input)
    return {"cutoff": cutoffs.max(), "tables": tables, "parameters": parameters, "errors": errors}


ENGINE = NEPEngine
"""The engine of students whose ``kernels`` have this module's name."""
