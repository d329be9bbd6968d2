"""A teacher that answers: its process, who it is, and the checks around every question."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols

from mlff_distiller.errors import StructureError, TeacherError, UnknownElementError
from mlff_distiller.properties import LABELS, add_up
from mlff_distiller.teachers.in_process import InProcess, source_of
from mlff_distiller.teachers.process import (
    Worker,
    WorkerDied,
    WorkerHung,
    environment,
    find_python,
)
from mlff_distiller.teachers.registry import parse_spec

STATE_IN_INFO = ("charge", "spin")
"""Keys of ``atoms.info`` that define a structure's electronic state."""

_LOADING_S = 3600.0
_FIRST_S = 6 * 3600.0
_LEAST_S = 3600.0
_TIMES_THE_LONGEST = 100.0
"""A question may take this many times the longest answer so far, by the cube of the atoms."""
_PATIENCE = 50
_COSTS = ((WorkerHung, 17), (WorkerDied, 5), (TeacherError, 1))
"""Limits of `_PATIENCE`: three unanswered questions in a row, ten deaths, or fifty failures."""

_NEUTRAL = {"charge": (0,), "spin": (0, 1)}
_ANSWER_BYTES_PER_ATOM = 4096
"""Five float64 an atom are expected; a committee may send more."""


@dataclass(frozen=True)
class TeacherIdentity:
    """What a label depends on, besides the structure. ``device`` is only reported."""

    name: str
    family: str
    version: str
    """Version of the teacher's library."""
    weights_sha256: str | None
    """SHA-256 of the weight file, or of the digests of several; None without weights."""
    licence: str
    device: str
    settings: dict[str, Any]

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of everything but ``device``."""
        content = asdict(self)
        del content["device"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """One structure's results, checked: of the right shapes, finite, float64."""

    energy: float  # eV
    free_energy: float  # eV; its derivative is the forces
    forces: np.ndarray  # (n_atoms, 3) eV/Å
    stress: np.ndarray | None  # (3, 3) eV/Å³; None unless periodic in three directions
    energies: np.ndarray | None  # (n_atoms,) eV; None unless they sum to free_energy
    extra: dict[str, np.ndarray]
    seconds: float
    """Seconds it took; in a batch, its share of the time by number of atoms."""


class TeacherGaveUp(TeacherError):
    """It failed too often in a row: no further process is started.

    ``answered``: of the structures that were asked for, by number, what became of some.
    """

    answered: Mapping[int, Any] = {}  # replaced, never changed


