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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from mlff_distiller.errors import StructureError, TeacherError
from mlff_distiller.teachers.process import WorkerDied, WorkerHung
from mlff_distiller.teachers.session import (
    STATE_IN_INFO,
    Answer,
    Session,
    TeacherGaveUp,
    TeacherIdentity,
    is_crystal,
)

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_MOST_STRUCTURES = 512
"""In one batch: their arrays are listed in a header of limited size."""


@dataclass(frozen=True)
class Labelled:
    """A structure and what the teacher said of it, or why it said nothing."""

    atoms: Atoms
    """A copy, without calculator."""
    labels: dict[str, np.ndarray] | None
    """By name, shape and unit of ``properties.LABELS``, in float64; no stress where undefined, and
    ``forces_spread`` and ``energies`` of those teachers that give them."""
    error: str | None
    seconds: float
    """The teacher's own time; for a failure, the time until it was known."""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    """Whatever else it said."""


class TeacherCalculator(Calculator):
    """A teacher by its SPEC, or an ASE calculator as a teacher.

    Parameters
    ----------
    spec
        A registered name (``7net-0``), ``FAMILY:PATH`` or ``ase:package.module:factory``. Or an ASE
        calculator, which is asked in this process: it then is its owner's to place on a device, to
        end if it hangs, and to keep from changing PyTorch's defaults. Its class, parameters and
        PyTorch weights identify its labels.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    python
        Interpreter of another environment to run the teacher in; it needs NumPy, ASE and the
        teacher's library, but not this package.
    allow_download
        Whether the teacher may use the network.
    timeout_s
        After how many seconds without an answer its process is ended, loading included; see
        `Session` for what holds by default.
    threads
        CPU cores for its process, unless OMP_NUM_THREADS says; None leaves it to the library.

    Raises
    ------
    TeacherError
        Now, if there is no such teacher; on first use, if its library is missing; on a
        calculation, if it fails. After a failure the next use starts a fresh process.
    """

    implemented_properties = ["energy", "energies", "free_energy", "forces", "stress"]  # noqa: RUF012
    discard_results_on_any_change = True

    def __init__(
        self,
        spec: str | BaseCalculator,
        *,
        device: str = "auto",
        python: str | None = None,
        allow_download: bool = False,
        timeout_s: float | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(spec, BaseCalculator) and python is not None:
            raise TeacherError(
                "a calculator that is at hand cannot run in another interpreter",
                expected="a SPEC such as ase:package.module:factory, or python=None",
                found=f"{type(spec).__name__} and python={python!r}",
            )
        if timeout_s is not None and not timeout_s > 0:
            raise TeacherError("the time limit is wrong", expected="seconds > 0", found=timeout_s)
        if not _DEVICE.fullmatch(device):
            raise TeacherError(
                f"teacher {spec!r}: there is no device {device!r}",
                expected="auto, cpu, cuda or cuda:N",
            )
        self.extra: dict[str, np.ndarray] = {}
        self._session = Session(spec, device, python, allow_download, timeout_s, threads)
        self.spec = spec if isinstance(spec, str) else self._session.source.name
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

    def abort(self) -> None:
        """End the process at once and for good, from another thread; what is asked fails."""
        self._session.abort()

    @property
    def pid(self) -> int | None:
        """The teacher's process id; None while none runs."""
        return self._session.pid

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
            [answer] = self._session.ask([atoms])
            results = {
                "energy": answer.energy,
                "free_energy": answer.free_energy,
                "forces": answer.forces,
            }
            if answer.stress is not None:
                results["stress"] = full_3x3_to_voigt_6_stress(answer.stress)
            if answer.energies is not None:
                results["energies"] = answer.energies
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

    def label(self, frames: Sequence[Atoms], *, batch_size: int | None = None) -> list[Labelled]:
        """Label structures, in their order; a failure is recorded and does not touch the next.

        The energy is the one whose derivative the forces are (ASE's ``free_energy``). Where the
        teacher knows batches, a label may differ from that of the same structure alone by float
        noise, in float32 by some 1e-6 eV per atom and 1e-5 eV/Å; either is a valid answer.

        Parameters
        ----------
        frames
            Structures. One that is refused, or on which the teacher fails, costs the others
            nothing: a batch that fails is asked again one by one, by a fresh process.
        batch_size
            Most atoms in one pass of the teacher (a larger structure goes alone); 1 labels one by
            one. By default what suits the teacher and its device.

        Raises
        ------
        TeacherError
            If the teacher cannot be started at all.
        TeacherGaveUp
            If it fails again and again; ``answered`` holds what became of some of ``frames``.
        """
        with self._lock:
            done: dict[int, Labelled] = {}
            sound: list[int] = []
            for k, atoms in enumerate(frames):
                started = time.perf_counter()
                try:
                    self._session.check(atoms)
                    sound.append(k)
                except StructureError as error:
                    done[k] = Labelled(
                        atoms.copy(), None, str(error), time.perf_counter() - started
                    )
            cap = self.batch_atoms(batch_size) if sound else 1
            alone = bool(sound) and batch_size is None and self._session.crystals_alone
            sizes = [cap if alone and is_crystal(frames[k]) else len(frames[k]) for k in sound]
            try:
                for batch in _batches(sizes, cap):
                    self._label_together(frames, [sound[k] for k in batch], done)
            except TeacherGaveUp as end:
                end.answered = done
                raise
            return [done[k] for k in range(len(frames))]

    def batch_atoms(self, batch_size: int | None = None) -> int:
        """Most atoms that ``label`` gives the teacher at once; 1 if one structure. Starts it."""
        if batch_size is not None and batch_size < 1:
            raise TeacherError(
                "batch_size counts the atoms of one pass", expected=">= 1", found=batch_size
            )
        usual = self._session.batch_atoms
        return (batch_size or usual) if usual else 1

    def _label_together(
        self,
        frames: Sequence[Atoms],
        numbers: Sequence[int],
        done: dict[int, Labelled],
        *,
        again: bool = True,
    ) -> None:
        """Label the frames of these ``numbers`` in one pass; one by one if that fails.

        A lone structure is asked again if the process died: someone else may have killed it.
        """
        self._session.start()
        started = time.perf_counter()
        try:
            answers = self._session.ask([frames[k] for k in numbers])
        except (StructureError, TeacherError) as error:
            gave_up = isinstance(error, TeacherGaveUp)
            if len(numbers) > 1 and not gave_up:
                for k in numbers:
                    self._label_together(frames, [k], done)
                return
            died = isinstance(error, WorkerDied) and not isinstance(error, WorkerHung)
            if again and died:
                self._label_together(frames, numbers, done, again=False)
                return
            if len(numbers) == 1:
                [k] = numbers
                why = str((gave_up and error.__cause__) or error)
                done[k] = Labelled(frames[k].copy(), None, why, time.perf_counter() - started)
            if gave_up:
                raise
            return
        done |= {k: _labelled(frames[k], own) for k, own in zip(numbers, answers, strict=True)}


def _labelled(atoms: Atoms, answer: Answer) -> Labelled:
    labels = {"energy": np.array(answer.free_energy), "forces": answer.forces}
    if answer.stress is not None:
        labels["stress"] = answer.stress
    if answer.energies is not None:
        labels["energies"] = answer.energies
    if "forces_spread" in answer.extra:
        labels["forces_spread"] = answer.extra["forces_spread"]
    return Labelled(atoms.copy(), labels, None, answer.seconds, answer.extra)


def _batches(sizes: Sequence[int], cap: int) -> Iterator[list[int]]:
    """Consecutive indices whose sizes add up to at most ``cap``; a larger one is alone."""
    batch: list[int] = []
    n_atoms = 0
    for k, size in enumerate(sizes):
        if batch and (n_atoms + size > cap or len(batch) == _MOST_STRUCTURES):
            yield batch
            batch, n_atoms = [], 0
        batch.append(k)
        n_atoms += size
    if batch:
        yield batch


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


class OrbTeacherCalculator(TeacherCalculator):
    """A pretrained Orb model by its name, such as ``orb-v3-conservative-inf-omat``.

    Parameters
    ----------
    name
        One of orb-models' own names; `registered_teachers` lists them.
    weights
        A local file; by default what the library has downloaded.
    options
        Keyword arguments of `TeacherCalculator`; and of the model: ``precision`` (float32-high,
        float32-highest or float64), ``compile``, ``edge_method``, ``max_num_neighbors``, ``d3``
        (a functional) and ``confidence`` (``extra["forces_error_predicted"]``, eV/Å an atom).
    """

    def __init__(self, name: str, weights: str | Path | None = None, **options: Any) -> None:
        ours = {"device", "python", "allow_download", "timeout_s", "threads"}
        words = [] if weights is None else [str(weights)]
        for key, value in options.items():
            if key not in ours and value is not None:
                words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
        if weights is not None and "," in str(weights):
            raise TeacherError(
                f"the path {str(weights)!r} holds a comma, which separates options in a SPEC",
                remedy="rename the file or its folder",
            )
        spec = name + (":" + ",".join(words) if words else "")
        super().__init__(spec, **{key: options[key] for key in ours & options.keys()})


def load_teacher(
    spec: str | BaseCalculator,
    *,
    device: str = "auto",
    python: str | None = None,
    allow_download: bool = False,
    timeout_s: float | None = None,
    threads: int | None = None,
) -> TeacherCalculator:
    """The teacher of a SPEC, or a calculator as one; see `TeacherCalculator`.

    A `TeacherCalculator` is returned as it is, whatever the other arguments.
    """
    if isinstance(spec, TeacherCalculator):
        return spec
    return TeacherCalculator(
        spec,
        device=device,
        python=python,
        allow_download=allow_download,
        timeout_s=timeout_s,
        threads=threads,
    )
