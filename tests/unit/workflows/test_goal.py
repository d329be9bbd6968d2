"""What a run does next: each diagnosis from errors that call for it, and when it ends."""

import itertools
import json
import math
from dataclasses import replace

import pytest

from mlff_distiller.students.registry import FASTEST, architectures
from mlff_distiller.workflows.advice import sentence
from mlff_distiller.workflows.goal import (
    Goal,
    GoalSettings,
    Step,
    Turn,
    of_plain,
    to_plain,
)
from mlff_distiller.workflows.next_step import decide, exponents, trained

LADDER = ("nep", "nep-large", "painn-32x2")
GOAL = Goal(0.05, GoalSettings(), LADDER)
BAD = {"test_forces_fidelity": 0.9}


def turn(fit, test, own=None, *, number=0, labels=300, updates=8000, student="nep", **more):
    step = Step("first" if number == 0 else "labels", student, labels, updates, "")
    own = test if own is None else own
    failed = more.pop("failed", BAD if max(test, own) > 0.05 else {})
    times = {"label_seconds": 30.0, "n_new_labels": 300, "train_seconds": 20.0, "seconds": 80.0}
    return Turn(number, step, labels, fit, test, own, 0.001, failed, **{**times, **more})


@pytest.mark.parametrize(("seconds", "hours"), [(80.0, "0.4"), (2479.0, "1.4"), (4e5, "220")])
def test_advice_asks_for_more_hours_than_a_long_turn_took(seconds, hours):
    best, goal = (
        turn(0.02, 0.1, seconds=seconds),
        replace(GOAL, settings=GoalSettings(max_hours=0.2)),
    )
    check = {"name": "test_forces_fidelity", "value": 0.9, "limit": 0.95}
    assert sentence(check, best, goal).endswith(f"goes on with --max-hours {hours}.")


@pytest.mark.parametrize(
    ("student", "remedy"),
    [
        ("painn-32x2", f"take a faster student (--student {FASTEST}), or accept it"),
        (FASTEST, "needed: accept it"),
    ],
)
def test_advice_names_a_faster_student_where_there_is_one(student, remedy):
    assert any(next(iter(own.presets)) == FASTEST for own in architectures().values())
    check = {"name": "speedup", "value": 3.0, "limit": 10.0}
    assert remedy in sentence(check, turn(0.02, 0.03, student=student), GOAL)


def test_an_approved_student_ends_the_run():
    decision = decide([turn(0.02, 0.03)], GOAL)
    assert decision.step is None
    assert decision.diagnosis == "every check passed"


def test_one_that_passes_within_its_uncertainty_goes_on():
    close = replace(turn(0.02, 0.0495), own_uncertainty=0.002)
    decision = decide([close], GOAL)
    assert decision.step is not None
    assert "uncertainty" in decision.diagnosis


def test_one_more_turn_is_all_that_an_uncertain_pass_gets():
    close = replace(turn(0.02, 0.0495), own_uncertainty=0.002)
    decision = decide([close, turn(0.02, 0.051, number=1)], GOAL)
    assert decision.step is None
    assert "turn 1 passed every check" in decision.diagnosis


def test_a_check_that_is_no_matter_of_forces_is_named():
    failed = {"npt_volume_difference_percent": 3.0}
    decision = decide([turn(0.02, 0.03, failed=failed)], GOAL)
    assert decision.step.kind == "labels"
    assert decision.diagnosis.startswith("npt_volume_difference_percent failed")


def test_a_gap_asks_for_labels_and_enough_of_them():
    decision = decide([turn(0.02, 0.07)], GOAL)
    assert decision.step.kind == "labels"
    assert "labels are the limit" in decision.diagnosis
    # The gap of 0.05 must fall to 0.025: with the prior exponent that takes more than 3 times.
    assert decision.step.labels == 900
    assert decision.step.updates > 8000
    near = decide([turn(0.02, 0.052)], GOAL)
    assert near.step.labels < 600


def test_dear_labels_and_a_poor_fit_ask_for_training():
    decision = decide([turn(0.05, 0.056, label_seconds=3000.0)], GOAL)
    assert decision.step.kind == "longer"
    assert decision.step.labels == 300
    assert decision.step.updates > 8000


