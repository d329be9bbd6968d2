"""Which architectures of students there are, and what a student's name means.

    NAME = ARCHITECTURE | PRESET | ARCHITECTURE-SIZES

`architecture_names` imports no PyTorch, and no other distribution's code.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re

from mlff_distiller.errors import StudentError
from mlff_distiller.students.architecture import Architecture

ENTRY_POINTS = "mlff_distiller.students"
"""Group in which another distribution registers an architecture: ``name = package.module``."""

_OURS = {
    "nep": "mlff_distiller.students.nep_setup",
    "painn": "mlff_distiller.students.painn_setup",
}

LADDER = ("nep", "nep-large", "painn-32x2", "painn-64x2")
"""Students that ``distill`` tries one after the other, the fastest first."""
FASTEST = "nep-small"
"""What to take where none of these is fast enough."""
UPDATE_COST = {"nep-small": 0.6, "nep": 1.0, "nep-large": 1.7}
"""Estimates of what an update costs, times that of a ``nep``, until one has been trained."""


def architecture_names() -> tuple[str, ...]:
    """Those of ours and those that other distributions register, whether or not they work."""
    others = (entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS))
    return tuple(dict.fromkeys([*_OURS, *others]))


def architectures(*, strict: bool = False) -> dict[str, Architecture]:
    """All by name, ours first. One of another distribution that fails to import is left out.

    Raises
    ------
    StudentError
        ``strict``, and one fails.
    """
    found = {name: importlib.import_module(module).ARCHITECTURE for name, module in _OURS.items()}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            own = entry.load().ARCHITECTURE
            if own.name != entry.name or not re.fullmatch(r"[a-z][a-z0-9_]*", own.name):
                raise ValueError(f"the architecture is named {own.name!r}")
            found.setdefault(own.name, own)
        except Exception as error:
            if strict:
                raise StudentError(
                    f"the student plug-in {entry.name!r} ({entry.value}) cannot be used",
                    expected="a module with ARCHITECTURE, named as its entry point is",
                    found=f"{type(error).__name__}: {error}",
                    remedy="repair or uninstall the distribution that registers it",
                ) from error
    return found


def architecture_of(name: str) -> Architecture:
    """The architecture of the student ``name``; `StudentError` says which names there are."""
    known = architectures()
    for own in known.values():
        if own.read_name(name) is not None:
            return own
    architectures(strict=True)  # now a broken plug-in may be the reason: let it speak
    names = [name for own in known.values() for name in dict.fromkeys([own.name, *own.presets])]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    raise StudentError(
        f"there is no student {name!r}",
        expected="one of " + ", ".join(names),
        found=name,
        remedy=f"did you mean {' or '.join(close)}?"
        if close
        else "`mlff-distiller students` lists them all",
    )
