"""``StudentCalculator``: a student as an ASE calculator that costs next to nothing.

ASE asks a calculator for several properties per step, and for each compares the atoms with a copy
in Python objects: that is most of a fast step. Here ``get_property`` compares bytes, once.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
    all_properties,
)

from mlff_distiller.batch import check_structure
from mlff_distiller.engines.choice import BackendName, choose_engine, slow_engine
from mlff_distiller.engines.guarding import EVERY, Looks
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.errors import KernelError, StudentError
from mlff_distiller.structure import electrons_ignored
from mlff_distiller.students import Student

if TYPE_CHECKING:
    from mlff_distiller.engines.engine import Estimates


class StudentCalculator(Calculator):
    """ASE calculator of a distilled student.

    Gives ``energy``, ``free_energy``, ``energies`` (eV), ``forces`` (eV/Å) and, if the cell has a
    volume, ``stress`` (eV/Å³, Voigt). Arrays are copies. Results always belong to the atoms as
    they are: any change of positions, cell, numbers or pbc is seen. ``extra`` tells how far the
    forces may be trusted. May be used from several threads, pickled and copied.

    Parameters
    ----------
    model
        A student's folder (``RUN/student``), a bare ``nep.txt`` (NEP4), or a ``Student``.
    device
        ``auto`` takes the GPU if there is one.
    dtype
        Precision of the network; positions, cells and energy sums are float64 in either case.
    backend
        ``warp`` runs compiled kernels, where the student has some (``mlff-distiller students``
        tells); the first call with a new kind of model compiles them, for some seconds, and keeps
        them. ``torch`` runs PyTorch. ``auto`` takes the former on devices where they were measured
        to be faster, and plain PyTorch elsewhere and where kernels cannot be compiled.
    compile
        Whether PyTorch's kernels, where they run the student, are fused at the first call, and
        again whenever the elements change or neighbours outgrow their room: that takes most of a
        minute, and makes evaluations some three times as fast.
    guard
        What to do where the student, by its own estimate, does not know an atom's environment, at
        the first and then at each ``guard_every``-th structure: ``warn``, once, or ``stop``, by
        ``UntrustedError``. ``n_looks`` and ``n_untrusted`` count the atoms looked at.

    Raises
    ------
    ConfigError
        There is no such guard, or the student has no error model for it.
    UntrustedError
        ``guard="stop"``; the forces are not given.
    KernelError
        ``backend="warp"``, and Warp cannot compile the kernels here.
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
        compile: bool = False,
        guard: Literal["off", "warn", "stop"] = "off",
        guard_every: int = EVERY,
    ) -> None:
        self._lock = threading.Lock()
        self._known: _Snapshot | None = None
        self._estimates: Estimates | None = None
        super().__init__()
        self.student = ready_student(model, device, dtype)
        self._engine = choose_engine(self.student, backend=backend, compile=compile)
        self._may_be_slow = backend != "warp"
        self._looks = Looks(self.student, guard, guard_every)

    def __repr__(self) -> str:
        kind = self.student.architecture
        return f"StudentCalculator({kind} of {' '.join(self.elements)}, cutoff {self.cutoff:g} Å)"

    @property
    def elements(self) -> tuple[str, ...]:
        """Symbols of the elements that the student knows."""
        return self.student.elements

    @property
    def cutoff(self) -> float:
        """Å; a student that passes messages sees this far in each layer."""
        return self.student.cutoff

    # -- what ASE calls, several times per step -----------------------------------------------

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(f"{name} is not among {self.implemented_properties}")
        with self._lock:
            if not self._has(name, atoms):
                if not allow_calculation:
                    return None
                self._compute(self._given(atoms))
            if name not in self.results:
                raise PropertyNotImplementedError(f"{name} needs a cell with a volume")
            value = self.results[name]
            return value.copy() if isinstance(value, np.ndarray) else value

    def _has(self, name: str, atoms: Atoms | None) -> bool:
        """Whether ``results`` are those of ``atoms``; anybody may have emptied them."""
        known = self._known
        if known is None or not (atoms is None or known.state == _state(atoms)):
            return False
        return name in self.results or (bool(self.results) and not known.volume)

    def _given(self, atoms: Atoms | None) -> Atoms:
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise StudentError("no atoms were given and none are known")
        return atoms

    # -- the rest of ASE's interface ----------------------------------------------------------

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = all_properties,
        system_changes: Any = all_changes,
    ) -> None:
        """Compute everything for ``atoms``, whatever ``properties`` are asked for."""
        with self._lock:
            self._compute(self._given(atoms))

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """Which of positions, cell, numbers and pbc differ from those of the results."""
        known = self._known
        if known is None:
            return list(all_changes)
        names = ("positions", "cell", "numbers", "pbc")
        return [
            name
            for name, old, new in zip(names, known.state, _state(atoms), strict=True)
            if old != new
        ]

    @property
    def atoms(self) -> Atoms | None:
        """The structure that the results belong to; setting it drops them."""
        known = self._known
        if known is None:
            return None
        return Atoms(known.numbers, known.positions, cell=known.cell, pbc=known.pbc)

    @atoms.setter
    def atoms(self, value: Atoms | None) -> None:
        self._known, self.results = None if value is None else _Snapshot.of(value), {}

    @property
    def extra(self) -> Mapping[str, np.ndarray]:
        """``forces_error`` and ``extrapolation`` (n_atoms,) of the atoms last computed.

        The former, in eV/Å, is how far the force on an atom is expected to be from the teacher's;
        the latter is 1 at the edge of what the student was trained on. See ``docs/errors.md``.
        Computed when they are looked up. Empty for a student that does not know its errors.
        """
        return _Extra(self)

    def _estimated(self) -> Estimates:
        with self._lock:
            if self._known is None or not self.results:
                raise StudentError("there are no atoms yet", remedy="ask for their energy first")
            found = self._estimates or self._engine.estimates()
            if found is None:  # the engine of a copy has not seen them
                self._evaluate(self._known)
                found = self._engine.estimates()
            if found is None:
                raise StudentError("the student does not know its errors")
            self._estimates = found
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    @property
    def n_looks(self) -> int:
        """Atoms that the guard has looked at."""
        return self._looks.n_atoms

    @property
    def n_untrusted(self) -> int:
        """Those of them that the student did not know."""
        return self._looks.n_untrusted

    # -- the computation ----------------------------------------------------------------------

    def _compute(self, atoms: Atoms) -> None:
        known = self._known if self.results else None
        self._known, self._estimates, self.results = None, None, {}
        now = _Snapshot.of(atoms, known)
        if known is None or now.numbers is not known.numbers or not _is_finite(now.positions):
            check_structure(atoms)
            for words in electrons_ignored(atoms):
                warnings.warn(f"the student ignores {words}", stacklevel=3)
        self.results = self._evaluate(now)
        self._known = now

    def _evaluate(self, now: _Snapshot) -> dict[str, Any]:
        try:
            found = self._engine.evaluate(now.positions, now.numbers, now.cell, now.pbc)
        except KernelError as error:
            if not self._may_be_slow:
                raise
            slower = f"PyTorch runs the student, many times slower: {error}"
            warnings.warn(slower, stacklevel=4)
            self._engine = slow_engine(self.student)
            found = self._engine.evaluate(now.positions, now.numbers, now.cell, now.pbc)
        energy, forces = found.energy, found.forces
        if not (math.isfinite(energy) and _is_finite(forces)):
            bad = np.flatnonzero(~np.isfinite(forces).all(1))
            raise StudentError(
                "the student gave a result that is not finite",
                found=f"energy {energy} eV; forces of atoms {bad[:5].tolist()}",
                remedy="look for atoms on top of each other; restart from the last good frame",
            )
        self._estimates = self._looks.after(self._engine, now.numbers, stacklevel=5)
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": found.energies,
            "forces": forces,
        }
        if now.volume > 0.0:
            results["stress"] = found.virial / -now.volume
        return results