def test_a_fit_far_from_the_goal_asks_for_another_student():
    decision = decide([turn(0.15, 0.16)], GOAL)
    assert decision.step.student == "nep-large"
    assert "capacity is the limit" in decision.diagnosis
    again = [turn(0.15, 0.16), turn(0.14, 0.15, number=1, student="nep-large")]
    assert decide(again, GOAL).step.student == "painn-32x2"


def test_labels_come_before_a_larger_student_while_they_promise_more():
    # Labels times 3 have halved the gap, and may be times 3.3 once more: it stays above the goal.
    turns = [turn(0.04, 0.16), turn(0.04, 0.10, number=1, labels=900)]
    assert decide(turns, GOAL).step.kind == "labels"
    all_labels = replace(GOAL, settings=GoalSettings(max_labels=900))
    assert decide(turns, all_labels).step.student == "nep-large"
    assert decide([turn(0.08, 0.11)], GOAL).step.kind == "longer"  # what they gain is not known yet
    # Here they have not helped.
    turns = [turn(0.04, 0.10), turn(0.05, 0.10, number=1, labels=900)]
    assert decide(turns, GOAL).step.student == "nep-large"


def course(*rows):
    """Turns from kind, student, labels, updates (1000), errors (%): fit, test, own; and seconds."""
    known = []
    for kind, student, labels, updates, fit, test, own, *times in rows:
        one = turn(fit / 100, test / 100, own / 100, number=len(known), labels=labels)
        new = labels - (known[-1].n_labels if known else 0)
        names = ("label_seconds", "train_seconds", "seconds")
        times = dict(zip(names, times, strict=True), n_new_labels=new)
        known.append(replace(one, step=Step(kind, student, labels, 1000 * updates, ""), **times))
    return known


ALLOY = course(
    ("first", "nep", 300, 8, 5.3, 6.1, 5.7, 45, 25, 98),
    ("longer", "nep", 300, 32, 4.4, 5.3, 4.9, 0, 44, 59),
    ("longer", "nep", 300, 110, 4.0, 5.1, 4.6, 0, 175, 192),
)
MOLECULE = course(
    ("first", "nep", 300, 8, 4.9, 21.4, 12.3, 45, 25, 96),
    ("labels", "nep", 900, 14, 6.7, 12.9, 33.3, 55, 35, 121),
    ("larger", "nep-large", 900, 14, 4.7, 11.9, 9.8, 0, 100, 120),
)
STRAINED = course(
    ("first", "nep", 300, 8, 34.5, 38.0, 50.0, 81, 25, 142),
    ("larger", "nep-large", 300, 8, 30.3, 36.0, 50.0, 0, 31, 65),
)


@pytest.mark.parametrize("hours", [0.3, 4.0])
@pytest.mark.parametrize(
    ("turns", "kinds"),
    [
        (ALLOY, ["longer", "labels", "labels"]),  # what training still takes off is too little
        (MOLECULE, ["labels", "labels", "labels"]),  # far better where it was trained
        (STRAINED, ["larger", "larger"]),  # bad where it was trained
    ],
    ids=["alloy", "molecule", "strained"],
)
def test_what_a_run_on_an_h200_does_next(turns, kinds, hours):
    goal = replace(GOAL, settings=GoalSettings(max_hours=hours))
    steps = [decide(turns[: k + 1], goal).step for k in range(len(turns))]
    assert [step.kind for step in steps] == kinds


def test_a_gap_above_the_fit_asks_for_labels_however_much_they_cost():
    """A molecule on an H200, where longer training took such a student's dynamics apart."""
    dear = {"label_seconds": 900.0}
    for fit, kind in ((0.031, "labels"), (0.04, "longer")):
        decision = decide([turn(fit, 0.045, 0.068, student="nep-large", **dear)], GOAL)
        assert decision.step.kind == kind


def test_training_goes_on_where_it_has_helped_and_labels_are_dear():
    dear = [replace(ALLOY[0], label_seconds=4000.0), *ALLOY[1:]]
    assert decide(dear[:2], GOAL).step.kind == "longer"


