"""What a run is to reach, and what its turns did and found: records, kept as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

Kind = Literal["first", "labels", "longer", "larger", "harvest"]


@validated(frozen=True, config=ConfigDict(extra="forbid"))
class GoalSettings:
    """How far ``distill`` goes to have its student approved.

    ``max_labels`` counts all labels that train or test; ``max_hours`` the time of all turns,
    continued runs included. A turn ends with a student and its checks.
    """

    max_labels: Annotated[int, Field(ge=10)] = 3000
    max_hours: Annotated[float, Field(gt=0)] = 4.0
    max_turns: Annotated[int, Field(ge=1)] = 12


@dataclass(frozen=True)
class Step:
    """What the next turn does, and why in a few words."""

    kind: Kind
    student: str
    labels: int
    """In all, after it."""
    updates: int
    why: str


@dataclass(frozen=True)
class Turn:
    """What one turn did and found. Errors are relative force errors; None: not measured."""

    number: int
    step: Step
    n_labels: int
    fit_error: float | None
    test_error: float | None
    own_error: float | None
    own_uncertainty: float
    """Standard error of ``own_error`` over the frames."""
    failed: dict[str, float | None] = field(default_factory=dict)
    """Checks that failed by the limits of now, with their values."""
    label_seconds: float = 0.0
    n_new_labels: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    checks: dict[str, float | None] = field(default_factory=dict)
    """All checks, with their values."""
    temperature_K: tuple[float, ...] = ()
    """Sampled so far."""
    teacher_noise: float | None = None
    """How far the teacher's answers to one question differ, relative to its forces."""
    committee_spread: float | None = None
    """The same for a committee's members, on frames of the student's own dynamics."""
    fell_eV_per_atom: float | None = None
    """How far the teacher's energy on those frames is below that of the structures begun with."""

    @property
    def error(self) -> float:
        """The larger of the errors on frames that did not train; infinite where one is unknown."""
        return max(self.errors)

    @property
    def errors(self) -> tuple[float, float]:
        """On held-out branches and in its own dynamics; infinite where unknown."""
        test, own = (math.inf if one is None else one for one in (self.test_error, self.own_error))
        return test, own

    @property
    def fit(self) -> float:
        """The part of `error` that is there in training already; all of it where unknown."""
        fit = self.error if self.fit_error is None else min(self.fit_error, self.error)
        return max(1e-4, fit)

    @property
    def is_measured(self) -> bool:
        """Whether all three errors are known."""
        return self.fit_error is not None and math.isfinite(self.error)

    @property
    def approved(self) -> bool:
        return not self.failed

    @property
    def badness(self) -> tuple[bool, bool, float]:
        """Orders turns: the smallest is the best one."""
        return not self.approved, "nve_completed" in self.failed, self.error


@dataclass(frozen=True)
class Goal:
    """What is to be reached with what: ``error`` is the largest relative force error allowed."""

    error: float
    settings: GoalSettings
    ladder: tuple[str, ...]
    """Students that may be tried, the fastest first."""
    temperature_K: tuple[float, ...] = ()


@dataclass(frozen=True)
class Decision:
    """``step`` is None where the run ends; ``diagnosis`` says what limits the student."""

    step: Step | None
    diagnosis: str


def to_plain(turn: Turn, decision: Decision) -> dict[str, Any]:
    """A turn and what was decided after it, fit for JSON."""
    return {**asdict(turn), "next": asdict(decision)}


def of_plain(content: Mapping[str, Any]) -> tuple[Turn, Decision]:
    """The inverse of `to_plain`."""
    own = dict(content)
    following = dict(own.pop("next"))
    step = following["step"] and Step(**following["step"])
    return (
        Turn(
            **{
                **own,
                "step": Step(**own["step"]),
                "temperature_K": tuple(own.get("temperature_K", ())),
            }
        ),
        Decision(step, following["diagnosis"]),
    )
