"""What may guard an evaluation or a simulation by its student's own estimate of its errors."""

from __future__ import annotations

from collections.abc import Sequence

from mlff_distiller.errors import ConfigError
from mlff_distiller.students import Student

EVERY = 50
"""Steps between looks: one costs some part of a step."""


def check_guard(guard: str, known: Sequence[str], student: Student) -> None:
    """Raise ``ConfigError`` if ``guard`` is not ``known``, or the student cannot tell."""
    if guard not in known:
        raise ConfigError("unknown guard", expected=", ".join(known), found=guard)
    if guard != "off" and student.error_model is None:
        raise ConfigError(
            f"guard={guard} needs a student that estimates its errors",
            expected="one that this version has trained, with labels that were held out",
            found="a student without an error model",
            remedy="train it again, or take guard=off",
        )
