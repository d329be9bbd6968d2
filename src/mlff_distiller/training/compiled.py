"""The loss of a minibatch as compiled code: a few fused kernels for a thousand small ones.

``torch.compile`` does not differentiate twice, and forces are derivatives already. So the loss is
first traced, forces and all, into a graph of elementary operations, which is then compiled: its
one derivative, by the weights, is the compiler's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from mlff_distiller.students.base import Student
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

    with torch.enable_grad(), warnings.catch_warnings():
        # It advises TF32, which forces do not allow.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        graph = make_fx(of_all)(*arguments(part, scales))
        # Tracing detaches what the inner derivative keeps, and so would cut the outer one.
        for node in graph.graph.find_nodes(
            op="call_function", target=torch.ops.aten.detach.default
        ):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        # And numbers become tensors on the CPU, which a CUDA graph cannot read.
        for node in graph.graph.find_nodes(op="get_attr"):
            setattr(graph, node.target, getattr(graph, node.target).to(student.device))
        for node in graph.graph.find_nodes(
            op="call_function", target=torch.ops.aten.scalar_tensor.default
        ):
            node.update_kwarg("device", student.device)
        graph.recompile()
        compiled = torch.compile(graph, dynamic=False)
        error = compiled(*arguments(part, scales))
        torch.autograd.grad(error, list(parameters.values()), allow_unused=True)

    def loss(part: Minibatch, scales: Tensor) -> Tensor:
        error: Tensor = compiled(*arguments(part, scales))
        return error

    return loss
