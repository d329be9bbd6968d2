"""What a run does next to reach its goal, and when it stops: pure arithmetic on what it measured.

A turn of `distill` ends with a student and its relative force errors (one minus the fidelity): on
frames that trained it, on branches held out, and where its own dynamics led. What a student gets
wrong where it was trained is a matter of size and of training (``fit``); what it gets wrong beyond
that is a matter of labels (``gap``). Each shrinks as a power of what is spent on it,

    fit ~ updates^-d,    gap ~ labels^-c       (Hestness et al., arXiv:1712.00409)

and the next turn takes the step that promises the largest fall of the error per second. The
exponents begin at `_PRIORS` and are those of the run's own turns as soon as two can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from mlff_distiller.students.registry import UPDATE_COST

Kind = Literal["first", "labels", "longer", "larger", "harvest"]

_PRIORS = {"labels": 0.4, "longer": 0.2, "larger": 0.15}
"""Exponents of the gap in labels, and of the fit in updates and in a student's cost."""
_LEAST_GAIN = 0.02
"""A turn that lowers the error by less has not helped."""
_FACTORS = {"labels": (1.5, 3.0), "longer": (2.0, 4.0)}
"""Smallest and largest factor of what one turn may spend more on labels or training."""
_MOST_UPDATES = 32
"""Times the updates of the first turn: beyond it more training is no longer tried."""
_COST_OF_OTHERS = 6.0
"""An estimate of what an update costs, for students that `UPDATE_COST` does not name."""
_TIMES_AS_LONG = 2.0
"""The first training of another student takes at most this many times that of the one before."""


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
        """The larger of the errors on frames that did not train; infinite where there is none."""
        found = [one for one in (self.test_error, self.own_error) if one is not None]
        return max(found) if len(found) == 2 else math.inf

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


def after_harvest(last: Turn, n_structures: int) -> Decision:
    """To learn what production runs met, whatever else the student lacks."""
    labels = last.n_labels + n_structures
    updates = _rounded(last.step.updates * math.sqrt(labels / last.n_labels))
    step = Step("harvest", last.step.student, labels, updates, "labels of what runs have met")
    return Decision(step, "production runs met what the student did not know")


def decide(turns: Sequence[Turn], goal: Goal) -> Decision:
    """What to do after the last of ``turns``, which is not empty."""
    last = turns[-1]
    if last.step.student not in goal.ladder:  # another one has been asked for since
        wanted = goal.ladder[0]
        return Decision(_with_student(wanted, last, wanted), "another student was asked for")
    unseen = sorted({*goal.temperature_K} - {*last.temperature_K})
    if unseen and _has_room(last, goal):
        why = f"labels at {', '.join(f'{kelvin:g}' for kelvin in unseen)} K"
        step = _step("labels", last, goal, _FACTORS["labels"][0], why)
        return Decision(step, "other temperatures were asked for")
    if last.approved and last.error + last.own_uncertainty <= goal.error:
        return Decision(None, "every check passed")
    passed = next((turn for turn in turns[:-1] if turn.approved), None)
    if passed is not None:
        words = f"turn {passed.number + 1} passed every check, within the uncertainty of its error"
        return Decision(None, f"{words}; one more has not made that certain")
    noise = last.teacher_noise or 0.0
    if noise >= math.sqrt(2.0) * goal.error:  # each of two answers is off by 1/sqrt(2) of that
        words = f"the teacher is the limit: two answers to one question differ by {_percent(noise)}"
        return Decision(None, f"{words} of its forces, and the goal allows {_percent(goal.error)}")
    if set(last.failed) == {"speedup"}:
        return _faster(turns, goal)
    spent = sum(turn.seconds for turn in turns)
    ended = _budget(turns, goal, spent)
    if ended:
        return Decision(None, ended)
    if "nve_completed" in last.failed or not math.isfinite(last.error):
        return _unstable(turns, goal)
    choice = _cheapest(turns, goal, 3600.0 * goal.settings.max_hours - spent)
    if last.approved and choice.step is not None:
        words = f"passed within the uncertainty ({_percent(last.own_uncertainty)}) of its error"
        return Decision(choice.step, f"{words}; {choice.diagnosis}")
    return choice


def _budget(turns: Sequence[Turn], goal: Goal, spent: float) -> str:
    """Which budget is used up, in words; empty if none is."""
    settings = goal.settings
    if len(turns) >= settings.max_turns:
        return f"{len(turns)} turns were allowed (goal.max_turns)"
    if spent >= 3600.0 * settings.max_hours:
        return f"{settings.max_hours:g} hours were allowed (--max-hours)"
    return ""


