"""The loss of a minibatch as compiled code, its derivative by the weights as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlff_distiller.students.base import Student
from mlff_distiller.students.compiled import compiled
from mlff_distiller.training.minibatch import Minibatch


class _Loss(nn.Module):
    def __init__(self, student: Student, loss_of: Callable[[Minibatch, Tensor], Tensor]) -> None:
        super().__init__()
        self.student, self.loss_of = student, loss_of

    def forward(self, part: Minibatch, scales: Tensor) -> Tensor:
        return self.loss_of(part, scales)


def compiled_loss(
    student: Student,
    loss_of: Callable[[Minibatch, Tensor], Tensor],
    part: Minibatch,
    scales: Tensor,
) -> Callable[[Minibatch, Tensor], Tensor]:
    """``loss_of``, which uses ``student``'s weights, for minibatches of the size of ``part``.

    Compiled when this returns, its derivative by the weights as well.
    """
    module = _Loss(student, loss_of)
    parameters = dict(module.named_parameters())
    names = [field.name for field in fields(Minibatch)]

    def arguments(part: Minibatch, scales: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        return list(parameters.values()), [getattr(part, name) for name in names], scales

    def of_all(weights: list[Tensor], tensors: list[Tensor], scales: Tensor) -> Tensor:
        own = Minibatch(**dict(zip(names, tensors, strict=True)))
        given = dict(zip(parameters, weights, strict=True))
        error: Tensor = functional_call(module, given, (own, scales))
        return error

    with torch.enable_grad():
        of_arguments = compiled(of_all, arguments(part, scales), student.device)
        error = of_arguments(*arguments(part, scales))
        torch.autograd.grad(error, list(parameters.values()), allow_unused=True)

    def loss(part: Minibatch, scales: Tensor) -> Tensor:
        error: Tensor = of_arguments(*arguments(part, scales))
        return error

    return loss
