"""One update of a student's weights; on a GPU one CUDA graph, compiled if asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from mlff_distiller.errors import KernelError, TrainingError
from mlff_distiller.kernels.compiling import recording
from mlff_distiller.students.base import Student
from mlff_distiller.training.compiled import compiled_loss
from mlff_distiller.training.descent import descent_of
from mlff_distiller.training.loss import Spread, loss, loss_and_adjoints, pair_vectors
from mlff_distiller.training.minibatch import Minibatch, Minibatches, Size
from mlff_distiller.training.resident import Resident
from mlff_distiller.training.settings import TrainingSettings
from mlff_distiller.training.workers import Workers

_EAGER_UPDATES = 3
"""Before a graph is captured: libraries allocate on first use, which a capture may not."""
_EPOCHS_AHEAD = 8
"""Epochs scanned for the padded size; a larger minibatch later triggers a recompilation."""
LossOf = Callable[[Minibatch, Tensor], Tensor]


class Updater:
    """The student, its moving average and the optimizer: all that an update changes."""

    def __init__(
        self,
        student: Student,
        minibatches: Minibatches,
        spread: Spread,
        settings: TrainingSettings,
        workers: Workers,
        *,
        compiles: bool = False,
    ) -> None:
        self.student, self.minibatches, self.spread = student, minibatches, spread
        self.settings, self.workers = settings, workers
        self.average = deepcopy(student).eval().requires_grad_(requires_grad=False)
        self.average.by_kernels = True  # validated a hundred times
        self.descent = descent_of(student, self.average, settings)
        self.optimizer = self.descent.optimizer
        on_gpu = student.device.type == "cuda"
        self.graphs = settings.cuda_graph and on_gpu and workers.alone
        self.compiles = compiles and workers.alone
        self._fixed: _FixedSize | None = None
        self._eager = 0

    def update(
        self,
        units: Sequence[int],
        rate: float,
        weights: Sequence[float],
        following: Sequence[int] = (),
    ) -> Tensor:
        """Learn from a minibatch; returns its loss, without waiting for it.

        ``following`` are the units of the next one, which is prepared meanwhile.
        """
        device, dtype = self.student.device, self.student.dtype
        self.descent.set_rate(rate)
        scales = torch.stack(
            [torch.tensor(weights, dtype=torch.float64), self.minibatches.norms(units)]
        )
        scales = scales.to(dtype)
        if (self.graphs or self.compiles) and self._eager >= _EAGER_UPDATES:
            size = self.minibatches.size(units)
            fixed = self._fixed
            if fixed is None:
                plans = [self.minibatches.plan(epoch) for epoch in range(_EPOCHS_AHEAD)]
                fixed = self._fix(self.minibatches.padded_size([*chain(*plans), units]))
            elif not fixed.size.holds(size):
                larger = self.minibatches.padded_size([units])
                fixed = self._fix(fixed.size.united(larger))
            return fixed(units, scales, following)
        self._eager += 1
        every = slice(self.workers.rank, None, self.workers.world_size)
        part = self.minibatches.make(units[every]) if units[every] else None
        self.minibatches.prepare(following[every])
        return self._step(part, scales.to(device), self._learn)

    def _loss(self, part: Minibatch, scales: Tensor, max_neighbors: int | None = None) -> Tensor:
        prediction = self.student.predict(part.types, *part.graph(), max_neighbors)
        weights, norms = scales.unbind(0)
        return loss(prediction, part, self.spread, norms, weights, self.settings.loss.huber_delta)

    def _learn(self, part: Minibatch, scales: Tensor, max_neighbors: int | None = None) -> Tensor:
        """`_loss`, and back from it to the weights' gradients, with the sums over pairs fused."""
        try:
            return self._learn_by_kernels(part, max_neighbors, scales)
        except KernelError:  # on a machine that cannot compile them
            return _then_back(partial(self._loss, max_neighbors=max_neighbors))(part, scales)

    def _learn_by_kernels(
        self, part: Minibatch, max_neighbors: int | None, scales: Tensor
    ) -> Tensor:
        vectors, rounded = pair_vectors(part, self.student.dtype)
        ends = (part.i, part.j)
        if not self.student.trains_by_kernels:
            ends = (part.i.long(), part.j.long())
        with torch.enable_grad():
            found = self.student.site_energies_and_gradients(
                part.types, *ends, rounded, max_neighbors
            )
        weights, norms = scales.unbind(0)
        error, *adjoints = loss_and_adjoints(
            *found,
            vectors,
            self.student.reference_energies[part.types],
            part,
            self.spread,
            norms,
            weights,
            self.settings.loss.huber_delta,
        )
        torch.autograd.backward(found, adjoints)
        return error

    def _step(self, part: Minibatch | None, scales: Tensor, learn: LossOf) -> Tensor:
        parameters: list[Tensor] = list(self.student.parameters())
        self.optimizer.zero_grad()
        if part is None:
            error = torch.zeros((), dtype=scales.dtype, device=scales.device)
        else:
            error = learn(part, scales)
        error = self.workers.sum_up(error.detach(), parameters)
        self.descent.step()
        return error

    def _fix(self, size: Size) -> _FixedSize:
        self.minibatches.wait()
        try:
            self._fixed = _FixedSize(self, size)
            return self._fixed
        except RuntimeError as error:
            raise TrainingError(
                "the training step can be neither compiled nor captured as a CUDA graph",
                found=error,
                remedy="set training.compile=false or training.cuda_graph=false, or lower "
                "training.atoms_per_batch if memory is short",
            ) from error