def _faster(turns: Sequence[Turn], goal: Goal) -> Decision:
    """After a student that is right but too slow."""
    last = turns[-1]
    tried = {turn.step.student for turn in turns}
    place = goal.ladder.index(last.step.student)
    if place and goal.ladder[place - 1] not in tried:
        why = "accurate, but too slow: a smaller student"
        return Decision(_with_student(goal.ladder[place - 1], last, why), why)
    return Decision(None, "the student is right, but not fast enough against this teacher")


def _unstable(turns: Sequence[Turn], goal: Goal) -> Decision:
    """After a student whose dynamics broke: labels where it broke, then another student."""
    last = turns[-1]
    broke = [turn for turn in turns if turn.step.student == last.step.student]
    room = _has_room(last, goal)
    if room and sum("nve_completed" in turn.failed for turn in broke) < 3:
        why = "its dynamics breaks: labels where it went"
        return Decision(_step("labels", last, goal, 2.0, why), why)
    following = _next_student(turns, goal)
    if following is None:
        return Decision(None, "its dynamics still breaks, and no other student is left to try")
    why = f"the dynamics of {last.step.student} still breaks: {following}"
    return Decision(_with_student(following, last, why), why)


def _cheapest(turns: Sequence[Turn], goal: Goal, seconds_left: float) -> Decision:
    """The step that promises most per second, or the reason why there is none."""
    last = turns[-1]
    laws = exponents(turns)
    fit = min(last.fit_error if last.fit_error is not None else last.error, last.error)
    gap = last.error - fit
    words = f"its error is {_percent(last.error)}, and {_percent(fit)} where it was trained"
    offers = [offer for offer in _offers(turns, goal, laws, fit, gap) if offer[1] < last.error]
    affordable = [offer for offer in offers if offer[2] <= seconds_left]
    if not affordable:
        if offers:
            return Decision(None, f"{words}; no further turn fits into --max-hours")
        return Decision(None, f"{words}; every budget for this student is used up")
    if last.error <= goal.error and affordable[0][0].kind == "labels" and not last.approved:
        return Decision(affordable[0][0], f"{', '.join(last.failed)} failed; {words}")
    reach = _reach(turns, goal, laws, fit, gap, seconds_left)
    same = [offer for offer in affordable if offer[0].kind in ("labels", "longer")]
    if _stuck(turns) or reach > goal.error or not same:
        other = [offer for offer in affordable if offer[0].kind == "larger"]
        if other:
            return Decision(other[0][0], f"{words}; its capacity is the limit")
        if _stuck(turns):
            why = "two turns in a row have not helped, and no larger student is left"
            return Decision(None, f"{words}; {why}{_of_committee(last, goal)}")
    best = max(affordable, key=lambda offer: math.log(last.error / offer[1]) / offer[2])
    limit = {"labels": "labels are", "longer": "training is", "larger": "its capacity is"}
    return Decision(best[0], f"{words}; {limit[best[0].kind]} the limit")


def _of_committee(turn: Turn, goal: Goal) -> str:
    """That the teacher's members disagree, where they do by more than the goal allows."""
    spread = turn.committee_spread or 0.0
    if spread < goal.error:
        return ""
    return (
        f"; the teacher may be the limit: the members of its committee differ by "
        f"{_percent(spread)} of the forces there"
    )


def _offers(
    turns: Sequence[Turn], goal: Goal, laws: Mapping[str, float], fit: float, gap: float
) -> Iterable[tuple[Step, float, float]]:
    """Steps, each with the error it promises and the seconds it costs."""
    last, first = turns[-1], turns[0]
    aim = 0.9 * goal.error
    per_label, train_seconds = _price(_seconds_per_label(turns)), _price(last.train_seconds)
    examine = _price(last.seconds - last.label_seconds - last.train_seconds)
    if _has_room(last, goal) and gap > 0:
        needed = (gap / max(aim - fit, 0.1 * gap)) ** (1.0 / laws["labels"])
        factor = _within(needed, *_FACTORS["labels"])
        step = _step("labels", last, goal, factor, "labels where its dynamics goes")
        factor = step.labels / last.n_labels
        train = train_seconds * step.updates / last.step.updates
        cost = (step.labels - last.n_labels) * per_label + train + examine
        yield step, fit + gap * factor ** -laws["labels"], cost
    if last.step.updates < _MOST_UPDATES * first.step.updates and fit > 0:
        needed = (fit / max(aim - gap, 0.1 * fit)) ** (1.0 / laws["longer"])
        factor = _within(needed, *_FACTORS["longer"])
        step = _step("longer", last, goal, factor, "longer training")
        yield step, gap + fit * factor ** -laws["longer"], factor * train_seconds + examine
    following = _next_student(turns, goal)
    if following is not None:
        ratio = _cost_of(following) / _cost_of(last.step.student)
        step = _with_student(following, last, f"a larger student: {following}")
        train = ratio * train_seconds * step.updates / last.step.updates
        yield step, gap + fit * ratio ** -laws["larger"], train + examine


