"""What ``run_md`` does where its student, by its own estimate, does not know what it meets."""

from __future__ import annotations

import io
import warnings
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.io import iread
from ase.io.extxyz import write_extxyz

from mlff_distiller.durable import explaining, write_text
from mlff_distiller.engines.guarding import check_guard
from mlff_distiller.errors import ConfigError, DynamicsError, UntrustedError
from mlff_distiller.md.formats import expressible
from mlff_distiller.md.simulation import Simulation
from mlff_distiller.md.state import State
from mlff_distiller.md.thermo_log import OF_TEACHER
from mlff_distiller.md.watch import Array, Event, Trust, Watch
from mlff_distiller.students import Student

Mode = Literal["off", "warn", "stop", "harvest", "teacher"]
_APART_FS = 20.0
"""Between frames that are kept, at first."""
_MOST = {"warn": 20, "stop": 20, "harvest": 200, "teacher": 20}
"""Frames that are kept of a run."""
_MOST_ATOMS = 1_000_000
"""In all of them."""


def guard_of(mode: Mode | None, student: Student, teacher: BaseCalculator | None = None) -> Mode:
    """``mode``, or by default ``warn`` where the student can estimate its errors.

    Raises
    ------
    ConfigError
        There is no such mode, the student cannot, or there is no teacher to take over.
    """
    if mode is None:
        mode = "off" if student.error_model is None else "warn"
    check_guard(mode, get_args(Mode), student)
    if (mode == "teacher") != (teacher is not None):
        raise ConfigError(
            "a teacher takes over with guard=teacher only",
            expected="both, or none",
            found=f"guard={mode}, teacher={teacher}",
        )
    return mode


