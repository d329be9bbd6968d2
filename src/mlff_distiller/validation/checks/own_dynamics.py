"""Errors where the force field's own dynamics leads, by the teacher's answers for its frames."""

from __future__ import annotations

from mlff_distiller.validation.accuracy import Compared, answers
from mlff_distiller.validation.breakdown import breakdown, distance_to
from mlff_distiller.validation.check import Check, Measured
from mlff_distiller.validation.subject import Subject
from mlff_distiller.validation.verdict import Finding

NAME = "student_md_forces_fidelity"


def _measure(subject: Subject) -> Measured:
    frames = subject.own_frames
    if not frames:
        return Measured({NAME: Finding(None, "there are no frames")})
    frames, theirs = subject.scored(frames)
    mine = answers(subject.force_field, frames)
    subject.compared["student_md"] = Compared(frames, theirs, mine)
    tables = breakdown(frames, theirs, mine, distance_to(subject.training, frames))
    errors = {name: value for name, value in tables["forces"].items() if name != "n_atoms"}
    return Measured(
        {NAME: Finding(tables["forces"]["forces_fidelity"])},
        {"accuracy": {"student_md": tables}, "teacher": {"student_md": errors}},
    )


CHECK = Check((NAME,), _measure, lambda subject: subject.teacher is not None, short=True)
