"""Which ``Engine`` computes a student."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from ase import Atoms

from mlff_distiller.errors import DynamicsError, StudentError
from mlff_distiller.students import Student

if TYPE_CHECKING:
    from mlff_distiller.engines.engine import Engine

BackendName = Literal["auto", "warp", "torch"]


_WIDEST_SKIN = 10.0
"""Å. Pairs grow with the cube of it; beyond, a list is built as often as at 1 Å and takes hours."""


def choose_engine(
    student: Student,
    frames: Sequence[Atoms] = (),
    *,
    backend: BackendName = "auto",
    skin: float | None = None,
    compile: bool = False,
    n_steps: int = 0,
) -> Engine:
    """What computes ``student``, which is on its device and of the dtype to compute in.

    Our own kernels where there are some for it, measured on such a device or asked for as
    ``warp``; otherwise, or as ``torch``, PyTorch's, fused first if ``compile``, or where it pays
    for ``n_steps`` of ``frames``. A class that is derived from one with kernels has none. With
    ``frames`` there is room for these systems; see ``Engine``. ``skin`` is in Å.
    """
    if backend not in ("auto", "warp", "torch"):
        raise StudentError("unknown backend", expected="auto, warp or torch", found=backend)
    if skin is not None and not 0 < skin <= _WIDEST_SKIN:
        raise DynamicsError(
            "the skin is out of range",
            expected=f"more than 0, and at most {_WIDEST_SKIN:g} Å",
            found=skin,
            remedy="leave it out: about 1 Å is fastest",
        )
    # Imported when chosen: each brings kernels of its own.
    engine: Engine
    own = None
    if backend != "torch" and vars(type(student)).get("kernels"):
        own = import_module(f"mlff_distiller.engines.{student.kernels}")
    if own is not None and (backend == "warp" or student.device.type in own.ENGINE.measured_on):
        engine = own.ENGINE(student, skin)
    elif backend == "warp":
        raise StudentError(
            "there are no compiled kernels for this student",
            expected="a student with kernels; 'mlff-distiller students' lists them",
            found=student.architecture,
            remedy="take backend='auto' or 'torch'",
        )
    else:
        from mlff_distiller.engines import torch

        n_atoms, on_gpu = sum(len(atoms) for atoms in frames), student.device.type == "cuda"
        compile = compile or torch.pays_to_compile(n_steps, n_atoms, on_gpu=on_gpu)
        engine = torch.TorchEngine(student, skin or torch.SKIN, compile=compile)
    return engine.for_frames(frames) if frames else engine


def slow_engine(student: Student) -> Engine:
    """What computes any student anywhere: nothing has to be compiled for ``evaluate``."""
    from mlff_distiller.engines.torch import TorchEngine

    return TorchEngine(student, padded=False)
