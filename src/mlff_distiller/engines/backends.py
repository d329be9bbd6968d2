"""What computes a student's energy, forces and stress for ``StudentCalculator``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mlff_distiller.batch import Batch
from mlff_distiller.errors import KernelError, StudentError
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import NEP, Student

if TYPE_CHECKING:
    from mlff_distiller.engines.nep import NEPEvaluator
    from mlff_distiller.engines.torch import TorchEvaluator

BackendName = Literal["auto", "warp", "torch"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Results:
    """Of one structure; the caller's own arrays."""

    energy: float  # eV
    energies: Array  # (n_atoms,) eV
    forces: Array  # (n_atoms, 3) eV/Å
    strain_gradient: Array  # (6,) eV, dE/dstrain: xx, yy, zz, yz, xz, xy


Backend = Callable[[Array, Array, NDArray[np.int64], NDArray[np.bool_]], Results]
"""From positions (n_atoms, 3), cell (3, 3), atomic numbers (n_atoms,) and pbc (3,)."""


class TorchBackend:
    """Any student, as PyTorch runs it."""

    def __init__(self, student: Student) -> None:
        self.student = student

    @torch.no_grad()
    def __call__(
        self, positions: Array, cell: Array, numbers: NDArray[np.int64], pbc: NDArray[np.bool_]
    ) -> Results:
        batch = Batch(
            torch.from_numpy(positions),
            torch.from_numpy(numbers),
            torch.zeros(len(numbers), dtype=torch.int64),
            torch.from_numpy(cell).unsqueeze(0),
            torch.from_numpy(pbc).unsqueeze(0),
        )
        neighbors = neighbor_list(batch, self.student.cutoff)
        device = self.student.device
        prediction = self.student(batch.to(device), neighbors.to(device))
        return Results(
            float(prediction.energy[0]),
            prediction.energies.cpu().numpy(),
            prediction.forces.double().cpu().numpy(),
            full_3x3_to_voigt_6_stress(prediction.strain_gradient[0].cpu().numpy()),
        )


class EvaluatorBackend:
    """Any student, as PyTorch runs it, recorded on a GPU, or compiled; see ``TorchEvaluator``."""

    def __init__(self, student: Student, *, compile: bool) -> None:
        self.student, self.compile = student, compile
        self._evaluator: TorchEvaluator | None = None
        self._last = b""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_evaluator": None}

    def __call__(
        self, positions: Array, cell: Array, numbers: NDArray[np.int64], pbc: NDArray[np.bool_]
    ) -> Results:
        from mlff_distiller.engines.torch import TorchEvaluator

        given = numbers.tobytes()
        evaluator = self._evaluator if given == self._last else None
        self._evaluator = None  # before there are two, and after a failure
        if evaluator is None:
            sizes = np.array([len(numbers)])
            evaluator = TorchEvaluator(self.student, numbers, sizes, compile=self.compile)
        found = evaluator.evaluate(positions, cell, pbc)
        self._evaluator, self._last = evaluator, given
        return Results(found.energy, found.energies, found.forces, -found.virial)


class WarpBackend:
    """A NEP by compiled kernels; see ``kernels/nep``. They are compiled at the first call.

    Raises
    ------
    KernelError
        Warp is not installed, or cannot compile the kernels here.
    """

    def __init__(self, student: NEP, dtype: Literal["float32", "float64"]) -> None:
        self.student, self.dtype = student, dtype
        self._types_of_numbers = student.types_of_numbers.cpu().numpy()
        self._last = (b"", np.empty(0, dtype=np.int64))
        self._evaluator: NEPEvaluator | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_evaluator": None}

    def __call__(
        self, positions: Array, cell: Array, numbers: NDArray[np.int64], pbc: NDArray[np.bool_]
    ) -> Results:
        types = self._types(numbers)
        if self._evaluator is None:
            self._evaluator = self._new_evaluator()
        found = self._evaluator.evaluate(positions, types, cell, pbc)
        return Results(found.energy, found.energies.copy(), found.forces.copy(), -found.virial)

    def _types(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n_atoms,), those of the last call where ``numbers`` are."""
        given = numbers.tobytes()
        if given != self._last[0]:
            types = self._types_of_numbers[numbers]
            if types.min() < 0:
                self.student.types(torch.from_numpy(numbers).to(self.student.device))  # the error
            self._last = given, types
        return self._last[1]

    def _new_evaluator(self) -> NEPEvaluator:
        try:
            from mlff_distiller.engines.nep import NEPEvaluator
        except ImportError as error:
            raise KernelError(
                f"NVIDIA Warp cannot be imported: {error}",
                remedy="pip install warp-lang, or take backend='torch'",
            ) from error
        return NEPEvaluator(
            self.student.shape,
            self.student.nep4(),
            self.student.reference_energies,
            device=str(self.student.device),
            dtype=self.dtype,
        )


class OrTorchBackend:
    """Another backend, or, after a warning, plain PyTorch where its kernels do not compile."""

    def __init__(self, chosen: Backend, student: Student) -> None:
        self.student, self._chosen = student, chosen

    def __call__(
        self, positions: Array, cell: Array, numbers: NDArray[np.int64], pbc: NDArray[np.bool_]
    ) -> Results:
        try:
            return self._chosen(positions, cell, numbers, pbc)
        except KernelError as error:
            warnings.warn(f"PyTorch runs the student, many times slower: {error}", stacklevel=2)
            self._chosen = TorchBackend(self.student)
            return self._chosen(positions, cell, numbers, pbc)


def choose_backend(
    student: Student,
    dtype: Literal["float32", "float64"],
    name: BackendName,
    *,
    compile: bool = False,
) -> Backend:
    """What runs ``student``, already on its device and of ``dtype``; see ``StudentCalculator``."""
    if name not in ("auto", "warp", "torch"):
        raise StudentError("unknown backend", expected="auto, warp or torch", found=name)
    if name == "torch" or (name == "auto" and not isinstance(student, NEP)):
        if student.device.type == "cuda" or compile:
            return OrTorchBackend(EvaluatorBackend(student, compile=compile), student)
        return TorchBackend(student)
    if not isinstance(student, NEP):
        raise StudentError(
            "there are no compiled kernels for this student",
            expected="a nep student",
            found=student.architecture,
            remedy="take backend='auto' or 'torch'",
        )
    backend = WarpBackend(student, dtype)
    return backend if name == "warp" else OrTorchBackend(backend, student)
