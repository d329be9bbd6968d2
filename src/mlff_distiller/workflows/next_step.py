"""What a run does next to reach its goal, and when it stops: pure arithmetic on what it measured.

A turn of `distill` ends with a student and its relative force errors (one minus the fidelity): on
frames that trained it, on branches held out, and where its own dynamics led. What a student gets
wrong where it was trained is a matter of size and of training (``fit``); what it gets wrong beyond
that is a matter of labels (``gap``). Each shrinks as a power of what is spent on it,

    fit ~ updates^-d,    gap ~ labels^-c       (Hestness et al., arXiv:1712.00409)

and the next turn takes the step that promises the largest fall of the error per second. The
exponents begin at `_PRIORS` and are those of the run's own turns as soon as two can be compared.
Once a student has been trained longer, what that took off its error on held-out frames counts, and
what is left falls as the inverse of the updates:

    error = floor + b / updates

Where the suite trained a student longer twice in a row, the second time took 0.14 (an alloy) and
0.29 (water) of what the first did (``benchmarks/results/suite_h200.json``); this law says 0.22 and
0.25.

Where a student errs more beyond its training structures than on them, longer training widens that
gap, and labels come first.

A larger student is for where this one misses the goal with all that is left of the budgets: at
once if its fit does, which labels do not mend; else when labels, which serve every student to come,
promise less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from mlff_distiller.students.registry import UPDATE_COST
from mlff_distiller.workflows.goal import Decision, Goal, Kind, Step, Turn

_PRIORS = {"labels": 0.4, "longer": 0.2, "larger": 0.15}
"""Exponents of the gap in labels, and of the fit in updates and in a student's cost."""
_LEAST_GAIN = 0.02
"""A turn that lowers the error by less has not helped."""
_FACTORS = {"labels": (1.5, 3.0), "longer": (2.0, 4.0)}
"""Smallest and largest factor of what one turn may spend more on labels or training."""
_MOST_UPDATES = 32
"""At most as many times the updates of the first turn are tried."""
_COST_OF_OTHERS = 6.0
"""An estimate of what an update costs, for students that `UPDATE_COST` does not name."""
_TIMES_AS_LONG = 2.0
"""The first training of another student takes at most this many times that of the one before."""


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
    words = f"its error is {_percent(last.error)}, and {_percent(last.fit)} where it was trained"
    offers = [offer for offer in _offers(turns, goal, laws) if offer[1] < last.error]
    affordable = [offer for offer in offers if offer[2] <= seconds_left]
    if not affordable:
        if offers:
            return Decision(None, f"{words}; no further turn fits into --max-hours")
        if last.fit > goal.error:
            return Decision(None, f"{words}; its capacity is the limit: no larger student is left")
        return Decision(None, f"{words}; every budget for this student is used up")
    if last.error <= goal.error and affordable[0][0].kind == "labels" and not last.approved:
        return Decision(affordable[0][0], f"{', '.join(last.failed)} failed; {words}")
    by_kind = {offer[0].kind: offer for offer in affordable}
    if _stuck(turns) and "larger" not in by_kind:
        why = "two turns in a row have not helped, and no larger student is left"
        words = f"{words}; its capacity is the limit: {why}"
        return Decision(None, f"{words}{_of_committee(last, goal)}")
    least_fit, least_gap = _reach(turns, goal, laws, seconds_left)
    kinds: tuple[Kind, ...] = ("labels", "longer")
    if "larger" in by_kind and (_stuck(turns) or least_fit > goal.error):
        kinds = ("larger",)
    elif "larger" in by_kind and least_fit + least_gap > goal.error:
        kinds = ("labels", "larger")
    elif "labels" in by_kind and last.error - last.fit > last.fit:
        kinds = ("labels",)
    wanted = [by_kind[kind] for kind in kinds if kind in by_kind] or affordable
    best = max(wanted, key=lambda offer: math.log(last.error / offer[1]) / offer[2])
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
    turns: Sequence[Turn], goal: Goal, laws: Mapping[str, float]
) -> Iterable[tuple[Step, float, float]]:
    """Steps, each with the error it promises and the seconds it costs."""
    last, first = turns[-1], turns[0]
    fit, gap, aim = last.fit, last.error - last.fit, 0.9 * goal.error
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
        promised = {one: trained(turns, laws, one)[1] for one in _FACTORS["longer"]}
        factor = next((one for one in promised if promised[one] <= aim), max(promised))
        step = _step("longer", last, goal, factor, "longer training")
        yield step, promised[factor], factor * train_seconds + examine
    following = _next_student(turns, goal)
    if following is not None:
        ratio = _cost_of(following) / _cost_of(last.step.student)
        step = _with_student(following, last, f"a larger student: {following}")
        train = ratio * train_seconds * step.updates / last.step.updates
        yield step, gap + fit * ratio ** -laws["larger"], train + examine


