"""The front of accuracy against speed, and its plot."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff_distiller.reports.front import front_page, front_panel, non_dominated


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
        "ms_per_step": ms,
        "forces_mae_meV_per_A": mae,
        "on_front": on_front,
    }


def test_every_trial_with_an_error_is_drawn_once_and_the_limit_and_the_choice_are_seen():
    rows = [
        row(0, "nep", 0.3, 90.0, True),
        row(1, "nep", 0.5, 95.0, False),
        row(2, "painn-32x2", 4.0, 40.0, True),
        row(3, "painn-64x2", 9.0, None, False),
    ]
    panel = front_panel(rows, 5.0, 2, "C9H8O4")
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
    page = front_page(panel, "<run>")
    assert "&lt;run&gt;" in page
    assert "<script src" not in page


def test_nothing_to_draw():
    panel = front_panel([row(0, "nep", 9.0, None, False)], 1.0, None, "Cu4")
    assert panel.figure is None
    assert "no trial has an error" in front_page(panel, "run")