def _has_room(last: Turn, goal: Goal) -> bool:
    """Whether the labels that are left to buy would show."""
    return last.n_labels < 0.95 * goal.settings.max_labels


def _step(kind: Kind, last: Turn, goal: Goal, factor: float, why: str) -> Step:
    """More of one thing; updates grow with the root of the labels, for each is seen less often."""
    labels, updates = last.n_labels, last.step.updates
    if kind == "labels":
        labels = min(goal.settings.max_labels, math.ceil(factor * labels))
        updates = _rounded(updates * math.sqrt(labels / last.n_labels))
    else:
        updates = _rounded(factor * updates)
    return Step(kind, last.step.student, labels, updates, why)


def _with_student(student: str, last: Turn, why: str) -> Step:
    """Another student on the same labels, with no more updates than it can pay for."""
    ratio = _cost_of(student) / _cost_of(last.step.student)
    updates = _rounded(last.step.updates * min(1.0, _TIMES_AS_LONG / ratio))
    return Step("larger", student, last.n_labels, updates, why)


def _reach(
    turns: Sequence[Turn],
    goal: Goal,
    laws: Mapping[str, float],
    fit: float,
    gap: float,
    seconds_left: float,
) -> float:
    """The error that this student keeps if all that is left buys training, and all buys labels.

    What labels gain counts only once a turn has shown it: the prior is a guess, and where labels
    are few they help any student.
    """
    last = turns[-1]
    updates = _MOST_UPDATES * turns[0].step.updates / last.step.updates
    updates = min(updates, seconds_left / max(1.0, last.train_seconds))
    labels = goal.settings.max_labels / last.n_labels
    bought = seconds_left / max(1e-3, _seconds_per_label(turns))
    labels = min(labels, 1.0 + bought / last.n_labels)
    is_known = any(turn.step.kind == "labels" for turn in turns)
    rest = gap * max(1.0, labels) ** -laws["labels"] if is_known else 0.0
    return float(fit * max(1.0, updates) ** -laws["longer"] + rest)


def exponents(turns: Sequence[Turn]) -> dict[str, float]:
    """Those of the laws: means of the prior and of each pair of turns that shows one."""
    found: dict[str, list[float]] = {name: [value] for name, value in _PRIORS.items()}
    for before, after in pairwise(turns):
        kind = after.step.kind
        parts = [_parts(before), _parts(after)]
        if kind not in found or None in parts:
            continue
        (fit_0, gap_0), (fit_1, gap_1) = parts  # type: ignore[misc]
        if kind == "labels":
            spent, gain = after.n_labels / before.n_labels, gap_0 / gap_1
        elif kind == "longer":
            spent, gain = after.step.updates / before.step.updates, fit_0 / fit_1
        else:
            spent = _cost_of(after.step.student) / _cost_of(before.step.student)
            gain = fit_0 / fit_1
        if spent > 1.05:
            found[kind].append(_within(math.log(gain) / math.log(spent), 0.02, 1.5))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _parts(turn: Turn) -> tuple[float, float] | None:
    """The error's part that is there in training already, and the rest; None if unknown."""
    if turn.fit_error is None or not math.isfinite(turn.error):
        return None
    fit = max(1e-4, min(turn.fit_error, turn.error))
    return fit, max(1e-4, turn.error - fit)


def _stuck(turns: Sequence[Turn]) -> bool:
    """Whether two turns in a row with the same student have not helped."""
    if len(turns) < 3 or len({turn.step.student for turn in turns[-3:]}) > 1:
        return False
    return min(turn.error for turn in turns[-2:]) > (1.0 - _LEAST_GAIN) * turns[-3].error


def _next_student(turns: Sequence[Turn], goal: Goal) -> str | None:
    """The fastest one that is slower than every one tried; None if none is left."""
    tried = {turn.step.student for turn in turns}
    places = [place for place, name in enumerate(goal.ladder) if name in tried]
    left = goal.ladder[max(places) + 1 :]
    return left[0] if left else None


def _seconds_per_label(turns: Sequence[Turn]) -> float:
    n = sum(turn.n_new_labels for turn in turns)
    return sum(turn.label_seconds for turn in turns) / n if n else 0.0


def _price(seconds: float) -> float:
    """The nearest power of two: an interrupted run, whose times differ, decides alike."""
    return float(2.0 ** round(math.log2(max(seconds, 1e-3))))


def _cost_of(student: str) -> float:
    return UPDATE_COST.get(student, _COST_OF_OTHERS)


def _within(value: float, least: float, most: float) -> float:
    return min(most, max(least, value))


def _rounded(updates: float) -> int:
    return max(1, int(float(f"{updates:.2g}")))


def _percent(error: float) -> str:
    return f"{100.0 * error:.1f} %" if math.isfinite(error) else "unknown size"


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
