"""A student made ready to run: loaded, on its device, in its precision."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from mlff_distiller.errors import StudentError
from mlff_distiller.students import Student, load_student

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def ready_student(
    model: str | Path | Student, device: str, dtype: Literal["float32", "float64"]
) -> Student:
    """A student to run: loaded, on its device, its parameters without gradients."""
    if dtype not in _DTYPES:
        raise StudentError("unknown dtype", expected="float32 or float64", found=dtype)
    with torch.inference_mode(False):  # forces need gradients
        student = model if isinstance(model, Student) else load_student(model)
        student = student.to(resolve_device(device), _DTYPES[dtype]).eval()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return student


def resolve_device(device: str) -> torch.device:
    """``auto`` -> the GPU if there is one; anything torch knows otherwise, checked."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise StudentError(
            "unknown device", expected="auto, cpu, cuda or cuda:N", found=device
        ) from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            raise StudentError(
                f"there is no device {device!r}",
                expected=f"one of {count} CUDA devices" if count else "a CUDA device",
                found="a torch without CUDA" if torch.version.cuda is None else f"{count} devices",
                remedy="use device='cpu', or 'auto'",
            )
    return resolved
