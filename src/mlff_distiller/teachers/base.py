"""``TeacherCalculator``: any teacher as an ASE calculator and as a maker of labels.

The teacher runs in a process of its own, because two in one spoil each other: one sets torch's
default dtype, another flips JAX's precision, a third pins a library another cannot use. Only
arrays cross. ASE's conventions are kept here, once, whatever the library does: ``results`` holds
ASE's own keys only and is replaced, never changed; ``free_energy`` is always there; stress is (6,)
and exists only for a structure periodic in three directions.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.errors import StructureError, TeacherError
from mlff_distiller.teachers.session import STATE_IN_INFO, Session, TeacherIdentity, is_crystal

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Labelled:
    """A structure and what the teacher said of it, or why it said nothing."""

    atoms: Atoms
    """A copy, without calculator."""
    labels: dict[str, np.ndarray] | None
    """By name, shape and unit of ``properties.LABELS``, in float64; no stress where undefined."""
    error: str | None
    seconds: float
    """The teacher's own time; for a failure, the time until it was known."""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """Such as ``forces_spread`` (n_atoms,) in eV/Å, if the teacher is a committee."""


class TeacherCalculator(Calculator):
    """A teacher by its SPEC.

    Parameters
    ----------
    spec
        A registered name (``7net-0``), ``FAMILY:PATH`` or ``ase:package.module:factory``.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    python
        Interpreter of another environment to run the teacher in; it needs NumPy, ASE and the
        teacher's library, but not this package.
    allow_download
        Whether the teacher may use the network.

    Raises
    ------
    TeacherError
        Now, if there is no such teacher; on first use, if its library is missing; on a
        calculation, if it fails. After a failure the next use starts a fresh process.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's)
    discard_results_on_any_change = True

    def __init__(
        self,
        spec: str,
        *,
        device: str = "auto",
        python: str | None = None,
        allow_download: bool = False,
    ) -> None:
        super().__init__()
        if not _DEVICE.fullmatch(device):
            raise TeacherError(
                f"teacher {spec!r}: there is no device {device!r}",
                expected="auto, cpu, cuda or cuda:N",
            )
        self.spec = spec
        self.extra: dict[str, np.ndarray] = {}
        self._session = Session(spec, device, python, allow_download)
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock and the process: a copy starts one of its own."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()

    def __enter__(self) -> TeacherCalculator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the teacher's process; the next use starts another."""
        with self._lock:
            self._session.close()

    @property
    def identity(self) -> TeacherIdentity:
        """Who labels. Starts the teacher on first use."""
        with self._lock:
            return self._session.identity

    @property
    def elements(self) -> frozenset[int] | None:
        """Atomic numbers the teacher was made for; None if it does not say. Starts it."""
        with self._lock:
            return self._session.elements

    def _get_name(self) -> str:
        return self._session.source.name

    def get_spin_polarized(self) -> bool:
        """Say no; without this, ASE stores a bound method, a cycle that keeps the process alive."""
        return False

    def reset(self) -> None:
        """Forget the last calculation."""
        self.atoms, self.results, self.extra = None, {}, {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results`` and ``extra`` by one evaluation; after a failure both are empty."""
        with self._lock:
            atoms = self.atoms if atoms is None else atoms
            self.reset()
            if atoms is None:
                raise StructureError("there is no structure to calculate")
            answer = self._session.ask(atoms)
            results = {
                "energy": answer.energy,
                "free_energy": answer.free_energy,
                "forces": answer.forces,
            }
            if answer.stress is not None:
                results["stress"] = full_3x3_to_voigt_6_stress(answer.stress)
            self.atoms, self.results, self.extra = atoms.copy(), results, answer.extra

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """As ASE's; one thread at a time, and no evaluation for a stress that cannot be."""
        with self._lock:
            structure = self.atoms if atoms is None else atoms
            if name == "stress" and structure is not None and not is_crystal(structure):
                raise PropertyNotImplementedError(
                    "stress needs a structure periodic in three directions"
                )
            return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """As ASE's, and charge and spin in ``info``, which ASE does not look at."""
        changes: list[str] = super().check_state(atoms, tol)
        before = {} if self.atoms is None else self.atoms.info
        if any(before.get(key) != atoms.info.get(key) for key in STATE_IN_INFO):
            changes = [*changes, "info"]
        return changes

    def label(self, frames: Sequence[Atoms]) -> list[Labelled]:
        """Label structures one by one; a failure is recorded and does not touch the next.

        The energy is the one whose derivative the forces are (ASE's ``free_energy``).

        Raises
        ------
        TeacherError
            If the teacher cannot be started at all.
        """
        return [self._label_one(atoms) for atoms in frames]

    def _label_one(self, atoms: Atoms) -> Labelled:
        with self._lock:
            self._session.start()
            started = time.perf_counter()
            try:
                answer = self._session.ask(atoms)
            except (StructureError, TeacherError) as error:
                return Labelled(atoms.copy(), None, str(error), time.perf_counter() - started)
        labels = {"energy": np.array(answer.free_energy), "forces": answer.forces}
        if answer.stress is not None:
            labels["stress"] = answer.stress
        return Labelled(atoms.copy(), labels, None, answer.seconds, answer.extra)


class FeNNolTeacherCalculator(TeacherCalculator):
    """FeNNol models from files; several are an ensemble and answer by their mean.

    Keyword arguments are those of `TeacherCalculator`.
    """

    def __init__(self, *paths: str | Path, **options: Any) -> None:
        for path in paths:
            if "," in str(path):
                raise TeacherError(
                    f"the path {str(path)!r} holds a comma, which separates paths in a SPEC",
                    remedy="rename the file or its folder",
                )
        super().__init__("fennol:" + ",".join(str(path) for path in paths), **options)


def load_teacher(
    spec: str, *, device: str = "auto", python: str | None = None, allow_download: bool = False
) -> TeacherCalculator:
    """The teacher of a SPEC, as an ASE calculator; see `TeacherCalculator`."""
    return TeacherCalculator(spec, device=device, python=python, allow_download=allow_download)