def trained(turns: Sequence[Turn], laws: Mapping[str, float], factor: float) -> tuple[float, float]:
    """The fit and the error that ``factor`` times the updates promise.

    What training takes off the error is seen on held-out branches, which stay while labels do;
    frames of a student's own dynamics are others each time.
    """
    last = turns[-1]
    for before, after in reversed(_pairs(turns)):
        spent = after.step.updates / before.step.updates
        if (after.step.kind, after.step.student) != ("longer", last.step.student) or spent < 1.05:
            continue
        share = (1.0 - 1.0 / factor) * _seen(after) / (_seen(last) * (spent - 1.0))
        off_fit, off_error = before.fit - after.fit, before.errors[0] - after.errors[0]
        return (  # no floor is below zero
            max(last.fit / factor, last.fit - share * max(0.0, off_fit)),
            max(last.error / factor, last.error - share * max(0.0, off_error)),
        )
    takes = last.fit * (1.0 - factor ** -laws["longer"])
    return last.fit - takes, last.error - takes


def _seen(turn: Turn) -> float:
    """How often its training has seen each label, in the measure of `_step`."""
    return turn.step.updates / math.sqrt(turn.n_labels)


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
    turns: Sequence[Turn], goal: Goal, laws: Mapping[str, float], seconds_left: float
) -> tuple[float, float]:
    """The fit and the gap that stay if all that is left buys training, and all buys labels.

    The gap counts once a turn has shown what labels gain, or none are left: the prior is a guess,
    and where labels are few they help any student.
    """
    last = turns[-1]
    updates = _MOST_UPDATES * turns[0].step.updates / last.step.updates
    updates = min(updates, seconds_left / max(1.0, last.train_seconds))
    labels = goal.settings.max_labels / last.n_labels
    bought = seconds_left / max(1e-3, _seconds_per_label(turns))
    labels = min(labels, 1.0 + bought / last.n_labels)
    fit, _ = trained(turns, laws, max(1.0, updates))
    is_known = any(turn.step.kind == "labels" for turn in turns) or not _has_room(last, goal)
    gap = (last.error - last.fit) * max(1.0, labels) ** -laws["labels"]
    return fit, gap if is_known else 0.0


def exponents(turns: Sequence[Turn]) -> dict[str, float]:
    """Those of the laws: means of the prior and of each pair of turns that shows one.

    Labels are judged by the error that was the larger one before, with the fit of before, as they
    are promised. A student that has learned may go where none went: its other error tells of that.
    """
    found: dict[str, list[float]] = {name: [value] for name, value in _PRIORS.items()}
    for before, after in _pairs(turns):
        kind = after.step.kind
        if kind not in found:
            continue
        gain = before.fit / after.fit
        if kind == "labels":
            spent = after.n_labels / before.n_labels
            error = after.errors[before.errors.index(before.error)]
            gain = max(1e-4, before.error - before.fit) / max(1e-4, error - before.fit)
        elif kind == "longer":
            spent = after.step.updates / before.step.updates
        else:
            spent = _cost_of(after.step.student) / _cost_of(before.step.student)
        if spent > 1.05:
            found[kind].append(_within(math.log(gain) / math.log(spent), 0.02, 1.5))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _pairs(turns: Sequence[Turn]) -> list[tuple[Turn, Turn]]:
    """Turns that follow each other, where the errors of both are known."""
    return [pair for pair in pairwise(turns) if all(turn.is_measured for turn in pair)]


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
