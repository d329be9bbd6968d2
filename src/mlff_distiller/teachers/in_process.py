"""A calculator that is at hand as a teacher: asked where it is, by the checks of all the others.

A teacher with a SPEC has a process of its own, which may die, hang or change PyTorch's defaults
without harm. An object cannot be sent there without pickling it, so it stays in ours.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase.calculators.calculator import BaseCalculator

from mlff_distiller.teachers import ase
from mlff_distiller.teachers.registry import Source
from mlff_distiller.teachers.wire import LARGEST_ARRAYS
from mlff_distiller.teachers.worker import described, evaluated, told_of


def source_of(calculator: BaseCalculator) -> Source:
    """Its name is the SPEC that would make another one of its class."""
    kind = type(calculator)
    name = f"ase:{kind.__module__}:{kind.__qualname__}"
    return Source(name, "ase", ase.__name__, {}, "", "")


class InProcess:
    """Answers as `process.Worker` does. Ending it ends nothing: the calculator is its owner's."""

    usable = True

    def __init__(self, calculator: BaseCalculator) -> None:
        self._calculator = calculator
        module = sys.modules[type(calculator).__module__]
        self._loaded = ase.loaded(calculator, module)

    @property
    def pid(self) -> int:
        """Our own."""
        return os.getpid()

    def request(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        largest_answer: int = LARGEST_ARRAYS,
        seconds: float = math.inf,
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The answer, however long it takes: a calculator is not ended after ``seconds``."""
        try:
            if header["command"] == "load":
                return told_of(self._loaded) | {"weights_sha256": _weights(self._calculator)}, {}
            told, results = evaluated(self._loaded, dict(header), dict(arrays or {}))
        except Exception as error:
            return {"error": described(error)}, {}
        return told, {name: np.asarray(value) for name, value in results.items()}

    def kill(self) -> None:
        pass

    def close(self, at_once: bool = False) -> None:
        pass


def _weights(calculator: BaseCalculator) -> str | None:
    """SHA-256 of the tensors of its PyTorch models; None if it has none."""
    content, found = hashlib.sha256(), False
    for value in vars(calculator).values():
        for model in value if isinstance(value, list | tuple) else [value]:
            if not callable(getattr(model, "state_dict", None)):
                continue
            import torch

            for name, tensor in sorted(model.state_dict().items()):
                if isinstance(tensor, torch.Tensor):
                    found = True
                    content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    plain = tensor.detach().cpu().reshape(-1).contiguous()
                    content.update(plain.view(torch.uint8).numpy().tobytes())
    return content.hexdigest() if found else None
