"""A check: a question asked of a force field, with how it is measured, judged and drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlff_distiller.errors import DistillerError
from mlff_distiller.plotting import Panel
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

Tree = Mapping[str, Any]


def _always(subject: Subject) -> bool:
    return True


def _undrawn(measured: Tree, series: Tree) -> list[Panel]:
    return []


@dataclass(frozen=True)
class Measured:
    """What a check found. ``numbers`` becomes part of ``measurements``: a tree fit for JSON."""

    findings: dict[str, Finding] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    of_teacher: dict[str, Finding] = field(default_factory=dict)
    """What the teacher itself shows: remarks, which do not count in the verdict."""


@dataclass(frozen=True)
class Check:
    """One question.

    ``criteria`` names the rows of `CRITERIA` that judge it. ``short`` checks belong to the profile
    that ``distill`` runs. ``panels`` draws ``measurements`` and ``series`` in the page's
    ``section``; it finds nothing there if the check was not made.
    """

    criteria: tuple[str, ...]
    measure: Callable[[Subject], Measured]
    applies: Callable[[Subject], bool] = _always
    short: bool = False
    keep: bool = True
    """Whether an interrupted validation need not make it again; not if it leaves more behind."""
    section: str = ""
    panels: Callable[[Tree, Tree], list[Panel]] = _undrawn

    def made(self, subject: Subject) -> Measured:
        """`measure`, with every criterion "not measured" where the force field gives no answer."""
        try:
            return self.measure(subject)
        except DistillerError as error:
            why = str(error).split("\n")[0]
            return Measured({name: Finding(None, why) for name in self.criteria})


def merged(one: Tree, other: Tree) -> dict[str, Any]:
    """Both trees in one; lists of equally many rows are merged row by row."""
    whole = dict(one)
    for key, value in other.items():
        mine = whole.get(key)
        if isinstance(mine, Mapping) and isinstance(value, Mapping):
            whole[key] = merged(mine, value)
        elif _are_rows(mine, value):
            whole[key] = [merged(a, b) for a, b in zip(mine, value, strict=True)]  # type: ignore[arg-type]
        else:
            whole[key] = value
    return whole


def _are_rows(one: Any, other: Any) -> bool:
    both = isinstance(one, list) and isinstance(other, list) and len(one) == len(other)
    return both and all(isinstance(row, Mapping) for row in [*one, *other])
