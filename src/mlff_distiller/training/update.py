"""One update of a student's weights; on a GPU one CUDA graph, so that launches cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from mlff_distiller.errors import TrainingError
from mlff_distiller.students.base import Student
from mlff_distiller.training.loss import Spread, loss
from mlff_distiller.training.minibatch import Minibatch, Minibatches, Size
from mlff_distiller.training.optimizer import make_optimizer
from mlff_distiller.training.settings import TrainingSettings
from mlff_distiller.training.workers import Workers

_EAGER_UPDATES = 3
"""Before a graph is captured: libraries allocate on first use, which a capture may not."""


class Updater:
    """The student, its moving average and the optimizer: all that an update changes."""

    def __init__(
        self,
        student: Student,
        minibatches: Minibatches,
        spread: Spread,
        settings: TrainingSettings,
        workers: Workers,
    ) -> None:
        self.student, self.minibatches, self.spread = student, minibatches, spread
        self.settings, self.workers = settings, workers
        self.average = deepcopy(student).eval().requires_grad_(requires_grad=False)
        self.optimizer = make_optimizer(settings.optimizer, student, settings.weight_decay)
        self.factors = [group["factor"] for group in self.optimizer.param_groups]
        self.graphs = settings.cuda_graph and student.device.type == "cuda" and workers.alone
        self._graph: _Graph | None = None
        self._eager = 0

    def update(self, units: Sequence[int], rate: float, weights: Sequence[float]) -> Tensor:
        """Learn from a minibatch; returns its loss, without waiting for it."""
        device, dtype = self.student.device, self.student.dtype
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(factor * rate)
            else:
                group["lr"] = factor * rate
        scales = torch.stack(
            [torch.tensor(weights, dtype=torch.float64), self.minibatches.norms(units)]
        )
        scales = scales.to(dtype)
        if self.graphs and self._eager >= _EAGER_UPDATES:
            size = self.minibatches.size(units)
            graph = self._graph
            if graph is None:
                plan = [*self.minibatches.plan(0), units]
                graph = self._capture(self.minibatches.padded_size(plan))
            elif not graph.size.holds(size):
                larger = self.minibatches.padded_size([units])
                graph = self._capture(graph.size.united(larger))
            return graph(self.minibatches.make(units, graph.size), scales)
        self._eager += 1
        own = units[self.workers.rank :: self.workers.world_size]
        part = self.minibatches.make(own) if own else None
        return self._step(part, scales.to(device))

    def _step(self, part: Minibatch | None, scales: Tensor) -> Tensor:
        parameters: list[Tensor] = list(self.student.parameters())
        self.optimizer.zero_grad()
        if part is None:
            error = torch.zeros((), dtype=scales.dtype, device=scales.device)
        else:
            with torch.enable_grad():
                prediction = self.student.predict(part.types, *part.graph())
                weights, norms = scales.unbind(0)
                delta = self.settings.loss.huber_delta
                error = loss(prediction, part, self.spread, norms, weights, delta)
                error.backward()
        error = self.workers.sum_up(error.detach(), parameters)
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            averages: list[Tensor] = list(self.average.parameters())
            torch._foreach_lerp_(averages, parameters, 1.0 - self.settings.ema_decay)
        return error

    def _capture(self, size: Size) -> _Graph:
        self.student.max_neighbors = self.minibatches.most_neighbors()
        try:
            self._graph = _Graph(self, size)
            return self._graph
        except RuntimeError as error:
            raise TrainingError(
                "the training step cannot be captured as a CUDA graph",
                found=error,
                remedy="set training.cuda_graph=false, or lower training.atoms_per_batch if memory "
                "is short",
            ) from error
        finally:
            self.student.max_neighbors = None


class _Graph:
    """`Updater._step` recorded for minibatches padded to ``size``."""

    def __init__(self, updater: Updater, size: Size) -> None:
        self.size = size
        self.part = updater.minibatches.make([], size).clone()
        self.scales = torch.ones(2, 5, dtype=updater.student.dtype, device=updater.student.device)
        self.graph = torch.cuda.CUDAGraph()
        updater.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self.error = updater._step(self.part, self.scales)

    def __call__(self, part: Minibatch, scales: Tensor) -> Tensor:
        self.part.copy_(part)
        self.scales.copy_(scales)
        self.graph.replay()
        return self.error.clone()