class Session:
    """Asks a teacher, starting its process when there is none. Not for two threads at a time.

    ``ask`` raises `StructureError` if a structure is refused before it reaches the library, and
    `TeacherError` if the library fails; its process is then ended, for what a failure left behind
    is not to be trusted, and the next question starts another. After too many failures in a row,
    without one answer between, it is `TeacherGaveUp`.

    A calculator in the place of a SPEC is asked in this process, see `InProcess`.

    ``timeout_s`` limits loading and each question; by default loading an hour, the first question
    six, and others a hundred times the longest answer so far, an hour at least.
    """

    def __init__(
        self,
        spec: str | BaseCalculator,
        device: str,
        python: str | None,
        allow_download: bool,
        timeout_s: float | None = None,
        threads: int | None = None,
    ) -> None:
        self._calculator = spec if isinstance(spec, BaseCalculator) else None
        self.source = source_of(spec) if isinstance(spec, BaseCalculator) else parse_spec(spec)
        self._device, self._python, self._allow_download = device, python, allow_download
        self._interpreter = find_python(python)
        self._folder = os.getcwd()
        self._identity: TeacherIdentity | None = None
        self._elements: frozenset[int] | None = None
        self._uses: tuple[str, ...] | None = None
        self._batch_atoms = 0
        self._crystals_alone = False
        self._warned: set[str] = set()
        self._timeout_s, self._threads = timeout_s, threads
        self._longest = (0.0, 1)  # seconds, atoms
        self._failures = 0
        self._worker: Worker | InProcess | None = None
        self._loading: Worker | InProcess | None = None
        self._aborted = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the process: a copy starts one of its own."""
        return {**vars(self), "_worker": None, "_loading": None}

    @property
    def identity(self) -> TeacherIdentity:
        """Who answers; starts the process if it never ran."""
        if self._identity is None:
            self.start()
        if self._identity is None:
            raise TeacherError(f"teacher {self.source.name!r} did not identify itself")
        return self._identity

    @property
    def elements(self) -> frozenset[int] | None:
        """Atomic numbers it was made for; None if it does not say. Starts it if it never ran."""
        return self._elements if self.identity else None

    @property
    def batch_atoms(self) -> int:
        """Most atoms to ask at once; 0 if it takes one structure at a time. Starts it likewise."""
        return self._batch_atoms if self.identity else 0

    @property
    def crystals_alone(self) -> bool:
        """Whether a crystal is best asked for alone, as it fills the cache. Starts it likewise."""
        return self._crystals_alone if self.identity else False

    @property
    def pid(self) -> int | None:
        """Id of the running process, if there is one."""
        return self._worker.pid if self._worker is not None and self._worker.usable else None

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def abort(self) -> None:
        """End the process from another thread, for good: what is asked fails."""
        self._aborted = True
        for worker in (self._loading, self._worker):
            if worker is not None:
                worker.kill()

    def start(self) -> Worker | InProcess:
        """The process, started and loaded; `TeacherError` if that fails."""
        if self._worker is not None and self._worker.usable:
            return self._worker
        self.close()
        worker = self._new_worker()
        self._loading = worker
        try:
            if self._aborted:
                raise TeacherGaveUp(f"teacher {self.source.name!r} was told to end")
            told, _ = worker.request(
                {
                    "command": "load",
                    "name": self.source.name,
                    "module": self.source.module,
                    "arguments": self.source.arguments,
                    "device": self._device,
                    "allow_download": self._allow_download,
                    "remedy": self.source.install_into(self._python),
                },
                seconds=self._timeout_s or (math.inf if self._allow_download else _LOADING_S),
            )
            self._accept(told)
        except BaseException:
            worker.close(at_once=True)
            raise
        self._worker = worker
        return worker

    def _new_worker(self) -> Worker | InProcess:
        if self._calculator is not None:
            return InProcess(self._calculator)
        variables = environment(self._python, self._device, self._allow_download, self._threads)
        return Worker(self.source.name, self._interpreter, self._folder, variables)

    def _accept(self, told: dict[str, Any]) -> None:
        if "error" in told:
            raise _raised(told["error"], f"teacher {self.source.name!r} could not be loaded: ")
        elements, uses = told.pop("elements"), told.pop("uses")
        batch_atoms, crystals_alone = int(told.pop("batch_atoms")), bool(told.pop("crystals_alone"))
        identity = TeacherIdentity(name=self.source.name, family=self.source.family, **told)
        if self._identity and self._identity.fingerprint() != identity.fingerprint():
            raise TeacherError(
                f"teacher {self.source.name!r} has changed since it was first started",
                expected=self._identity,
                found=identity,
                remedy="make a new calculator for it; do not mix their labels",
            )
        self._identity = identity
        self._elements = None if elements is None else frozenset(elements)
        self._uses = None if uses is None else tuple(uses)
        self._batch_atoms, self._crystals_alone = batch_atoms, crystals_alone

    def ask(self, frames: Sequence[Atoms]) -> list[Answer]:
        """Evaluate structures in one pass; several only if ``batch_atoms``."""
        for atoms in frames:
            self.check(atoms)
        worker = self.start()
        arrays: dict[str, np.ndarray] = {}
        for k, atoms in enumerate(frames):
            arrays |= {f"{k}.{name}": array for name, array in _arrays(atoms).items()}
        asked = [{"info": _state(atoms), "stress": is_crystal(atoms)} for atoms in frames]
        n_atoms = sum(len(atoms) for atoms in frames)
        largest = (1 << 20) + _ANSWER_BYTES_PER_ATOM * n_atoms
        question = {"command": "evaluate", "frames": asked}
        began = time.monotonic()
        try:
            told, results = worker.request(question, arrays, largest, self._patience(n_atoms))
            if "error" in told:
                named = ", ".join(_named(atoms) for atoms in frames[:3])
                named += f" and {len(frames) - 3} more" if len(frames) > 3 else ""
                raise _raised(told["error"], f"teacher {self.source.name!r} failed on {named}: ")
            own: list[dict[str, np.ndarray]] = [{} for _ in frames]
            for key, value in results.items():
                number, _, name = key.partition(".")
                own[int(number)][name] = value
            seconds = float(told["seconds"]) / n_atoms
            answers = [
                self._checked(atoms, values, seconds * len(atoms))
                for atoms, values in zip(frames, own, strict=True)
            ]
        except TeacherError as error:
            worker.close(at_once=True)
            self._count(error)
            raise
        self._failures = 0
        self._longest = max(self._longest, (time.monotonic() - began, n_atoms))
        return answers

    def _patience(self, n_atoms: int) -> float:
        """Seconds that an answer for ``n_atoms`` atoms may take."""
        seconds, known = self._longest
        if self._timeout_s is not None:
            return self._timeout_s
        if not seconds:
            return _FIRST_S
        return max(_LEAST_S, _TIMES_THE_LONGEST * seconds * max(1.0, n_atoms / known) ** 3)

    def _count(self, error: TeacherError) -> None:
        """`TeacherGaveUp` if ``error`` is one too many in a row."""
        self._failures += next(cost for kind, cost in _COSTS if isinstance(error, kind))
        if self._aborted or self._failures >= _PATIENCE:
            self._failures = 0
            raise TeacherGaveUp(
                f"teacher {self.source.name!r} failed again and again, without one answer between",
                found=f"the last time: {error}",
                remedy="mend the teacher or its input; the same command goes on with the rest",
            ) from error

    def check(self, atoms: Atoms) -> None:
        """`StructureError` if the library must not see ``atoms``. Starts it if it never ran."""
        from mlff_distiller.batch import check_structure  # imports torch; late, for a quick import

        check_structure(atoms)
        state = _state(atoms)
        if self._identity is None:
            self.start()
        self._check_known(atoms, state)

    def _check_known(self, atoms: Atoms, state: Mapping[str, float]) -> None:
        unknown = set() if self._elements is None else set(atoms.numbers.tolist()) - self._elements
        if unknown:
            raise UnknownElementError(
                f"teacher {self.source.name!r} was not made for "
                + ", ".join(chemical_symbols[z] for z in sorted(unknown)),
                expected=" ".join(chemical_symbols[z] for z in sorted(self._elements or ())),
                found=_named(atoms),
                remedy="remove the structure, or choose another teacher",
            )
        if self._uses is None:
            return
        from mlff_distiller.structure import atomic_state  # torch comes with it

        said = {
            key: f"{key}={state[key]:g}"
            for key in STATE_IN_INFO
            if state.get(key, 0) not in _NEUTRAL[key]
        }
        said |= {name: f"the {name} of atoms" for name in atomic_state(atoms)}
        heeded = {*self._uses} | ({"initial_charges"} if "charge" in self._uses else set())
        for key in said.keys() - heeded - self._warned:
            self._warned.add(key)
            warnings.warn(
                f"teacher {self.source.name!r} takes no notice of {said[key]}", stacklevel=2
            )

    def _checked(self, atoms: Atoms, arrays: dict[str, np.ndarray], seconds: float) -> Answer:
        for name in ("free_energy", *LABELS):
            row = LABELS["energy" if name == "free_energy" else name]
            shape = (len(atoms), *row.shape) if row.per == "atom" else row.shape
            value = arrays.get(f"extra.{name}" if name == "forces_spread" else name)
            if value is None and not row.required:
                continue
            if value is not None and value.shape == shape and np.isfinite(value).all():
                continue
            found = "nothing" if value is None else f"shape {value.shape}"
            if value is not None and value.shape == shape:
                found = "NaN or infinity"
            raise TeacherError(
                f"teacher {self.source.name!r} gave bad {name} for {_named(atoms)}",
                expected=f"finite {row.unit}, shape {shape}",
                found=found,
            )
        free_energy, energies = float(arrays["free_energy"]), arrays.get("energies")
        return Answer(
            float(arrays["energy"]),
            free_energy,
            arrays["forces"],
            arrays.get("stress"),
            None if energies is None or not add_up(energies, free_energy) else energies,
            {k.removeprefix("extra."): v for k, v in arrays.items() if k.startswith("extra.")},
            seconds,
        )


def is_crystal(atoms: Atoms) -> bool:
    """Whether stress is defined: periodic in three directions, with a volume."""
    return bool(atoms.pbc.all() and atoms.cell.rank == 3)


def _arrays(atoms: Atoms) -> dict[str, np.ndarray]:
    arrays = {
        "numbers": atoms.numbers,
        "positions": atoms.positions,
        "cell": atoms.cell.array,
        "pbc": atoms.pbc,
    }
    for name, key in (("initial_charges", "charges"), ("initial_magmoms", "magmoms")):
        if atoms.has(name):
            arrays[key] = atoms.get_array(name)
    return arrays


def _state(atoms: Atoms) -> dict[str, float]:
    """What ``info`` says of charge and spin; `StructureError` if that is not a number."""
    state = {}
    for key in STATE_IN_INFO:
        value = atoms.info.get(key)
        if value is None:
            continue
        try:
            state[key] = float(value)
        except (TypeError, ValueError):
            state[key] = np.nan
        if not np.isfinite(state[key]):
            raise StructureError(
                f"{key} of {_named(atoms)} is not a number",
                expected=f"a finite number, or no atoms.info[{key!r}]",
                found=repr(value),
            )
    return state


def _named(atoms: Atoms) -> str:
    return f"{atoms.get_chemical_formula()} ({len(atoms)} atoms)"


def _raised(error: Mapping[str, Any], context: str) -> TeacherError | StructureError:
    """The worker's exception as ours; ``clean``: the library never saw the structure."""
    kind = StructureError if error["clean"] else TeacherError
    return kind(
        (context if error["foreign"] else "") + error["problem"],
        expected=error["expected"],
        found=error["found"],
        remedy=error["remedy"],
    )