def test_what_training_promises_falls_with_what_it_has_brought():
    # Updates times 4 took 0.8 off the error held out: b / updates has 0.27 left.
    laws = exponents(ALLOY[:2])
    fit, error = trained(ALLOY[:2], laws, 4.0)
    assert error == pytest.approx(0.053 - 0.008 / 3 * 0.75)
    assert fit == pytest.approx(0.044 - 0.009 / 3 * 0.75)
    first = trained(ALLOY[:1], exponents(ALLOY[:1]), 4.0)[1]
    assert first == pytest.approx(0.061 - 0.053 * (1 - 4**-0.2))  # no turn has shown it yet
    # Labels times 9 and updates times 3 since: each label has been seen as often.
    more = replace(
        turn(0.044, 0.053, labels=2700, updates=96_000),
        step=Step("labels", "nep", 2700, 96_000, ""),
    )
    assert trained([*ALLOY[:2], more], laws, 4.0)[1] == pytest.approx(error)


def test_a_steep_fall_does_not_promise_an_error_below_zero():
    steep = course(
        ("first", "nep", 300, 8, 40.0, 60.0, 60.0, 45, 25, 98),
        ("longer", "nep", 300, 16, 6.0, 7.0, 8.0, 0, 44, 59),
    )
    assert trained(steep, exponents(steep), 4.0) == pytest.approx((0.06 / 4, 0.08 / 4))
    assert decide(steep, GOAL).step is not None


def test_labels_are_judged_by_the_error_that_asked_for_them():
    # 16.5 above the fit, then 8.0: the other error, 33.3, is where only the new student went.
    shown = math.log(16.5 / 8.0) / math.log(3.0)
    assert exponents(MOLECULE[:2])["labels"] == pytest.approx((0.4 + shown) / 2)


def test_a_student_that_is_asked_for_has_its_capacity_named_once_labels_no_longer_help():
    only = replace(GOAL, ladder=("nep",))
    turns = MOLECULE[:1]
    for _ in range(12):
        step = decide(turns, only).step
        if step is None:
            break
        # Fit and error meet at 8 % as labels grow, however long it is trained.
        apart = 0.08 * (300 / step.labels)
        one = turn(0.08 - apart / 2, 0.08 + apart / 2, number=len(turns), labels=step.labels)
        new = step.labels - turns[-1].n_labels
        turns = [*turns, replace(one, step=step, n_new_labels=new)]
    assert step is None
    assert "labels" in [one.step.kind for one in turns]
    assert "its capacity is the limit" in decide(turns, only).diagnosis


def test_without_another_student_the_run_tries_what_is_left_and_ends():
    only = replace(GOAL, ladder=("nep",))
    turns = [turn(0.15, 0.16)]
    for number in itertools.count(1):
        decision = decide(turns, only)
        if decision.step is None:
            break
        assert decision.step.student == "nep"
        step = decision.step
        turns.append(
            replace(turn(0.15, 0.16, number=number, labels=step.labels), step=step, failed=BAD)
        )
    assert number < 6
    assert "have not helped" in decision.diagnosis


@pytest.mark.parametrize(("fit", "words"), [(0.06, "its capacity is the limit"), (0.03, "budget")])
def test_the_end_of_all_budgets_says_what_is_missing(fit, words):
    goal = Goal(0.05, GoalSettings(max_labels=300), ("nep",))
    turns = [turn(0.07, 0.1), turn(fit, 0.09, number=1, updates=32 * 8000)]
    decision = decide(turns, goal)
    assert decision.step is None
    assert words in decision.diagnosis


def test_broken_dynamics_asks_for_labels_where_it_broke_then_for_another_student():
    broken = {"nve_completed": 0.0, "student_md_forces_fidelity": 0.5}
    turns = [turn(0.02, 0.03, 0.5, failed=broken)]
    assert decide(turns, GOAL).step.kind == "labels"
    turns += [turn(0.02, 0.03, 0.5, number=k, labels=600, failed=broken) for k in (1, 2)]
    assert decide(turns, GOAL).step.student == "nep-large"


