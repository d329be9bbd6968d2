"""``StudentCalculator``: a student as an ASE calculator that costs next to nothing beside it.

ASE asks a calculator for several properties a step, and for each compares the atoms with a copy
in Python objects: that is most of a fast step. Here ``get_property`` compares four arrays, once.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
    all_properties,
)
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.batch import check_structure
from mlff_distiller.deploy.backends import BackendName, choose_backend
from mlff_distiller.errors import StudentError
from mlff_distiller.students import Student, load_student

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class StudentCalculator(Calculator):
    """ASE calculator of a distilled student.

    Gives ``energy``, ``free_energy``, ``energies`` (eV), ``forces`` (eV/Å) and, if the cell has a
    volume, ``stress`` (eV/Å³, Voigt). Arrays are copies. Results always belong to the atoms as
    they are: any change of positions, cell, numbers or pbc is seen. May be used from several
    threads, pickled and copied.

    Parameters
    ----------
    model
        A student's folder (``RUN/student``), a bare ``nep.txt`` (NEP4), or a ``Student``.
    device
        ``auto`` takes the GPU if there is one.
    dtype
        Precision of the network; positions, cells and energy sums are float64 in either case.
    backend
        ``warp`` runs compiled kernels, which there are for nep students; the first call with a
        new kind of model compiles them, for some seconds, and keeps them. ``torch`` runs PyTorch.
        ``auto`` takes the former for those.

    Raises
    ------
    KernelError
        ``backend="warp"``, and Warp is missing or cannot compile.
    StudentError
        The model cannot be read, the device is not there, or the student gave NaN.
    StructureError
        The structure cannot be evaluated (empty, NaN, singular cell, unknown element).
    """

    implemented_properties = ["energy", "energies", "free_energy", "forces", "stress"]  # noqa: RUF012
    discard_results_on_any_change = True

    def __init__(
        self,
        model: str | Path | Student,
        *,
        device: str = "auto",
        dtype: Literal["float32", "float64"] = "float32",
        backend: BackendName = "auto",
    ) -> None:
        self._lock = threading.Lock()
        self._known: tuple[np.ndarray, ...] | None = None
        super().__init__()
        self.student = ready_student(model, device, dtype)
        self._backend = choose_backend(self.student, dtype, backend)

    # -- what ASE calls, several times a step -------------------------------------------------

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(f"{name} is not among {self.implemented_properties}")
        with self._lock:
            if atoms is None:
                if self._known is None:
                    raise StudentError("no atoms were given and none are known")
            elif not self._is_current(atoms):
                if not allow_calculation:
                    return None
                self._compute(atoms)
            if name not in self.results:
                raise PropertyNotImplementedError(f"{name} needs a cell with a volume")
            value = self.results[name]
            return value.copy() if isinstance(value, np.ndarray) else value

    def _is_current(self, atoms: Atoms) -> bool:
        known = self._known
        return (
            known is not None
            and np.array_equal(known[0], atoms.arrays["positions"])
            and np.array_equal(known[1], atoms.cell.array)
            and np.array_equal(known[2], atoms.arrays["numbers"])
            and np.array_equal(known[3], atoms.pbc)
        )

    # -- the rest of ASE's interface ----------------------------------------------------------

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = all_properties,
        system_changes: Any = all_changes,
    ) -> None:
        """Compute everything for ``atoms``, whatever ``properties`` are asked for."""
        if atoms is None:
            raise StudentError("calculate() needs atoms")
        with self._lock:
            self._compute(atoms)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Which of positions, cell, numbers and pbc differ from those of the results."""
        if self._known is None:
            return list(all_changes)
        now = (atoms.arrays["positions"], atoms.cell.array, atoms.arrays["numbers"], atoms.pbc)
        names = ("positions", "cell", "numbers", "pbc")
        return [
            name
            for name, old, new in zip(names, self._known, now, strict=True)
            if not np.array_equal(old, new)
        ]

    @property
    def atoms(self) -> Atoms | None:
        """The structure that the results belong to."""
        if self._known is None:
            return None
        positions, cell, numbers, pbc = self._known
        return Atoms(numbers, positions, cell=cell, pbc=pbc)

    @atoms.setter
    def atoms(self, value: Atoms | None) -> None:
        self._known = None if value is None else _snapshot(value)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    # -- the computation ----------------------------------------------------------------------

    def _compute(self, atoms: Atoms) -> None:
        known, self._known, self.results = self._known, None, {}
        now = _snapshot(atoms)
        same_system = known is not None and all(
            np.array_equal(old, new) for old, new in zip(known[1:], now[1:], strict=True)
        )
        if not same_system or not np.isfinite(now[0]).all():
            check_structure(atoms)
            _warn_of_charge(atoms)
        self.results = self._evaluate(*now)
        self._known = now

    def _evaluate(
        self, positions: np.ndarray, cell: np.ndarray, numbers: np.ndarray, pbc: np.ndarray
    ) -> dict[str, Any]:
        found = self._backend(positions, cell, numbers, pbc)
        energy, forces = found.energy, found.forces
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            bad = np.flatnonzero(~np.isfinite(forces).all(1))
            raise StudentError(
                "the student gave a result that is not finite",
                found=f"energy {energy} eV; forces of atoms {bad[:5].tolist()}",
                remedy="look for atoms on top of each other; restart from the last good frame",
            )
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": found.energies,
            "forces": forces,
        }
        if np.isfinite(found.stress).all():
            results["stress"] = full_3x3_to_voigt_6_stress(found.stress)
        return results


def ready_student(
    model: str | Path | Student, device: str, dtype: Literal["float32", "float64"]
) -> Student:
    """A student to run: loaded, on its device, its parameters without gradients."""
    if dtype not in _DTYPES:
        raise StudentError("unknown dtype", expected="float32 or float64", found=dtype)
    student = model if isinstance(model, Student) else load_student(model)
    student = student.to(resolve_device(device), _DTYPES[dtype]).eval()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return student


def _snapshot(atoms: Atoms) -> tuple[np.ndarray, ...]:
    """Copies of positions, cell, numbers and pbc."""
    return (
        np.array(atoms.arrays["positions"], dtype=np.float64, order="C"),
        np.array(atoms.cell.array, dtype=np.float64, order="C"),
        np.array(atoms.arrays["numbers"], dtype=np.int64),
        np.array(atoms.pbc),
    )


def _warn_of_charge(atoms: Atoms) -> None:
    charge = atoms.info.get("charge", 0) or 0
    if charge or atoms.get_initial_charges().any():
        warnings.warn("the student ignores charges: it knows neutral systems only", stacklevel=4)


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
