"""What an architecture of students provides.

An architecture is a module with one name, found by file for ours and by the entry-point group
``mlff_distiller.students`` for others':

``ARCHITECTURE``
    an `Architecture`: its settings, how they and the data make a student, and what the rest of the
    program may ask of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlff_distiller.batch import Batch
    from mlff_distiller.students.base import Student


@dataclass(frozen=True)
class Counts:
    """Whole numbers that ``train --tune`` tries for a setting."""

    setting: str
    low: int
    high: int
    step: int = 1


@dataclass(frozen=True)
class Factors:
    """``train --tune`` tries ``low`` to ``high`` times what the setting ``of`` is.

    Where that is the same setting: times what it is by default for these data.
    """

    setting: str
    low: float
    high: float
    of: str


@dataclass(frozen=True)
class Architecture:
    """One kind of student: what can be asked for, and how it is made, searched and exported.

    A student is named by its architecture, by a preset, or by its architecture and sizes:
    ``ARCHITECTURE-64x2``. What a name says counts for the settings that are at their defaults.
    """

    student: type[Student]
    description: str
    """One line for those who choose."""
    settings: type[Any]
    """A frozen dataclass, validated by pydantic, in which everything has a default."""
    build: Callable[[Sequence[Batch], Any, int], Student]
    """From labelled frames, settings and a seed: untrained, of float32, on the CPU."""
    presets: Mapping[str, Mapping[str, Any]]
    """Students' names, the fastest first, and the settings that each stands for."""
    sizes: tuple[str, ...] = ()
    """Settings, whole numbers, that a student's name may give."""
    ranges: tuple[Counts | Factors, ...] = ()
    """What ``train --tune`` searches; one that is ``of`` another comes after it."""
    first: tuple[str, ...] = ()
    """Names of the students that the search begins with; by default the architecture's own."""
    decided: Callable[[Any], Mapping[str, Any]] = field(default=lambda student: {})
    """Settings that are None until the data decide, as a student made of them has them."""
    export: Callable[[Any, Path, Sequence[Batch]], dict[str, str]] | None = None
    """Writes files for other programs into a folder; their names, and who reads them.

    Also gets the frames that the student was trained on.
    """
    read: Callable[[Path], Student] | None = None
    """A student from such a file; `StudentError` if it is none."""

    @property
    def name(self) -> str:
        """Lower-case letters, digits, underscores. The configuration has a section so named."""
        return self.student.architecture

    def read_name(self, name: str) -> Mapping[str, Any] | None:
        """The settings that a student's name stands for; None if it names no such student."""
        if name == self.name or name in self.presets:
            return self.presets.get(name, {})
        pattern = f"{self.name}-" + "x".join([r"(\d{1,6})"] * len(self.sizes))
        found = re.fullmatch(pattern, name) if self.sizes else None
        return found and dict(zip(self.sizes, map(int, found.groups()), strict=True))

    def name_of(self, settings: Mapping[str, Any]) -> str:
        """The name that gives the sizes in ``settings``."""
        sizes = "x".join(str(settings[size]) for size in self.sizes)
        return f"{self.name}-{sizes}" if self.sizes else self.name

    def named(self, settings: Any, name: str) -> Any:
        """``settings`` with what a student's name says, where they are at their defaults."""
        default = self.settings()
        said = self.read_name(name) or {}
        free = {k: v for k, v in said.items() if getattr(settings, k) == getattr(default, k)}
        return replace(settings, **free)
