"""AdamW, and Muon for the matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from mlff_distiller.students.base import Student

_BETAS = (0.9, 0.99)
_NEWTON_SCHULZ = ((3.4445, -4.775, 2.0315),) * 5


def make_optimizer(name: str, student: Student, weight_decay: float) -> Optimizer:
    """``adamw`` or ``muon``. Each group of parameters has a ``factor`` of the learning rate.

    On a GPU every step may be part of a CUDA graph, the learning rate being a tensor.
    """
    on_gpu = student.device.type == "cuda"
    groups: list[dict[str, Any]] = []
    for factor, parameters in student.parameter_groups():
        rate: Any = torch.zeros((), device=student.device) if on_gpu else 0.0
        groups.append({"params": parameters, "factor": factor, "lr": rate})
    kind: Any = {"adamw": AdamW, "muon": Muon}[name]
    optimizer: Optimizer = kind(
        groups,
        betas=_BETAS,
        weight_decay=weight_decay,
        fused=on_gpu or None,
        capturable=on_gpu,
    )
    return optimizer


class Muon(AdamW):
    """AdamW whose step of a matrix is turned into one of equal singular values.

    Jordan et al. (2024), "Muon": momentum, orthogonalised by five Newton-Schulz iterations. Here it
    is AdamW's own step, normalised by its second moments, that is orthogonalised and given back its
    length; so learning rates keep their meaning. Only matrices decay: orthogonal steps of noise
    would let them grow with the root of their number, and what grows goes astray beyond the data.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, weight_decay: float, **options: Any
    ) -> None:
        super().__init__(groups, weight_decay=0.0, **options)
        self.decay = weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As AdamW's, but for the steps of matrices."""
        if self.decay:
            for group in self.param_groups:
                for own in group["params"]:
                    if own.ndim >= 2:
                        own.mul_(1.0 - group["lr"] * self.decay)
        stacks = [
            own
            for group in self.param_groups
            for own in group["params"]
            if own.grad is not None and own.ndim >= 2 and min(own.shape[-2:]) > 1
        ]
        before = [own.clone() for own in stacks]
        result = super().step(closure)
        steps = [
            step
            for own, old in zip(stacks, before, strict=True)
            for step in (own - old).reshape(-1, *own.shape[-2:]).unbind(0)
        ]
        turned = iter(_orthogonal(steps))
        for own, old in zip(stacks, before, strict=True):
            matrices = old.view(-1, *old.shape[-2:])
            own.copy_(torch.stack([m + next(turned) for m in matrices.unbind(0)]).view_as(own))
        return result


def _orthogonal(steps: Sequence[Tensor]) -> list[Tensor]:
    """Each matrix with all its singular values about equal, and of the same norm.

    All at once: beside others, padded with zeros, a matrix turns as it does alone.
    """
    if not steps:  # of a student without matrices
        return []
    wide = [step.mT if step.shape[0] > step.shape[1] else step for step in steps]
    rows, columns = (max(own.shape[k] for own in wide) for k in (0, 1))
    padded = [
        torch.nn.functional.pad(own, (0, columns - own.shape[1], 0, rows - own.shape[0]))
        for own in wide
    ]
    stack = torch.stack(padded)
    norm = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
    x = stack / norm.clamp(min=1e-30)
    for a, b, c in _NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    x = x * (norm / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-30))
    cut = [x[k, : own.shape[0], : own.shape[1]] for k, own in enumerate(wide)]
    return [
        own.mT if step.shape[0] > step.shape[1] else own
        for own, step in zip(cut, steps, strict=True)
    ]
