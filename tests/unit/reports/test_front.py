"""The front of accuracy against speed, and its plot."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.reports.pages import ATTACK, Page, assert_safe, browse

from mlff_distiller.reports.front import non_dominated, trials_panel, write_front


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 2), min_size=1, max_size=12))
def test_front_is_what_nothing_beats(points):
    expected = [
        not any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point
            for other in points
        )
        for point in points
    ]
    assert non_dominated(np.array(points, float)).tolist() == expected


def test_no_points():
    assert non_dominated(np.empty((0, 2))).tolist() == []


def row(number, student, ms, mae, on_front):
    settings = {"student": student, "training.learning_rate": 0.0123456}
    return {
        "number": number,
        "settings": settings,
        "status": "complete" if mae else "pruned",
        "ms_per_step": ms,
        "us_per_atom": ms,
        "forces_mae_meV_per_A": mae,
        "on_front": on_front,
    }


TRIALS = [
    row(0, "nep", 0.3, 90.0, True),
    row(1, "nep", 0.5, 95.0, False),
    row(2, "painn-32x2", 4.0, 40.0, True),
    row(3, "painn-64x2", 9.0, None, False),
]


def search(trials, best=2, system="C9H8O4"):
    """What ``tune.json`` holds."""
    known = {"system": {"formula": system}, "device": "cpu", "limit_ms_per_step": 5.0}
    return known | {"trials": trials, "best": best}


def test_every_trial_with_an_error_is_drawn_once_and_the_limit_and_the_choice_are_seen():
    panel = trials_panel(TRIALS, 5.0, 2, "C9H8O4")
    traces = {trace.name: trace for trace in panel.figure.data}
    assert set(traces) == {"limit", "front", "nep", "painn", "chosen"}
    assert traces["nep"].marker.symbol != traces["painn"].marker.symbol
    assert list(traces["nep"].x) == [0.3, 0.5]
    assert list(traces["nep"].marker.opacity) == [1.0, 0.4]
    assert (list(traces["painn"].x), list(traces["painn"].y)) == ([4.0], [40.0])
    assert list(traces["front"].x) == [0.3, 4.0]
    assert set(traces["limit"].x) == {5.0}
    assert list(traces["chosen"].x) == [4.0]
    low, high = 10.0 ** np.array(panel.figure.layout.xaxis.range)
    assert low < 0.3
    assert high > 5.0
    assert "left out: 1" in panel.note


@pytest.mark.parametrize("name", ["run", ATTACK], ids=["as it is", "hostile"])
def test_a_browser_draws_the_front_and_the_page_loads_nothing(tmp_path, name):
    trials = [*TRIALS, row(4, name, 2.0, 60.0, True)]
    write_front(tmp_path / "report.html", search(trials, system=name), name)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert name in page.text
    assert_safe(page)
    figures = json.loads(page.scripts[1])
    assert list(figures) == ["front-0"]
    assert "<img" not in json.dumps(figures)
    dom, messages = browse(tmp_path, "--dump-dom")
    assert not re.findall(r".*(?:CONSOLE|Uncaught).*", messages)
    assert dom.count('class="trace ') == len(figures["front-0"]["data"])
    assert dom.count('class="csv"') == 1


def test_nothing_to_draw(tmp_path):
    trials = [row(0, "nep", 9.0, None, False)]
    assert trials_panel(trials, 1.0, None, "Cu4").figure is None
    write_front(tmp_path / "report.html", search(trials, best=None), "run")
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "no trial has an error" in text
    assert "pruned" in text
