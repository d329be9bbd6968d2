"""AdamW, and Muon for the matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.optim import AdamW, Optimizer

from mlff_distiller.kernels.warp_descent import BETAS, EPSILON, ITERATIONS, NEWTON_SCHULZ
from mlff_distiller.students.base import Student


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
        betas=BETAS,
        eps=EPSILON,
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
        """As AdamW's, except for the steps of matrices."""
        if self.decay:
            for group in self.param_groups:
                decaying = [own for own in group["params"] if own.ndim >= 2]
                if decaying:
                    torch._foreach_mul_(decaying, 1.0 - group["lr"] * self.decay)
        matrices: list[Tensor] = [
            own
            for group in self.param_groups
            for own in group["params"]
            if own.grad is not None and is_turned(own)
        ]
        if not matrices:
            return super().step(closure)
        before = torch._foreach_mul(matrices, 1.0)
        result = super().step(closure)
        steps = torch._foreach_sub(matrices, before)
        turned = _turned([own.view(-1, *own.shape[-2:]) for own in steps])
        torch._foreach_copy_(matrices, before)
        torch._foreach_add_(
            matrices, [own.reshape(old.shape) for own, old in zip(turned, before, strict=True)]
        )
        return result


def is_turned(parameter: Tensor) -> bool:
    """Whether Muon's step of it is: of a matrix, or of a stack of some."""
    return parameter.ndim >= 2 and min(parameter.shape[-2:]) > 1


def _turned(steps: Sequence[Tensor]) -> list[Tensor]:
    """`_orthogonal` of stacks of matrices, as many at once as the device takes best.

    A GPU takes all, padded with zeros, which change nothing of the matrix.
    """
    wide = [step.mT if step.shape[1] > step.shape[2] else step for step in steps]
    if steps[0].is_cuda:
        rows, columns = (max(own.shape[k] for own in wide) for k in (1, 2))
        padded = [pad(own, (0, columns - own.shape[2], 0, rows - own.shape[1])) for own in wide]
        stacks = _orthogonal(torch.cat(padded)).split([len(own) for own in wide])
        turned = [
            own[:, : of.shape[1], : of.shape[2]] for own, of in zip(stacks, wide, strict=True)
        ]
    else:
        turned = [_orthogonal(own) for own in wide]
    return [
        own.mT if step.shape[1] > step.shape[2] else own
        for own, step in zip(turned, steps, strict=True)
    ]


def _orthogonal(stack: Tensor) -> Tensor:
    """Each wide matrix with all its singular values about equal, and of the same norm."""
    norm = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
    x = stack / norm.clamp(min=1e-30)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    turned: Tensor = x * (
        norm / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-30)
    )
    return turned
