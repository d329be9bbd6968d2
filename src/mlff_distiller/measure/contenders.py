"""Who is measured: students, teachers and ASE calculators, by one interface."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ase.calculators.calculator import BaseCalculator

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.loading import resolve_device
from mlff_distiller.errors import ConfigError
from mlff_distiller.students import Student, load_student
from mlff_distiller.teachers import TeacherCalculator, load_teacher

Kind = Literal["student", "teacher", "calculator"]
Model = str | Path | Student | BaseCalculator


@dataclass
class Contender:
    """A model with a name. ``student`` is there if ``run_md`` can run it."""

    name: str
    kind: Kind
    make: Callable[[], BaseCalculator]
    device: str
    student: Student | None = None
    spec: str = ""
    """The teacher's SPEC; '' for other models."""
    load_s: float = 0.0
    """What it took until it could be asked: reading weights, starting a teacher's process."""
    compile: bool = False
    _calculator: BaseCalculator | None = field(default=None, repr=False)

    def calculator(self) -> BaseCalculator:
        """The same every time; made at the first call."""
        if self._calculator is None:
            began = time.perf_counter()
            self._calculator = self.make()
            if isinstance(self._calculator, TeacherCalculator):
                self.device = _known(self._calculator.identity.device)
            self.load_s += time.perf_counter() - began
        return self._calculator

    def processes(self) -> list[int]:
        """Ids of this process and of the teacher's, if it runs."""
        own = self._calculator.pid if isinstance(self._calculator, TeacherCalculator) else None
        return [os.getpid()] + ([own] if own else [])

    def close(self) -> None:
        """End a teacher's process."""
        if isinstance(self._calculator, TeacherCalculator):
            self._calculator.close()
        self._calculator = None

    def about(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "device": self.device,
            "load_s": round(self.load_s, 3),
            **({"architecture": self.student.architecture} if self.student is not None else {}),
            **({"compiled": True} if self.compile else {}),
        }


def contender(
    model: Model,
    name: str | None = None,
    *,
    device: str = "auto",
    dtype: Literal["float32", "float64"] = "float32",
    python: str | None = None,
    compile: bool = False,
) -> Contender:
    """A student (folder, ``nep.txt``, ``Student``), a teacher's SPEC, or an ASE calculator.

    Parameters
    ----------
    python
        Interpreter of the teacher's environment.
    compile
        Fuse a student's kernels where there are none of ours; see ``StudentCalculator``.
    """
    where = str(resolve_device(device))
    if isinstance(model, BaseCalculator):
        return Contender(
            name or type(model).__name__,
            "teacher" if isinstance(model, TeacherCalculator) else "calculator",
            lambda: model,
            where,
            model.student if isinstance(model, StudentCalculator) else None,
            model.spec if isinstance(model, TeacherCalculator) else "",
        )
    if isinstance(model, str) and not Path(model).exists():
        return Contender(
            name or model,
            "teacher",
            lambda: load_teacher(model, device=device, python=python),
            where,
            spec=model,
        )
    began = time.perf_counter()
    student = model if isinstance(model, Student) else load_student(model)
    seconds = time.perf_counter() - began
    usual = student.architecture if isinstance(model, Student) else _usual_name(Path(model))
    return Contender(
        name or usual,
        "student",
        lambda: StudentCalculator(student, device=device, dtype=dtype, compile=compile),
        where,
        student,
        load_s=seconds,
        compile=compile,
    )


def contenders_of(
    models: Iterable[Model | Contender] | Mapping[str, Model], **options: Any
) -> list[Contender]:
    """Models, by name or without, of different names; ``options`` are those of ``contender``."""
    named = models.items() if isinstance(models, Mapping) else [(None, m) for m in models]
    found = [
        model if isinstance(model, Contender) else contender(model, name, **options)
        for name, model in named
    ]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two models are called {name!r}", remedy="name them: --student NAME=PATH"
            )
    return found


def _usual_name(path: Path) -> str:
    """The run's name for RUN and RUN/student, a file's name for a file."""
    resolved = path.resolve()
    return resolved.parent.name if resolved.name == "student" else resolved.stem


def _known(device: str) -> str:
    """As torch names devices."""
    return device if device.startswith(("cpu", "cuda")) else "cpu"