class Guard:
    """Watches a simulation, keeps the frames in which an atom is not trusted, and says so.

    Parameters
    ----------
    mode
        Not ``off``.
    every
        Steps between looks.
    files_every
        Steps at which the run writes: ``stop`` looks there too, so as never to go back behind them.
    limit
        eV/Å; None is the student's own.
    kept
        The file to keep frames in; None keeps none.
    before
        What `state` gave at the checkpoint that is continued.
    teacher, teacher_steps
        What takes over, for how many steps, in the mode of that name.
    """

    def __init__(
        self,
        mode: Mode,
        simulation: Simulation,
        every: int,
        files_every: Collection[int],
        limit: float | None,
        kept: Path | None,
        before: dict[str, Any] | None = None,
        teacher: BaseCalculator | None = None,
        teacher_steps: int = 0,
    ) -> None:
        self.teacher, self.teacher_steps = teacher, teacher_steps
        self._taken = [tuple(pair) for pair in (before or {}).get("by_teacher", ())]
        model: Any = simulation.engine.student.error_model
        self.mode, self.limit = mode, float(model.limit if limit is None else limit)
        trust = None if before is None else Trust(**before["trust"])
        looks = {every, *files_every} if mode in ("stop", "teacher") else {every}
        self.watch = Watch(simulation, looks, self.limit, self._meet, trust)
        self._simulation, self._warned = simulation, set[int]()
        self._frames: KeptFrames | None = None
        if kept is not None:
            apart = round(_APART_FS / simulation.time_step_fs)
            self._frames = KeptFrames(kept, simulation.templates, _MOST[mode], apart)
            self._frames.reopen((before or {}).get("apart"), simulation.step)

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of it, as JSON."""
        apart = None if self._frames is None else self._frames.apart
        trust = asdict(self.watch.seen())
        return {"trust": trust, "apart": apart, "by_teacher": self._taken}

    def summary(self) -> dict[str, Any]:
        """``trusted``, the fraction of all looks at atoms, and the largest ``max_forces_error``."""
        trust, sizes = self.watch.seen(), self.watch.systems.sizes
        n_looks = trust.n_looks * int(sizes.sum())
        trusted = 1.0 - sum(trust.n_untrusted) / n_looks if n_looks else None
        largest = max(trust.largest)
        return {
            "trusted": trusted,
            "max_forces_error": largest,
            "teacher_steps": tuple(self._taken),
        }

    def row(self, since: int, step: int) -> list[dict[str, Any]]:
        """What the row of ``step`` says of each system, after that of ``since``."""
        taken = sum(max(0, min(b, step) - max(a - 1, since)) for a, b in self._taken)
        extra = {OF_TEACHER: taken} if self.mode == "teacher" else {}
        return [row | extra for row in self.watch.row()]

    def by_teacher(self, first: int, step: int) -> None:
        """Note that the teacher, which went on from ``first``, has made ``step``."""
        if self._taken and self._taken[-1][0] == first + 1:
            self._taken.pop()
        self._taken.append((first + 1, step))

    def begin(self, *, continues: bool) -> bool:
        """Look at the present state, with which steps of the student begin; whether it may.

        ``continues``: as others have left it. Where it may not, and no teacher is there to take
        over, a guard that stops raises.
        """
        try:
            self.watch.begin(continues=continues)
        except UntrustedError:
            if self.teacher is None:
                raise
            return False
        return True

    def _meet(self, event: Event) -> None:
        ends = np.cumsum(self.watch.systems.sizes)
        parts = np.split(event.errors, ends[:-1])
        met = [k for k, errors in enumerate(parts) if not (errors <= self.limit).all()]
        if self._frames is not None:
            self._frames.add(event, met)
        words = [self._words(event.step, k, parts[k]) for k in met]
        if self.mode == "stop":
            self._stop(event, met, words[0])
        self._warn(met, words)
        if self.mode == "teacher":
            self._stop(event, met, words[0])

    def _warn(self, met: Sequence[int], words: Sequence[str]) -> None:
        for k, said in zip(met, words, strict=True):
            if k not in self._warned:
                self._warned.add(k)
                warnings.warn(f"{said}, above {self.limit:.3g} eV/Å", stacklevel=2)

    def _stop(self, event: Event, met: Sequence[int], words: str) -> None:
        state, templates = self.watch.go_back(event), self._simulation.templates
        error = UntrustedError(
            words,
            expected=f"at most {self.limit:.3g} eV/Å",
            remedy=f"the state of step {state.step} is kept: the same command goes on from there "
            "with another guard; label what it met, and train on it"
            + ("" if self._frames is None else f" ({self._frames.path})"),
        )
        error.step = event.step
        error.met = frames_of(event.state, templates, met)
        error.before = frames_of(state, templates, met)
        raise error

    def _words(self, step: int, system: int, errors: np.ndarray) -> str:
        worst, template = int(errors.argmax()), self._simulation.templates[system]
        return (
            f"the student does not know what it met at step {step} "
            f"({step * self._simulation.time_step_fs:g} fs): the estimated force error of atom "
            f"{worst} ({template.symbols[worst]}) of system {system} is {errors[worst]:.3g} eV/Å"
        )


class KeptFrames:
    """An extended XYZ file of single systems, of which a limited number is kept.

    They are ``apart`` steps from each other at first. When the file is full every second one is
    dropped, and they are kept half as often: they always cover the whole run. Each has ``step``,
    ``system``, and the column ``forces_error`` (eV/Å).
    """

    def __init__(self, path: Path, templates: Sequence[Atoms], most: int, apart: int) -> None:
        self.path, self._templates = path, [expressible(atoms) for atoms in templates]
        self._most = max(2, min(most, _MOST_ATOMS // max(map(len, templates))))
        self._apart, self._last = max(1, apart), -apart
        self._frames: list[Atoms] = []

    @property
    def apart(self) -> int:
        """Least steps between frames."""
        return self._apart

    def reopen(self, apart: int | None, step: int) -> None:
        """Go on with the frames up to ``step`` that the file holds, ``apart`` from each other."""
        self._apart = apart or self._apart
        with suppress(Exception):  # one that was cut off ends the file
            for atoms in iread(self.path, index=":", format="extxyz"):
                self._frames += [atoms] if atoms.info.get("step", step + 1) <= step else []
        if self._frames:
            self._last = int(self._frames[-1].info["step"])
            self._rewrite()
        else:
            self.path.unlink(missing_ok=True)

    def add(self, event: Event, systems: Sequence[int]) -> None:
        """Keep ``systems`` of an event, unless others were kept shortly before."""
        state = event.state
        if state.step < self._last + self._apart:
            return
        self._last = state.step
        new = frames_of(state, self._templates, systems, event.errors)
        self._frames += new
        if len(self._frames) > self._most:
            while len(self._frames) > self._most:
                self._frames, self._apart = self._frames[::2], 2 * self._apart
            self._rewrite()
            return
        with (
            explaining(f"{self.path} cannot be written", DynamicsError),
            self.path.open("a") as file,
        ):
            file.write(_text(new))

    def _rewrite(self) -> None:
        with explaining(f"{self.path} cannot be written", DynamicsError):
            write_text(self.path, _text(self._frames))


def frames_of(
    state: State, templates: Sequence[Atoms], systems: Sequence[int], errors: Array | None = None
) -> list[Atoms]:
    """``systems`` of a state, with momenta, ``step`` and ``system``, and maybe ``forces_error``."""
    ends = np.cumsum([len(atoms) for atoms in templates])
    frames = []
    for k in systems:
        atoms = templates[k].copy()
        own = slice(ends[k] - len(atoms), ends[k])
        momenta = atoms.get_masses()[:, None] * state.velocities[own]
        atoms.set_cell(state.cell[k])
        atoms.set_positions(state.positions[own], apply_constraint=False)
        atoms.set_momenta(momenta, apply_constraint=False)
        if errors is not None:
            atoms.set_array("forces_error", errors[own])
        atoms.info |= {"step": state.step, "system": k}
        frames.append(atoms)
    return frames


def _text(frames: Sequence[Atoms]) -> str:
    text = io.StringIO()
    write_extxyz(text, list(frames))
    return text.getvalue()
