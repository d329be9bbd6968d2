"""Several processes that train one student, each on its share of every minibatch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """One process among ``world_size``; alone it does nothing."""

    rank: int = 0
    world_size: int = 1

    @property
    def alone(self) -> bool:
        return self.world_size == 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """``wanted``, or of several GPUs the one of this process."""
        if self.alone or wanted.type != "cuda":
            return wanted
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def wait(self) -> None:
        """Until all processes are here."""
        self.agree({"here": 1.0})

    def sum_up(self, error: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Sum gradients over all processes in place; returns the sum of ``error``."""
        if self.alone:
            return error
        grads = [
            torch.zeros_like(own).reshape(-1) if own.grad is None else own.grad.reshape(-1)
            for own in parameters
        ]
        flat = torch.cat([*grads, error.reshape(1).to(grads[0].dtype)])
        torch.distributed.all_reduce(flat)
        start = 0
        for own in parameters:
            own.grad = flat[start : start + own.numel()].view_as(own).clone()
            start += own.numel()
        return flat[-1]

    def agree(self, values: dict[str, float]) -> dict[str, float]:
        """The leader's ``values`` for the same names, in every process."""
        if self.alone:
            return values
        on_gpus = torch.distributed.get_backend() == "nccl"
        place = self.device(torch.device("cuda" if on_gpus else "cpu"))
        shared = torch.tensor(list(values.values()), dtype=torch.float64, device=place)
        torch.distributed.broadcast(shared, 0)
        return dict(zip(values, shared.tolist(), strict=True))


ALONE = Workers()


@contextmanager
def workers_of_torchrun(device: str) -> Iterator[Workers]:
    """The processes that torchrun started, connected by NCCL or gloo; or this one alone."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield ALONE
        return
    on_gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    torch.distributed.init_process_group("nccl" if on_gpus else "gloo")
    try:
        yield Workers(torch.distributed.get_rank(), world_size)
    finally:
        torch.distributed.destroy_process_group()
