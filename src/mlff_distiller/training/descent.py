"""What follows from gradients: clipping, the optimizer's step, the moving average."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.optim import Optimizer

from mlff_distiller.errors import KernelError
from mlff_distiller.kernels.compiling import OnTensors
from mlff_distiller.kernels.warp_descent import build
from mlff_distiller.students.base import Student
from mlff_distiller.training.optimizer import is_turned, make_optimizer
from mlff_distiller.training.settings import TrainingSettings

_MOST_TENSORS = 64
_LARGEST_MATRIX = 400_000
"""rows^2 times columns: a larger one PyTorch spreads over the whole GPU, not over one block."""
_LONGEST_ROW = 1024
"""Elements per block of what is not a matrix to turn."""


class Descent:
    """Moves the weights of ``student`` by their gradients, and ``average`` after them."""

    def __init__(self, student: Student, average: Student, settings: TrainingSettings) -> None:
        self.settings, self.device = settings, student.device
        self.decay = student.weight_decay
        if settings.weight_decay is not None:
            self.decay = settings.weight_decay
        self.optimizer = make_optimizer(settings.optimizer, student, self.decay)
        self.parameters: list[Tensor] = list(student.parameters())
        self.averages: list[Tensor] = list(average.parameters())

    def set_rate(self, rate: float) -> None:
        """That of the steps to come; each group of parameters has a factor to it."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["factor"] * rate)
            else:
                group["lr"] = group["factor"] * rate

    @torch.no_grad()
    def step(self) -> None:
        """One of the optimizer's with clipped gradients, then the average's."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.gradient_clip)
        self.optimizer.step()
        torch._foreach_lerp_(self.averages, self.parameters, 1.0 - self.settings.ema_decay)


class KernelDescent(Descent):
    """The same in two launches, for few tensors of small matrices."""

    def __init__(self, student: Student, average: Student, settings: TrainingSettings) -> None:
        super().__init__(student, average, settings)
        device, dtype = self.device, student.dtype
        self._kernels = build(
            len(self.parameters), float64=dtype == torch.float64, device=device.type
        )
        OnTensors(self._kernels.module, device)  # compiles them
        rows, size = self._rows_of_blocks()
        sizes = [own.numel() for own in self.parameters]
        self._blocks = torch.tensor(rows, dtype=torch.int32, device=device)
        self._sizes = torch.tensor(sizes, dtype=torch.int32, device=device)
        self._memory = torch.empty(size, dtype=dtype, device=device)
        self._sums = torch.zeros(self._kernels.chunks, dtype=torch.float64, device=device)
        self._factors = [group["factor"] for group in self.optimizer.param_groups]
        self._rates = torch.zeros(len(self._factors), dtype=torch.float64, device=device)

    def set_rate(self, rate: float) -> None:
        rates = torch.tensor([factor * rate for factor in self._factors], dtype=torch.float64)
        self._rates.copy_(rates, non_blocking=True)

    @torch.no_grad()
    def step(self) -> None:
        states = [self._state(own) for own in self.parameters]
        tensors = [
            *self.parameters,
            *(_gradient(own) for own in self.parameters),
            *(state[name] for name in ("exp_avg", "exp_avg_sq", "step") for state in states),
            *self.averages,
        ]
        k, settings = self._kernels, self.settings
        addresses = k.addresses(*(own.data_ptr() for own in tensors))
        run = OnTensors(k.module, self.device)
        run(k.squares, k.chunks * k.threads, addresses, self._sizes, self._sums)
        given = (self._blocks, self._rates, self._sums)
        constants = (settings.gradient_clip, self.decay, settings.ema_decay)
        n_threads = len(self._blocks) * k.threads
        run(k.descend, n_threads, addresses, *given, *constants, self._memory)

    def _state(self, own: Tensor) -> dict[str, Tensor]:
        """As AdamW keeps it, which counts steps in PyTorch's default dtype."""
        state: dict[str, Tensor] = self.optimizer.state[own]
        if not state:
            state["step"] = torch.zeros((), device=self.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(own), torch.zeros_like(own)
        state["step"] = state["step"].float()
        return state

    def _rows_of_blocks(self) -> tuple[list[tuple[int, ...]], int]:
        """As the kernels take them, and the size of their memory."""
        rows: list[tuple[int, ...]] = []
        size, tile = 0, self._kernels.tile
        groups = _groups(self.optimizer)
        muon = self.settings.optimizer == "muon"
        for k, own in enumerate(self.parameters):
            turned = muon and is_turned(own)
            decays = own.ndim >= 2 or not muon
            height, width = own.shape[-2:] if turned else (1, _LONGEST_ROW)
            for start in range(0, own.numel(), height * width):
                shape = (height, min(width, own.numel() - start))
                rows.append((k, start, *shape, turned, decays, groups[own], size))
                if turned:
                    short, long = (-(-length // tile) * tile for length in sorted(shape))
                    size += short * (3 * long + 2 * short)
        return rows, size


def descent_of(student: Student, average: Student, settings: TrainingSettings) -> Descent:
    """By kernels where they are faster and can be compiled."""
    plain = Descent(student, average, settings)
    if not (student.trains_by_kernels and _suits_kernels(plain)):
        return plain
    try:
        return KernelDescent(student, average, settings)
    except KernelError as error:
        warnings.warn(f"weights are updated without kernels, slower: {error}", stacklevel=2)
        return plain


def _suits_kernels(descent: Descent) -> bool:
    def work(own: Tensor) -> int:
        short, long = sorted(own.shape[-2:])
        return short**2 * long

    tensors, groups = descent.parameters, _groups(descent.optimizer)
    turned = [own for own in tensors if is_turned(own)]
    return (
        0 < len(tensors) <= _MOST_TENSORS
        and {own.dtype for own in tensors} in ({torch.float32}, {torch.float64})
        and all(own in groups and own.is_contiguous() for own in tensors)
        and max(map(work, turned), default=0) <= _LARGEST_MATRIX
    )


def _groups(optimizer: Optimizer) -> dict[Tensor, int]:
    """The number of each parameter's group."""
    groups = optimizer.param_groups
    return {own: k for k, group in enumerate(groups) for own in group["params"]}


def _gradient(own: Tensor) -> Tensor:
    return torch.zeros_like(own) if own.grad is None else own.grad.contiguous()
