"""``Target``: an engine that a student is exported to, and ``Row``: one line of its check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mlff_distiller.students import Student


@dataclass(frozen=True)
class Row:
    """One comparison of the engine with the student's own calculator.

    ``value`` passes if it does not exceed ``limit``; without a limit the row only informs.
    """

    what: str  # "forces, silicon 64 atoms, 2 ranks"
    value: float
    unit: str
    limit: float | None = None

    @property
    def passed(self) -> bool:
        return self.limit is None or self.value <= self.limit


class Target(ABC):
    """An engine. ``write`` needs nothing of it; ``check`` runs it."""

    name: ClassVar[str]  # as on the command line
    architectures: ClassVar[tuple[str, ...]]  # what it can run
    install: ClassVar[str]  # the pip command that brings the engine
    distributions: ClassVar[tuple[str, ...]]  # what that installs, by name

    @abstractmethod
    def missing(self) -> str | None:
        """What is not installed, in a few words; None if ``check`` can run."""

    def remedy(self) -> str:
        """What brings that."""
        return self.install

    @abstractmethod
    def write(self, student: Student, folder: Path, out: Path) -> list[Path]:
        """Write all that a run needs into ``out``, which is there and empty.

        ``folder`` is the student's own (or its nep.txt). Returns the files, README.md first.

        Raises
        ------
        StudentError
            The engine cannot run this student; says which setting to change.
        """

    @abstractmethod
    def check(self, student: Student, out: Path) -> list[Row]:
        """Run the engine on what ``write`` left in ``out`` and compare with the student.

        Raises
        ------
        ExportError
            The engine could not run it: its own last words.
        """
