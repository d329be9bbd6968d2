"""``TorchEngine``: any student, as PyTorch runs it.

On a GPU an evaluation is one CUDA graph, for which the number of edges must not change: there are
some more edges than pairs, between atoms of a separate system that is never read, and longer
than the cutoff.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from mlff_distiller.batch import Batch
from mlff_distiller.engines.engine import Array, Engine, Estimates, Evaluation, Evaluations
from mlff_distiller.engines.threads import on_stream, own_helpers, own_modes
from mlff_distiller.kernels.compiling import recording
from mlff_distiller.kernels.neighbors.verlet import VerletList
from mlff_distiller.kernels.systems import Systems
from mlff_distiller.kernels.types import vec7d
from mlff_distiller.neighbors import (
    PADDING_ATOMS,
    Neighbors,
    neighbor_list,
    padded_number,
    padding,
)
from mlff_distiller.students.base import Student
from mlff_distiller.students.compiled import compiled

SKIN = 0.5
"""Å. Every pair within the skin costs as much as one within the cutoff."""
_MARGIN = 1.1
"""Room for edges, over what there are."""
_FIRST_RECORDED = 3
"""Evaluation at which it pays to record it."""
_LONG_ON_GPU, _LONG_ON_CPU = 10_000, 300_000
"""Steps that launches bind, and steps times atoms."""
_VOIGT = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)


def pays_to_compile(n_steps: int, n_atoms: int, *, on_gpu: bool) -> bool:
    """Whether this many steps save, roughly, more time than compiling takes."""
    return n_steps >= _LONG_ON_GPU if on_gpu else n_steps * n_atoms >= _LONG_ON_CPU


class TorchEngine(Engine):
    """Any student, as PyTorch runs it.

    Parameters
    ----------
    padded
        Whether edges are of a constant number; if None, on a GPU and for ``compile``. If not,
        ``evaluate`` needs no kernels but PyTorch's, and finds neighbours every time.
    compile
        Fuse kernels by ``torch.compile`` first, which takes most of a minute, and again when the
        atoms are others or neighbours outgrow their room.
    """

    capturable = False
    exact = False
    padded: bool
    compile: bool
    _once: tuple[Batch, Neighbors] | None = None
    """What ``evaluate`` has seen, where the rest is not prepared for it."""

    def __init__(
        self,
        student: Student,
        skin: float = SKIN,
        *,
        padded: bool | None = None,
        compile: bool = False,
    ) -> None:
        if padded is None:
            padded = compile or student.device.type == "cuda"
        super().__init__(student, skin, padded=padded, compile=compile)

    def evaluate(
        self, positions: Array, numbers: NDArray[np.int64], cell: Array, pbc: NDArray[np.bool_]
    ) -> Evaluation:
        if self.padded:
            return super().evaluate(positions, numbers, cell, pbc)
        return own_helpers(partial(self._evaluate_once, positions, numbers, cell, pbc))

    @own_modes()
    def _evaluate_once(
        self, positions: Array, numbers: NDArray[np.int64], cell: Array, pbc: NDArray[np.bool_]
    ) -> Evaluation:
        batch = Batch(
            torch.from_numpy(positions),
            torch.from_numpy(numbers),
            torch.zeros(len(numbers), dtype=torch.int64),
            torch.from_numpy(cell).unsqueeze(0),
            torch.from_numpy(pbc).unsqueeze(0),
        )
        device = self.student.device
        neighbors = neighbor_list(batch, self.student.cutoff).to(device)
        batch = batch.to(device)
        with torch.no_grad():
            found = self.student(batch, neighbors)
        self._once = batch, neighbors
        return Evaluation(
            float(found.energy[0]),
            found.energies.cpu().numpy(),
            found.forces.double().cpu().numpy(),
            -found.strain_gradient[0].cpu().numpy()[_VOIGT],
        )

    def _evaluate_many(self, batch: Batch) -> Evaluations:
        self._once = None
        return super()._evaluate_many(batch)

    def estimates(self) -> Estimates | None:
        model = self.student.error_model
        if self._once is None or model is None:
            return super().estimates()
        batch, neighbors = self._once
        types = self.student.types(batch.atomic_numbers)
        found = model.estimate(self.student, types, batch, neighbors)
        return Estimates(*(values.cpu().numpy() for values in found))

    def _evaluate(self, positions: Array, cell: Array, pbc: NDArray[np.bool_]) -> Evaluation:
        near = self.neighbors
        self.positions.assign(positions)
        is_current = near.is_current(self.positions, cell, pbc)
        if is_current:
            near.moved.zero_()
            near.follow()
            found = self._run()
        if not is_current or near.moved.numpy()[0]:
            self.rebuild(cell, pbc)
            found = self._run()
        return Evaluation.of(found)

    def _run(self) -> Array:
        """Evaluate; a copy of what there is on the device."""
        self.compute()
        with on_stream(self.device):
            return self._exchanged.cpu().numpy().copy()

    # -- for dynamics on the device ------------------------------------------------------------

    def rebuild(self, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        near = self.neighbors
        with self._memory(self.systems.n_atoms):
            near.set(self.positions, cell, pbc, self.systems)
            near.rebuild()
            with on_stream(self.device), torch.no_grad():
                self._cell.copy_(torch.from_numpy(np.reshape(cell, (-1, 3, 3))))
                is_periodic = np.reshape(pbc, (-1, 1, 3)).all(2, keepdims=True)
                self._is_periodic.copy_(torch.from_numpy(is_periodic))
                self._set_edges(self._pairs())
        return True

    def compute(self) -> None:
        """Totals as well. Worthless once an atom has left its skin, which is not checked."""
        if self.device.is_cpu and self.neighbors.moved.numpy()[0]:
            return
        with self._memory(self.systems.n_atoms), on_stream(self.device), torch.no_grad():
            self._n_runs += 1
            if self.padded and self._n_runs == (1 if self.compile else _FIRST_RECORDED):
                self._prepare()
            self._launch()

    def total(self) -> None: ...

    # -- what depends on the atoms' number and types -------------------------------------------

    def _make_room(self, types: Tensor, sizes: NDArray[np.int64]) -> None:
        self._release()  # before there are two
        super()._make_room(types, sizes)
        self.systems = Systems.of_sizes(sizes, self.device)
        self.neighbors = VerletList(self.student.cutoff, self.skin, self.device, self.n_threads)
        n, n_systems, here = self.systems.n_atoms, self.systems.n_systems, types.device
        # What goes to the host, in one piece.
        self._exchanged = torch.zeros(7 * n_systems + 4 * n, dtype=torch.float64, device=here)
        totals, self._energies, forces = self._exchanged.split([7 * n_systems, n, 3 * n])
        self._totals, self._forces = totals.view(n_systems, 7), forces.view(n, 3)
        self.totals = wp.from_torch(self._totals, dtype=vec7d)
        self.forces = wp.from_torch(self._forces, dtype=wp.vec3d)
        self.positions = wp.zeros(n, dtype=wp.vec3d, device=self.device)
        self._n_padding = PADDING_ATOMS + n // 8 if self.padded else 0
        self._n_edges = 0
        self._n_slots: int | None = None
        system_idx = torch.repeat_interleave(torch.arange(n_systems), torch.from_numpy(sizes))
        self._types = torch.cat([types, types.new_zeros(self._n_padding)])
        self._system_idx = torch.cat([system_idx, torch.full((self._n_padding,), n_systems)])
        self._system_idx = self._system_idx.to(here)
        self._cell = torch.zeros(n_systems, 3, 3, dtype=torch.float64, device=here)
        self._is_periodic = torch.zeros(n_systems, 1, 1, dtype=torch.bool, device=here)
        self._edges: Neighbors
        self._unused: Neighbors
        self._set_launch()

    # -- edges ---------------------------------------------------------------------------------

    def _set_edges(self, edges: Neighbors) -> None:
        """Pairs first, in their order; padding from there on."""
        if not self.padded:
            self._edges = edges
            return
        if self._n_slots != self.neighbors.capacity:
            self._n_slots = self.neighbors.capacity
            self._set_launch()
        n_used = len(edges.i)
        if n_used > self._n_edges:
            self._n_edges = padded_number(int(_MARGIN * n_used))
            unused = padding(self._n_edges, self._n_padding, self.student.device)
            atoms = self.systems.n_atoms + unused.i
            self._unused = Neighbors(atoms, atoms, unused.shifts)
            self._edges = Neighbors(atoms.clone(), atoms.clone(), unused.shifts.clone())
            self._set_launch()
        for name in ("i", "j", "shifts"):
            own = getattr(self._edges, name)
            own[:n_used] = getattr(edges, name)
            own[n_used:] = getattr(self._unused, name)[n_used:]

    # -- one evaluation ------------------------------------------------------------------------

    def _derivatives(
        self, positions: Tensor, cell: Tensor, i: Tensor, j: Tensor, shifts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Energies of systems and of atoms, forces, and derivatives by strain."""
        if self.padded:
            positions = torch.cat([positions, positions.new_zeros(self._n_padding, 3)])
            own = 2.0 * self.student.cutoff * torch.eye(3, dtype=cell.dtype, device=cell.device)
            cell = torch.cat([cell, own.unsqueeze(0)])
        pbc = torch.ones(len(cell), 3, dtype=torch.bool, device=cell.device)
        batch = Batch(positions, self._types, self._system_idx, cell, pbc)
        # Shapes must not depend on values: a bound on the neighbours of atoms.
        found = self.student.predict(self._types, batch, Neighbors(i, j, shifts), self._n_slots)
        return found.energy, found.energies, found.forces, found.strain_gradient

    def _write(self, derivatives: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]) -> None:
        energy, energies, forces, strain = derivatives(*self._arguments())
        n, n_systems = self.systems.n_atoms, self.systems.n_systems
        self._energies.copy_(energies[:n])
        self._forces.copy_(forces[:n])
        self._totals[:, 0] = energy[:n_systems]
        for column, (a, b) in enumerate(zip(*_VOIGT, strict=True), 1):
            self._totals[:, column] = -strain[:n_systems, a, b]

    def _set_launch(self) -> None:
        """Run kernels one by one at first: single evaluations are not worth a recording."""
        self._n_runs = 0
        self._launch: Callable[[], object] = partial(self._write, self._derivatives)

    def _arguments(self) -> tuple[Tensor, ...]:
        """The lattice on the device where it is periodic: a barostat may have changed it."""
        lattice = wp.to_torch(self.neighbors.lattice)
        cell = torch.where(self._is_periodic, lattice, self._cell)
        edges = self._edges
        return wp.to_torch(self.positions), cell, edges.i, edges.j, edges.shifts

    def _prepare(self) -> None:
        """Compile an evaluation, if that is wanted, and on a GPU record it."""
        if self.compile:
            self._compile()
        if self.device.is_cuda:
            self._record()

    def _compile(self) -> None:
        def derivatives(positions: Tensor, cell: Tensor, i: Tensor, j: Tensor, s: Tensor) -> Any:
            return self._derivatives(positions, cell, i, j, s)

        try:
            fused = compiled(derivatives, self._arguments(), self.student.device)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            self.compile = False
            warnings.warn(f"evaluations go uncompiled, slower: {error}", stacklevel=6)
            return
        self._launch = partial(self._write, fused)

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            self._launch()  # libraries allocate their own memory
            with recording(), torch.cuda.graph(graph):
                self._launch()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(f"evaluations go without a CUDA graph, slower: {error}", stacklevel=6)
            return
        self._launch = graph.replay