def test_noise_of_the_teacher_ends_the_run_and_is_named():
    decision = decide([turn(0.09, 0.10, teacher_noise=0.12)], GOAL)
    assert decision.step is None
    assert "the teacher is the limit" in decision.diagnosis
    assert "12.0 %" in decision.diagnosis
    assert decide([turn(0.04, 0.06, teacher_noise=0.01)], GOAL).step is not None


def test_a_committee_that_disagrees_is_named_where_nothing_helps():
    only = replace(GOAL, ladder=("nep",))
    stuck = [turn(0.04, 0.08, number=k, committee_spread=0.15) for k in range(3)]
    decision = decide(stuck, only)
    assert decision.step is None
    assert "15.0 %" in decision.diagnosis
    assert decide(stuck[:1], only).step is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (GoalSettings(max_turns=1), "max_turns"),
        (GoalSettings(max_hours=0.02), "max-hours"),
    ],
)
def test_budgets_end_the_run(settings, words):
    decision = decide([turn(0.02, 0.07)], replace(GOAL, settings=settings))
    assert decision.step is None
    assert words in decision.diagnosis


def test_another_student_is_taken_when_it_is_asked_for():
    asked = replace(GOAL, ladder=("painn-64x2",))
    decision = decide([turn(0.02, 0.03, updates=64000)], asked)
    assert decision.step.student == "painn-64x2"
    assert decision.step.updates == 21000  # whose training takes twice as long as the last


def test_other_temperatures_are_sampled_when_they_are_asked_for():
    known = turn(0.02, 0.03, temperature_K=(300.0,))
    assert decide([known], replace(GOAL, temperature_K=(300.0,))).step is None
    decision = decide([known], replace(GOAL, temperature_K=(300.0, 600.0)))
    assert decision.step.kind == "labels"
    assert "600 K" in decision.step.why


def test_a_larger_student_does_not_inherit_a_training_that_it_cannot_pay_for():
    turns = [turn(0.15, 0.16, student="nep-large", updates=64000)]
    step = decide(turns, GOAL).step
    assert (step.student, step.updates) == ("painn-32x2", 36000)
    assert decide([turn(0.15, 0.16)], GOAL).step.updates == 8000


def test_labels_never_exceed_the_budget():
    goal = replace(GOAL, settings=GoalSettings(max_labels=400))
    assert decide([turn(0.02, 0.07)], goal).step.labels <= 400


def test_a_slow_student_that_is_right_gives_way_to_a_faster_one_or_ends():
    slow = {"speedup": 3.0}
    turns = [turn(0.02, 0.03, student="painn-32x2", failed=slow)]
    assert decide(turns, GOAL).step.student == "nep-large"
    assert decide([turn(0.02, 0.03, failed=slow)], GOAL).step is None


def test_exponents_move_from_the_prior_to_what_was_measured():
    # Labels times 4: the gap of 0.04 falls to 0.01, so the exponent seen is 1.
    turns = [turn(0.02, 0.06), turn(0.02, 0.03, number=1, labels=1200)]
    prior = exponents(turns[:1])["labels"]
    assert exponents(turns)["labels"] == pytest.approx((prior + 1.0) / 2)


def test_a_turn_comes_back_from_json():
    own = turn(0.02, 0.07)
    for goal in (GOAL, replace(GOAL, settings=GoalSettings(max_turns=1))):
        decision = decide([own], goal)
        assert of_plain(json.loads(json.dumps(to_plain(own, decision)))) == (own, decision)


def test_the_best_turn_is_approved_or_the_nearest():
    near, far = turn(0.02, 0.06), turn(0.02, 0.09, number=1)
    good = turn(0.02, 0.04, number=2)
    broken = turn(0.01, 0.02, number=3, failed={"nve_completed": 0.0})
    assert min([near, far, good, broken], key=lambda one: one.badness) == good
    assert min([near, far, broken], key=lambda one: one.badness) == near


def test_without_frames_the_error_is_unknown_and_the_dynamics_is_to_blame():
    unknown = replace(turn(0.02, 0.03), own_error=None, failed={"student_md_forces_fidelity": None})
    assert math.isinf(unknown.error)
    assert decide([unknown], GOAL).step.kind == "labels"
