"""Which teachers there are, and what a SPEC means.

    SPEC = NAME | NAME:ARGUMENT | FAMILY:PATH[,PATH...] | ase:package.module:factory

Whatever follows the first colon is the family's to understand. Nothing here imports a teacher's
library.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import ani, ase, chgnet, fennol, mace, orb, sevennet
from mlff_distiller.teachers.family import Family

ENTRY_POINTS = "mlff_distiller.teachers"
"""Group in which another distribution registers a family: ``name = package.module``."""

_OURS = (sevennet, chgnet, orb, mace, ani, fennol, ase)


@dataclass(frozen=True)
class RegisteredTeacher:
    """One line of the list of teachers; ``name`` is a SPEC, or its pattern if it has capitals."""

    name: str
    family: str
    package: str
    """Python package it needs, '' if none in particular."""
    install: str
    requirements: str
    """What to hand to pip for another environment, where only the library is needed."""
    licence: str
    description: str

    @property
    def installed(self) -> bool:
        """Whether its package is in this environment; it is not imported."""
        return not self.package or find_spec(self.package) is not None


@dataclass(frozen=True)
class Source:
    """A SPEC understood: which module's ``load`` is called with what."""

    name: str
    family: str
    module: str
    arguments: dict[str, Any]
    install: str
    requirements: str

    def install_into(self, python: str | None) -> str:
        """The line that installs what the family needs, into ours or another environment."""
        if python is None:
            return f"pip install {self.install or 'the missing package'}"
        return f"{python} -m pip install {self.requirements or 'the missing package'}"


def registered_teachers() -> list[RegisteredTeacher]:
    """Every name and pattern, ours first. A third-party family that fails to import is left out."""
    rows = []
    for family, _ in _families(strict=False):
        names = dict(family.teachers)
        if family.usage:
            names[family.usage] = f"any {family.name} model"
        rows += [
            RegisteredTeacher(
                name,
                family.name,
                family.package,
                family.install,
                family.requirements,
                family.licence,
                description,
            )
            for name, description in names.items()
        ]
    return rows


def parse_spec(spec: str) -> Source:
    """Understand a SPEC; `TeacherError` with the closest names if there is no such teacher."""
    if not isinstance(spec, str) or not spec.strip():
        raise TeacherError(
            "no teacher is named", expected="a SPEC such as '7net-0'", found=repr(spec)
        )
    head, colon, rest = spec.partition(":")
    for family, module in _families(strict=False):
        if head == family.name or head in family.teachers:
            name, arguments = family.resolve(head, rest if colon else None)
            return Source(name, family.name, module, arguments, family.install, family.requirements)
    for _ in _families(strict=True):  # now a broken plug-in may be the reason: let it speak
        pass
    raise _unknown(spec, head)


def _unknown(spec: str, head: str) -> TeacherError:
    names = [row.name for row in registered_teachers()]
    heads = {name.partition(":")[0]: name for name in names}
    close = difflib.get_close_matches(head.lower(), heads, n=3, cutoff=0.5)
    close = [heads[name] for name in close]
    return TeacherError(
        f"there is no teacher {spec!r}",
        expected="a name that `mlff-distiller teachers` lists, FAMILY:PATH, or for any ASE "
        "calculator ase:package.module:factory",
        found=spec,
        remedy=f"did you mean {' or '.join(close)}?" if close else "",
    )


def _families(*, strict: bool) -> Iterator[tuple[Family, str]]:
    """Each family and the module its ``load`` is in."""
    for module in _OURS:
        yield module.FAMILY, module.__name__
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            yield entry.load().FAMILY, entry.module
        except Exception as error:
            if strict:
                raise TeacherError(
                    f"the teacher plug-in {entry.name!r} ({entry.value}) cannot be used",
                    expected="a module with FAMILY and load(arguments, device, allow_download)",
                    found=f"{type(error).__name__}: {error}",
                    remedy="repair or uninstall the distribution that registers it",
                ) from error