class _Extra(Mapping[str, np.ndarray]):
    """What `StudentCalculator.extra` promises, computed when it is looked up."""

    _fields = {"forces_error": "errors", "extrapolation": "extrapolation"}  # noqa: RUF012

    def __init__(self, calculator: StudentCalculator) -> None:
        self._calculator = calculator

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in iter(self):
            raise KeyError(name)
        found: np.ndarray = getattr(self._calculator._estimated(), self._fields[name])
        return found.copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields if self._calculator.student.error_model is not None else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class _Snapshot:
    """Copies of what an evaluation depends on."""

    state: tuple[bytes, bytes, bytes, bytes]
    positions: np.ndarray
    cell: np.ndarray
    numbers: np.ndarray
    pbc: np.ndarray
    volume: float  # Å³

    @classmethod
    def of(cls, atoms: Atoms, last: _Snapshot | None = None) -> _Snapshot:
        """A snapshot of ``atoms``; whatever equals ``last``, except positions, is taken from it."""
        state = _state(atoms)
        positions = np.array(atoms.arrays["positions"], dtype=np.float64, order="C")
        if last is not None and last.state[1:] == state[1:]:
            return cls(state, positions, last.cell, last.numbers, last.pbc, last.volume)
        return cls(
            state,
            positions,
            np.array(atoms.cell.array, dtype=np.float64, order="C"),
            np.array(atoms.arrays["numbers"], dtype=np.int64),
            np.array(atoms.pbc),
            atoms.cell.volume,
        )


def _state(atoms: Atoms) -> tuple[bytes, bytes, bytes, bytes]:
    """Positions, cell, numbers and pbc. Bytes compare in a tenth of the time arrays take."""
    arrays = atoms.arrays
    return (
        arrays["positions"].tobytes(),
        atoms.cell.array.tobytes(),
        arrays["numbers"].tobytes(),
        atoms.pbc.tobytes(),
    )


def _is_finite(vectors: np.ndarray) -> bool:
    """Whether all are; by a sum that any infinity and NaN spoils, and no sane number."""
    flat = vectors.ravel()
    return math.isfinite(flat.dot(flat))
