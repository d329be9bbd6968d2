"""Functions that hold derivatives, as compiled code: a few fused kernels for a thousand small ones.

``torch.compile`` does not differentiate twice, and forces are derivatives already. So a function is
first traced, forces and all, into a graph of elementary operations, which is then compiled: a
derivative of it is the compiler's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mlff_distiller.students.base import TRACING


def compiled(
    function: Callable[..., Any], arguments: Sequence[Any], device: torch.device
) -> Callable[..., Any]:
    """``function`` for tensors of the shapes of ``arguments``; compiled at its first call."""
    with warnings.catch_warnings():
        # It advises TF32, which forces do not allow, and warns of what its own parts make use of.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        warnings.simplefilter("ignore", DeprecationWarning)
        token = TRACING.set(True)
        try:
            function(*arguments)  # the graph does not hold the constants it keeps
            graph = make_fx(function)(*arguments)
        finally:
            TRACING.reset(token)
        # Tracing detaches what the inner derivative keeps, and so would cut the outer one.
        for node in graph.graph.find_nodes(
            op="call_function", target=torch.ops.aten.detach.default
        ):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        # And numbers become tensors on the CPU, which a CUDA graph cannot read.
        for node in graph.graph.find_nodes(op="get_attr"):
            setattr(graph, node.target, getattr(graph, node.target).to(device))
        for node in graph.graph.find_nodes(
            op="call_function", target=torch.ops.aten.scalar_tensor.default
        ):
            node.update_kwarg("device", device)
        graph.recompile()
        result: Callable[..., Any] = torch.compile(graph, dynamic=False)
        result(*arguments)
    return result
