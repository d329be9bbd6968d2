"""``PainnEngine``: a PaiNN by Warp kernels and matrix products, without autograd or a compiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor, nn

from mlff_distiller.engines.engine import Array, Evaluation
from mlff_distiller.engines.kernels import KernelEngine, repulsion_rows
from mlff_distiller.engines.threads import on_stream, own_helpers, own_modes
from mlff_distiller.kernels.compiling import load
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.painn.shape import Shape
from mlff_distiller.kernels.painn.steps import Steps
from mlff_distiller.kernels.painn.tables import radial_table
from mlff_distiller.kernels.painn.warp import Kernels, build
from mlff_distiller.students.painn import SATURATION, SHORTEST, PaiNN, bessel

SKIN = {"cpu": 0.5, "cuda": 1.0}
"""Å. A skipped neighbour costs its distance, in each kernel that looks at neighbours; a GPU finds
those of 32 at once."""
FEW_ATOMS = 2048
"""Atoms up to which a GPU is busy only if some warps share the neighbours of each."""
WARPS = 4
FEW_TO_CHAIN = 2**22
"""Atoms x channels^2 up to which one kernel, which reads matrices for each atom, takes the place of
many."""


class PainnEngine(KernelEngine):
    """A PaiNN by kernels around matrix products; see ``kernels/painn``.

    Kernels gather from neighbours, and do what is not linear; their derivatives are written out.
    Products of an atom's numbers with weights are PyTorch's, which on a GPU are cuBLAS's.

    Parameters
    ----------
    chained
        Whether one kernel does all, products as well, from one look at neighbours to the next;
        what is faster if None: on a GPU with few atoms.
    """

    student: PaiNN
    _kernels: Kernels
    _chained: bool | None
    _how = 1, False  # warps of an atom, and whether kernels are chained

    def __init__(
        self,
        student: PaiNN,
        skin: float | None = None,
        *,
        n_threads: int | None = None,
        chained: bool | None = None,
    ) -> None:
        where = student.device.type
        super().__init__(
            *(student, skin or SKIN[where], n_threads),
            _chained=chained,
            _with_graphs=where == "cuda",
        )

    def _evaluate(self, positions: Array, cell: Array, pbc: NDArray[np.bool_]) -> Evaluation:
        return own_helpers(partial(super()._evaluate, positions, cell, pbc))

    # -- what depends on the atoms' number and types -------------------------------------------

    def _make_room(self, types: Tensor, sizes: NDArray[np.int64]) -> None:
        n = len(types)
        is_few = types.is_cuda and n <= FEW_ATOMS
        chained = self._chained
        if chained is None:
            chained = is_few and n * self.student.channels**2 <= FEW_TO_CHAIN
        how = WARPS if is_few or (chained and types.is_cuda) else 1, chained
        if how != self._how:
            self._how, self._present = how, np.empty(0, dtype=np.int64)
        super()._make_room(types, sizes)

    @own_modes()
    def _set_present(self, present: NDArray[np.int64]) -> None:
        student = self.student
        repels = student.repulsion is not None
        shape = Shape(
            student.channels,
            student.radial_functions,
            student.max_moment,
            student.cutoff,
            SHORTEST,
            SATURATION if repels and student.saturates else 0.0,
            repels,
            student.layers > 1,
            student.dtype == torch.float64,
        )
        self._shape = shape
        warps, chained = self._how
        where = "cpu" if self.device.is_cpu else "cuda"
        self._kernels = build(shape, where, warps, chained=chained)
        load(self._kernels.module, self.device)
        with torch.no_grad():
            self._weights = _weights(student, torch.from_numpy(present))
        self.neighbors = VerletList(student.cutoff, self.skin, self.device, self.n_threads)
        self._present = present
        self._sizes = np.empty(0, dtype=np.int64)

    def _allocate(self, n: int, sizes: NDArray[np.int64]) -> None:
        self._rooms: dict[Any, Tensor] = {}  # before there are twice as many
        super()._allocate(n, sizes)

    # -- the launches of an evaluation ---------------------------------------------------------

    @own_modes()
    def _record_gradients(self) -> Callable[[], None]:
        near, k = self.neighbors, self._kernels
        a = k.shared()
        a.n_atoms, a.n_types = self.systems.n_atoms, len(self._present)
        a.inside, a.shifts, a.types = near.inside, near.shifts, self._atom_types
        a.counts, a.neighbors, a.images = near.counts, near.neighbors, near.images
        a.g, a.energies, a.virials = self._g, self.energies, self._virials
        a.norm_width = self.student.norm_width
        a.reference = wp.array(self._weights["reference"], dtype=wp.float64, device=self.device)
        self._steps = steps = Steps(
            k, a, self._weights, self._rooms, near.moved, self.device, self.n_threads
        )
        launches = steps.record()
        on_cpu, moved = self.device.is_cpu, near.moved

        def gradients() -> None:
            if on_cpu and moved.numpy()[0]:
                return
            with on_stream(self.device):
                for launch in launches:
                    launch()

        return gradients

    @own_modes()
    def _record_squares(self, squares: wp.array) -> Callable[[], None]:
        model, types = self.student.error_model, wp.to_torch(self._atom_types).long()
        assert model is not None
        present = torch.from_numpy(self._present)
        mean, whitening = (
            own[present].to(self.student.device, self.student.dtype)
            for own in (model.mean, model.whitening)
        )
        hidden, out = self._steps.last_hidden, wp.to_torch(squares)
        centers = mean[types]
        of_types = [(types == k, matrix.T.contiguous()) for k, matrix in enumerate(whitening)]

        @own_modes()
        def distances() -> None:
            with on_stream(self.device):
                away = nn.functional.silu(hidden) - centers
                for own, matrix in of_types:
                    torch.where(own, (away @ matrix).square().sum(1), out, out=out)

        return distances


def _weights(student: PaiNN, present: Tensor) -> dict[str, Any]:
    """Matrices as (inputs, outputs), and what kernels look up, of the types ``present``."""
    gather: Any = student.gather
    updates: list[Any] = list(student.updates)
    messages: list[Any] = list(student.messages)
    inner, last = (list[Any](student.readout)[k] for k in (0, 2))

    def own(values: Tensor) -> Tensor:
        return values.detach().double().cpu()

    def there(values: Tensor | Array) -> Tensor:
        own_copy = torch.as_tensor(values).to(student.device, student.dtype, copy=True)
        return own_copy.contiguous()

    def matrix(*layers: nn.Linear) -> Tensor:
        """Side by side."""
        return there(torch.cat([own(layer.weight) for layer in layers])).T

    def network(*layers: nn.Linear) -> list[Tensor]:
        return [part for layer in layers for part in (matrix(layer), there(own(layer.bias)))]

    radial = radial_table(bessel, student.cutoff, student.radial_functions)
    filters = student.radial_scale * own(gather.filters.weight).T  # (K, moments)
    first = (own(gather.weights)[present].unsqueeze(1) * filters).flatten(0, 1)
    scale = float(student.scale)
    weights: dict[str, Any] = {
        "radial": there(radial),
        "embedding": there(own(student.embedding)[present]),
        "reference": own(student.reference_energies)[present].numpy(),
        "moments": [there(part) for part in first.split(gather.sizes, 1)],
        "mixing": [matrix(layer.u, layer.v) for layer in updates],
        "updates": [network(*layer.network[::2]) for layer in updates],
        "messages": [network(*layer.network[::2]) for layer in messages],
        "tables": [
            there(radial @ (student.radial_scale * own(layer.filters.weight).T))
            for layer in messages
        ],
        "readout": network(inner),
        "last": (there(scale * own(last.weight)[0]), there(scale * own(last.bias))),
    }
    if gather.products is not None:
        products = [gather.products, *gather.higher]
        weights |= {
            "mix": matrix(*(part.mix for part in products if part.mix is not None)),
            "mix_higher": [
                matrix(gather.products.mix_second),
                *(matrix(part.mix_higher) for part in gather.higher),
            ],
            "scalars": there(torch.cat([own(part.scalars.weight).T for part in products])),
            "vectors": matrix(gather.products.vectors),
        }
    if student.repulsion is not None:
        repulsion = student.repulsion
        table, reach = own(repulsion.table)[present][:, present], repulsion.reach
        charges = own(repulsion.charges)[present]
        weights["outer"] = there(table[..., 1].clamp(max=reach))
        weights["zbl"] = there(repulsion_rows(table.numpy(), charges.numpy(), reach))
    return weights


ENGINE = PainnEngine
"""The engine of students whose ``kernels`` have this module's name."""