def _then_back(loss_of: LossOf) -> LossOf:
    """``loss_of``, and back from it to the weights' gradients."""

    def learn(part: Minibatch, scales: Tensor) -> Tensor:
        with torch.enable_grad():
            error = loss_of(part, scales)
            error.backward()
        return error

    return learn


class _FixedSize:
    """`Updater._step`, compiled and recorded, for minibatches padded to ``size``."""

    def __init__(self, updater: Updater, size: Size) -> None:
        self.size, self._minibatches = size, updater.minibatches
        self._resident: Resident | None = None
        device, dtype = updater.student.device, updater.student.dtype
        table = updater.minibatches.table if device.type == "cuda" else None
        if table is None:
            self.part = updater.minibatches.make([], size).clone()
        else:
            self._resident = Resident(*table, size)
            self.part = self._resident.fill()
        self.scales = torch.ones(2, 5, dtype=dtype, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        bound = updater.minibatches.most_neighbors()
        if updater.compiles:
            try:
                loss = partial(updater._loss, max_neighbors=bound)
                fused = compiled_loss(updater.student, loss, self.part, self.scales)
                self._record(updater, _then_back(fused))
                return
            except Exception as error:
                updater.compiles = False
                warnings.warn(f"training goes uncompiled, slower: {error}", stacklevel=2)
        self._record(updater, partial(updater._learn, max_neighbors=bound))

    def _record(self, updater: Updater, learn: LossOf) -> None:
        def step() -> Tensor:
            if self._resident is not None:
                self._resident.fill()
            return updater._step(self.part, self.scales, learn)

        self._step = step
        updater.optimizer.zero_grad(set_to_none=True)
        if updater.graphs:
            graph = torch.cuda.CUDAGraph()
            with recording(), torch.cuda.graph(graph):
                self._error = self._step()
            self._graph = graph

    def __call__(self, units: Sequence[int], scales: Tensor, following: Sequence[int]) -> Tensor:
        if self._resident is None:
            self.part.copy_(self._minibatches.make(units, self.size))
            self._minibatches.prepare(following)
        else:
            self._resident.choose(units)
        self.scales.copy_(scales, non_blocking=True)  # or each update awaits the one before
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._error.clone()
