"""Errors on labelled structures that did not train."""

from __future__ import annotations

from mlff_distiller.validation.accuracy import Compared, answers, labelled, labels
from mlff_distiller.validation.breakdown import breakdown, distance_to
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

MOST_FRAMES = 500
"""Test structures that are looked at, evenly spaced."""


def _applies(subject: Subject) -> bool:
    return any(labelled([frame]) for frame in subject.test)


def _measure(subject: Subject) -> Measured:
    frames = labelled(subject.test)
    frames = frames[:: max(1, len(frames) // MOST_FRAMES)]
    theirs = labels(frames)
    mine = answers(subject.force_field, frames)
    subject.compared["test"] = Compared(frames, theirs, mine)
    tables = breakdown(frames, theirs, mine, distance_to(subject.training, frames))
    words = f"against the labels of {len(frames)} test structures"
    return Measured(
        {"test_forces_fidelity": Finding(tables["forces"]["forces_fidelity"], words)},
        {"accuracy": {"test": tables}},
    )


CHECK = Check(("test_forces_fidelity",), _measure, _applies, short=True)
