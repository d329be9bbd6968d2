"""``validate``: every check that applies to a force field and a structure, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from ase import Atoms

from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.check import Check, Measured, merged
from mlff_distiller.validation.checks import CHECKS
from mlff_distiller.validation.criteria import CRITERIA
from mlff_distiller.validation.partial import Partial
from mlff_distiller.validation.series import series_of
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.validation.subject import OnProgress, Subject
from mlff_distiller.validation.verdict import Finding, judge

SCHEMA = 1
Profile = Literal["short", "full"]


@dataclass(frozen=True)
class Examined:
    """What the checks of a profile found of one subject."""

    findings: dict[str, Finding] = field(default_factory=dict)
    measurements: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


NOTHING = Examined()


def examine(
    subject: Subject,
    profile: Profile = "full",
    known: Examined = NOTHING,
    partial: Partial | None = None,
) -> Examined:
    """Make the checks that apply; ``partial`` keeps those that are done.

    A check all of whose criteria ``known`` has findings of, which belong to the same subject, is
    not made again: the same question has one answer.
    """
    judge({}, subject.settings.limits)
    measured = dict(known.measurements)
    of_teacher: dict[str, Finding] = {}
    for check in CHECKS:
        if profile == "short" and not check.short:
            continue
        if check.criteria and all(name in known.findings for name in check.criteria):
            subject.findings |= {name: known.findings[name] for name in check.criteria}
        elif check.applies(subject):
            found = _made(check, subject, partial)
            subject.findings |= found.findings
            measured = merged(measured, found.numbers)
            of_teacher |= found.of_teacher
    remarks = judge(of_teacher, subject.settings.limits)["reasons"]
    return Examined(
        subject.findings, _finite(measured), tuple(f"the teacher itself: {why}" for why in remarks)
    )


def _made(check: Check, subject: Subject, partial: Partial | None) -> Measured:
    if partial is None or not check.keep:
        return check.made(subject)
    return partial.check(f"check {CHECKS.index(check)}", lambda: check.made(subject))


def validate(
    force_field: ForceField,
    atoms: Atoms,
    settings: ValidationSettings | None = None,
    *,
    teacher: ForceField | None = None,
    training: Sequence[Atoms] = (),
    test: Sequence[Atoms] = (),
    profile: Profile = "full",
    known: Examined = NOTHING,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> dict[str, Any]:
    """Measure whether ``force_field`` obeys physics in ``atoms``, and how it resembles ``teacher``.

    Returns ``system``, ``measurements``, ``verdict``, and ``series`` for plots, which a certificate
    would be too large with; fit for JSON. Checks against a teacher and of leakage are made where
    there is one, and test structures. ``remarks`` of the verdict say where the teacher itself has a
    hole at short distance: its dynamics may fall into it, and then is not a yardstick.

    Raises
    ------
    ConfigError
        A limit is for a check that does not exist.
    """
    settings = settings or ValidationSettings()
    judge({}, settings.limits)
    subject = Subject(
        force_field, atoms, settings, teacher, training, test, on_progress=on_progress
    )
    found = examine(subject, profile, known)
    return {**summary(subject, found, profile), "series": series_of(subject)}


def summary(subject: Subject, found: Examined, profile: Profile) -> dict[str, Any]:
    """The part of a certificate that tells what was found."""
    verdict = judge(found.findings, subject.settings.limits)
    return {
        "schema": SCHEMA,
        "profile": profile,
        "system": {
            "formula": subject.atoms.get_chemical_formula(),
            "n_atoms": len(subject.atoms),
            "kind": subject.kind,
        },
        "measurements": found.measurements,
        "verdict": {**verdict, "remarks": list(found.remarks)},
    }


def worst_of(named: Mapping[str, Mapping[str, Finding]]) -> dict[str, Finding]:
    """The worst finding for each criterion, of several structures' findings by name."""
    names = dict.fromkeys(name for findings in named.values() for name in findings)
    return {name: _worst(name, named) for name in names}


def _worst(criterion: str, named: Mapping[str, Mapping[str, Finding]]) -> Finding:
    sign = 1.0 if CRITERIA[criterion].at_most else -1.0

    def badness(finding: Finding) -> float:
        value = finding.value
        return float("inf") if value is None or value != value else sign * value

    found = {name: own[criterion] for name, own in named.items() if criterion in own}
    place = max(found, key=lambda name: badness(found[name]))
    if len(named) == 1:
        return found[place]
    words = "; ".join(part for part in (place, found[place].words) if part)
    return Finding(found[place].value, words)


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not isfinite(value) else value
