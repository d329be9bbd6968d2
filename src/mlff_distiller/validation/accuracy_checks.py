"""Errors where the force field's own dynamics leads, and on labelled test structures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms

from mlff_distiller.errors import DistillerError
from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.breakdown import (
    Answers,
    answers,
    breakdown,
    environment_distance,
    labelled,
    labels,
)
from mlff_distiller.validation.verdict import Finding

_MOST_TEST = 500
"""Test structures, evenly."""


def own_frames_findings(
    force_field: ForceField,
    teacher: ForceField,
    frames: Sequence[Atoms],
    training: Sequence[Atoms],
) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Frames of the force field's dynamics, scored by the teacher."""
    name = "student_md_forces_fidelity"
    if not frames:
        return {name: Finding(None, "there are no frames")}, {}
    try:
        theirs = answers(teacher, frames)
        tables = _tables(force_field, frames, theirs, training)
    except DistillerError as error:
        return {name: Finding(None, str(error).split("\n")[0])}, {}
    return {name: Finding(tables["forces"]["forces_fidelity"])}, tables


def labelled_findings(
    force_field: ForceField, test: Sequence[Atoms], training: Sequence[Atoms]
) -> tuple[dict[str, Finding], dict[str, Any]]:
    """Test structures that carry labels; nothing is asked of others."""
    frames = labelled(test)
    frames = frames[:: max(1, len(frames) // _MOST_TEST)]
    if not frames:
        return {}, {}
    name = "test_forces_fidelity"
    try:
        tables = _tables(force_field, frames, labels(frames), training)
    except DistillerError as error:
        return {name: Finding(None, str(error).split("\n")[0])}, {}
    words = f"beside the labels that {len(frames)} test structures carry"
    return {name: Finding(tables["forces"]["forces_fidelity"], words)}, tables


def _tables(
    force_field: ForceField, frames: Sequence[Atoms], theirs: Answers, training: Sequence[Atoms]
) -> dict[str, Any]:
    distance = environment_distance(frames, training) if training else None
    return breakdown(frames, theirs, answers(force_field, frames), distance)
