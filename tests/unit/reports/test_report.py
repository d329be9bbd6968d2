"""The page: what it says, what it must never do, and that a browser draws all of it."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.reports.conftest import make_estimates, make_goal
from tests.unit.reports.pages import ATTACK, Page, assert_safe, browse, cut_off_on_a_phone

from mlff_distiller import __version__
from mlff_distiller.plotting import MAX_POINTS
from mlff_distiller.reports.distillation import write_report
from mlff_distiller.reports.distillation_plots import all_panels
from mlff_distiller.reports.evidence import Curve, Evidence, ParitySet, Sampling, Trajectory
from mlff_distiller.reports.words import (
    duration,
    limit,
    number,
    percent,
    powers,
    quantity,
    words,
)

BLOCKS = ("teacher", "student", "data", "accuracy", "stability", "observables", "speed", "verdict")


def render(folder: Path, report: dict[str, Any], evidence: Evidence) -> Page:
    write_report(folder / "report.html", report, evidence)
    return Page((folder / "report.html").read_text("utf-8"))


def leaves(tree: Any) -> list[Any]:
    members = tree.values() if isinstance(tree, dict) else tree
    return [x for m in members for x in (leaves(m) if isinstance(m, dict | list) else [m])]


def panel(evidence: Evidence, section: str, number: int) -> Any:
    return all_panels({}, evidence)[section][number]


def poisoned(report: dict[str, Any], evidence: Evidence) -> tuple[dict[str, Any], Evidence]:
    """Every text that comes from data is an attack."""
    report = copy.deepcopy(report)
    report["teacher"] = dict.fromkeys(report["teacher"], ATTACK)
    report["student"] |= {"architecture": ATTACK, "preset": ATTACK, "elements": [ATTACK]}
    report["observables"] = {ATTACK: 1.5}
    report["goal"] = make_goal() | {"relaxed": [ATTACK], "advice": [ATTACK]}
    for turn in report["goal"]["turns"]:
        turn["step"]["student"] = turn["next"]["diagnosis"] = ATTACK
    report["verdict"]["checks"][0] = dict.fromkeys(("name", "value", "limit", "passed"), ATTACK)
    for row in report["speed"]:
        row |= {"system": ATTACK, "device": ATTACK}
    labels, pair = evidence.sampling, evidence.parity["test"]
    assert labels is not None
    names = [ATTACK] * len(labels.split)
    labels = replace(labels, branch=names, source=names, split=names)
    pair = replace(pair, symbols=[ATTACK] * len(pair.symbols))
    return report, replace(evidence, sampling=labels, parity={"test": pair})


# What it says


def test_the_verdict_is_the_first_thing_on_the_page(tmp_path, report, evidence):
    page = render(tmp_path, report, evidence)
    assert page.visible[0] == "✓ Approved"
    assert "All 5 checks passed." in page.text


def test_a_rejection_says_so_first_and_names_what_failed(tmp_path, report, evidence):
    report["verdict"]["status"] = "rejected"
    report["verdict"]["checks"][3] |= {"value": None, "passed": False}
    report["stability"]["completed"] = False
    page = render(tmp_path, report, evidence)
    assert page.visible[0] == "✗ Rejected"
    assert "1 of 5 checks failed: Energy drift in constant-energy MD." in page.text
    assert "Energy drift in constant-energy MD not measured at most 0.01 meV/atom/ps ✗ failed" in (
        page.text.replace("\xa0", " ")
    )
    assert "its molecular dynamics broke down ." in page.text


def test_the_turns_are_told_and_drawn(tmp_path, report, evidence):
    goal = make_goal()
    page = render(tmp_path, report | {"goal": goal}, evidence)
    for said in ("labels are the limit: labels where it goes", "2 (taken)", *goal["relaxed"]):
        assert said in page.text.replace("\xa0", " ")
    assert goal["advice"][0] in page.text
    drawn = all_panels({"goal": goal}, evidence)["turns"]
    assert [one.title for one in drawn] == ["Error against training", "Error against labels"]
    errors = {trace.name: list(trace.y) for trace in drawn[1].figure.data}
    assert errors["own MD"] == pytest.approx([7.0, 4.0])
    assert errors["allowed"] == pytest.approx([5.0, 5.0])
    alike = [{**turn, "n_labels": 300} for turn in goal["turns"]]
    assert len(all_panels({"goal": goal | {"turns": alike}}, evidence)["turns"]) == 1
    assert "How was the goal reached?" not in render(tmp_path, report, evidence).text


def test_a_student_that_knows_its_errors_is_told(tmp_path, report, evidence):
    known = {"error_estimates": make_estimates()}
    page = render(tmp_path, report | known, evidence).text.replace("\xa0", " ")
    for said in ("Does it know?", "above 0.31 eV/Å are not to be trusted", "its own MD 640 0.438"):
        assert said in page
    (drawn,) = all_panels(known, evidence)["estimates"]
    assert [len(trace.x) for trace in drawn.figure.data] == [2, 2, 2]  # without a logarithm of 0
    assert "Does it know?" not in render(tmp_path, report, evidence).text


def test_a_report_without_a_verdict_is_not_an_approval(tmp_path, report, evidence):
    del report["verdict"]
    assert render(tmp_path, report, evidence).visible[0] == "? Not judged"


def test_every_number_of_the_report_is_shown(tmp_path, report, evidence):
    page = render(tmp_path, report, evidence)
    shown = {float(value) for value, _ in page.data}
    blocks = [report[name] for name in BLOCKS]
    numbers = [v for v in leaves(blocks) if isinstance(v, int | float) and not isinstance(v, bool)]
    # "completed" is 1.0 in the verdict and reads "yes".
    assert {float(v) for v in numbers} - {1.0} <= shown


def test_shown_numbers_equal_the_exact_ones(tmp_path, report, evidence):
    page = render(tmp_path, report, evidence)
    scale = {"%": 100.0, "min": 1 / 60.0, "h": 1 / 3600.0}
    assert len(page.data) > 60
    for exact, text in page.data:
        number, _, unit = text.partition("\xa0")
        shown = float(number.replace("−", "-").replace(",", "").rstrip("°"))
        assert shown == pytest.approx(float(exact) * scale.get(unit, 1.0), rel=5e-3), text


def test_the_raw_json_is_the_report(tmp_path, report, evidence):
    raw = render(tmp_path, report, evidence).raw
    assert json.loads(raw[raw.index("{") :]) == report


def test_the_example_names_the_student_of_this_run(tmp_path, report, evidence):
    raw = render(tmp_path, report, evidence).raw
    assert f'StudentCalculator("{tmp_path.name}/student")' in raw
    assert f"validate --student {tmp_path.name} --teacher" in raw


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (number(77_312), "77,312"),
        (number(-0.012345, "meV"), "−0.0123&nbsp;meV"),
        (number(0.99996), "1.00"),
        (number(5.0), "5"),
        (number(3.21e-6), "3.21 × 10⁻⁶"),
        (number(np.float32(2.0)), "2"),
        (number(True), "yes"),
        (percent(0.95), "95&nbsp;%"),
        (percent(0.99951), "99.951&nbsp;%"),
        (percent(-0.5), "−50&nbsp;%"),
        (duration(5400.0), "90&nbsp;min"),
        (duration(1.0), "1&nbsp;s"),
        (quantity(0.9721, "test_forces_fidelity"), "97.2&nbsp;%"),
        (quantity(1.0, "nve_completed"), "yes"),
        (limit(0.01, "nve_drift_meV_per_atom_per_ps"), "at most 0.01&nbsp;meV/atom/ps"),
        (limit(5, "speedup"), "at least 5&nbsp;×"),
        (limit(None, "speedup"), "–"),
        (limit(1.0, "nve_completed"), "yes"),
        (limit(3.0, "a_check_of_later_years_percent"), "3&nbsp;%"),
        (words("forces_rmse_meV_per_A"), "Forces root mean square error"),
        (words("stress_derivative_error"), "Stress vs finite-difference strain derivative"),
        (words("a_check_of_later_years_percent"), "A check of later years"),
    ],
)
def test_numbers_and_names_in_words(shown, text):
    assert re.sub(r"</?data[^>]*>", "", str(shown)) == text


# What it must never do


def test_names_from_data_stay_text(tmp_path, report, evidence):
    clean = render(tmp_path, report, evidence)
    page = render(tmp_path, *poisoned(report, evidence))
    count = sum(tag == "script" for tag, _ in page.tags)
    assert count == sum(tag == "script" for tag, _ in clean.tags) == 3
    assert not any(tag in ("img", "a", "iframe") or "onerror" in a for tag, a in page.tags)
    assert page.text.count(ATTACK) > 10
    assert not set("<>&") & set(page.scripts[1])


def test_names_reach_plotly_escaped(report, evidence):
    drawn = [
        p.figure for panels in all_panels(*poisoned(report, evidence)).values() for p in panels
    ]
    texts = json.dumps(
        [figure.to_plotly_json() for figure in drawn if figure], default=np.ndarray.tolist
    )
    assert texts.count("&lt;script&gt;alert(1)") > 10
    assert "<script" not in texts
    assert "<img" not in texts


def test_nothing_is_loaded_from_anywhere(tmp_path, report, evidence):
    page = render(tmp_path, report, evidence)
    assert_safe(page)
    assert not [tag for tag, attrs in page.tags if "href" in attrs]
    style = re.findall("<style>(.*?)</style>", (tmp_path / "report.html").read_text("utf-8"), re.S)
    assert "url(" not in style[0]
    assert "@import" not in style[0]


@pytest.mark.parametrize("value", [{}, None, math.nan, "missing"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_missing_block_is_named_not_measured(tmp_path, report, evidence, block, value):
    if value == "missing":
        del report[block]
    else:
        report[block] = [] if block == "speed" else value
    page = render(tmp_path, report, evidence)
    assert "nan" not in page.text.lower().split()
    if block not in ("observables", "verdict"):
        assert "not measured" in page.text or "not recorded" in page.text


@pytest.mark.parametrize(("number", "told"), [(40, True), (0, False), (None, False)])
def test_labels_left_out_are_told(tmp_path, report, evidence, number, told):
    report["data"]["n_disputed"] = number
    text = render(tmp_path, report, evidence).text
    assert ("40 left out, on which the teacher's networks disagree" in text) == told
    assert ("left out" in text) == told
    report["data"]["n_out_of_reach"] = number
    text = render(tmp_path, report, evidence).text
    assert ("40 not used, kin of held-out ones and out of reach" in text) == told


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_missing_number_is_never_zero(tmp_path, report, evidence, nothing):
    def emptied(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: emptied(value) for key, value in tree.items()}
        return [emptied(value) for value in tree] if isinstance(tree, list) else nothing

    page = render(tmp_path, emptied(report), Evidence())
    assert page.data == []
    assert page.text.count("not measured") > 60
    text = page.text.replace("report.json", "").replace(f"MLFF Distiller {__version__}", "")
    assert not re.search(r"\b(nan|None|0)\b", re.sub(r"\d\d:\d\d UTC", "", text))
    assert json.loads(page.scripts[1]) == {}


def test_empty_series_are_not_drawn():
    nothing, nan = np.empty(0), np.full(3, np.nan)
    for gap in (nothing, nan):
        words = ["a"] * gap.size
        series = Evidence(
            {"test": ParitySet(gap, gap, np.tile(gap, 3), np.tile(gap, 3), gap, gap)},
            [{"epoch": 1, "train_loss": None}, {}],
            Trajectory(gap, gap, gap, math.nan),
            Sampling(gap, gap, words, gap, words, words),
            Curve(gap, gap),
            Curve(gap, gap, gap),
        )
        figures = {p.title: p.figure for panels in all_panels({}, series).values() for p in panels}
        figures.pop("Labels by generation and source")
        assert set(figures.values()) == {None}
    assert all(p.figure is None for panels in all_panels({}, Evidence()).values() for p in panels)


def test_a_failed_write_leaves_the_old_page(tmp_path, report, evidence, monkeypatch):
    render(tmp_path, report, evidence)
    before = (tmp_path / "report.html").read_bytes()
    monkeypatch.setattr("mlff_distiller.durable.Path.replace", lambda *_: 1 / 0)
    report["teacher"]["name"] = "another"
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path / "report.html", report, evidence)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("report.html", before)]


# What the plots show


def test_thinning_keeps_the_worst_and_says_so():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=30_000)
    student = teacher + rng.normal(0, 0.01, teacher.size)
    student[17] += 3.0
    pair = ParitySet(forces_teacher=teacher, forces_student=student)
    drawn = panel(Evidence({"test": pair}), "parity", 1)
    again = panel(Evidence({"test": pair}), "parity", 1)
    points = drawn.figure.data[1]
    assert len(points.x) == MAX_POINTS
    assert np.abs(points.y - points.x).max() == pytest.approx(3.0, abs=0.1)
    assert "4,000 points" in drawn.note
    assert "30,000 (test)" in drawn.note
    assert drawn.figure == again.figure


def test_error_statistics_are_those_of_the_atoms():
    size = np.repeat([1.0, 10.0], 240)
    teacher = np.c_[size, 0 * size, 0 * size]
    student = teacher + np.c_[0 * size, 0.02 * size, 0 * size]
    symbols = ["O"] * 240 + ["H"] * 240
    pair = ParitySet(
        forces_teacher=teacher.ravel(), forces_student=student.ravel(), symbols=symbols
    )
    by_size, by_element = (panel(Evidence({"test": pair}), "errors", n).figure.data for n in (0, 1))
    for line in by_size:
        np.testing.assert_allclose(line.y, 20.0 * line.x)  # meV/Å: 2 % of the force in eV/Å
    assert list(by_element[0].x) == ["H", "O"]
    np.testing.assert_allclose(by_element[0].y, [200.0 / 3, 20.0 / 3])


def test_the_drift_line_has_the_slope_of_the_run():
    time = np.linspace(0, 10, 50)
    drawn = panel(Evidence(trajectory=Trajectory(time, 0.3 * time, time, 0.3)), "stability", 0)
    energy, line = drawn.figure.data
    np.testing.assert_allclose(line.y, energy.y[[0, -1]])


def test_a_second_round_of_training_continues_the_epochs():
    log = [{"epoch": e, "train_loss": 1.0 / (n + 1)} for n, e in enumerate([1, 2, 3, 1, 2])]
    drawn = panel(Evidence(learning=log), "learning", 2)
    assert list(drawn.figure.data[0].x) == [1, 2, 3, 4, 5]


def test_stress_is_drawn_in_GPa():
    pair = ParitySet(stress_teacher=np.array([0.01]), stress_student=np.array([0.02]))
    points = panel(Evidence({"test": pair}), "parity", 2).figure.data[1]
    np.testing.assert_allclose([points.x[0], points.y[0]], [1.602, 3.204], rtol=1e-3)


def test_every_plot_is_described_in_words(report, evidence):
    for panels in all_panels(report, evidence).values():
        for drawn in panels:
            assert drawn.description.startswith(f"Plot: {drawn.title}. Horizontal axis: ")
            assert "None" not in drawn.description


# In a browser


@pytest.mark.parametrize("attacked", [False, True], ids=["as it is", "with hostile names"])
def test_a_browser_draws_every_plot_without_an_error(tmp_path, report, evidence, attacked):
    if attacked:
        report, evidence = poisoned(report, evidence)
    page = render(tmp_path, report, evidence)
    figures = json.loads(page.scripts[1])
    dom, messages = browse(tmp_path, "--dump-dom")
    assert not re.findall(r".*(?:CONSOLE|Uncaught).*", messages)
    drawn = dict(re.findall(r'<div class="plot[^>]* id="([^"]+)"(.*?)</figure>', dom, re.S))
    assert drawn.keys() == figures.keys()
    assert len(drawn) == (19 if attacked else 17)  # the turns of a run
    for name, plot in drawn.items():
        assert 'class="main-svg"' in plot
        assert plot.count('class="trace ') == len(figures[name]["data"]), name
    assert "<img" not in dom[dom.index("<body") :].split("<script>")[0]


def test_a_browser_takes_its_picture(tmp_path, report, evidence):
    render(tmp_path, report, evidence)
    picture = tmp_path / "report.png"
    browse(tmp_path, f"--screenshot={picture}", "--window-size=1400,6700")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 300_000  # an empty page of this size has 30 kB


def test_a_phone_shows_all_of_it(tmp_path, report, evidence):
    render(tmp_path, report, evidence)
    assert cut_off_on_a_phone(tmp_path) == ""


def test_rounds_show_median_and_quartiles_over_labels():
    log = [
        {
            "n_labels": n,
            "error_lower_quartile": 0.5 * e,
            "error_median": e,
            "error_upper_quartile": 2 * e,
        }
        for n, e in ((10, 0.2), (20, 0.1))
    ]
    [trace] = panel(Evidence(rounds=log), "sampling", 2).figure.data
    assert np.allclose(trace.x, [10, 30])
    assert np.allclose(trace.y, [20, 10])
    assert np.allclose(trace.error_y.array, [20, 10])
    assert np.allclose(trace.error_y.arrayminus, [10, 5])
    assert len(all_panels({}, Evidence())["sampling"]) == 2


def test_words_of_checks_have_powers_of_ten():
    assert powers("2.8e-05 ± 4e-05 meV, of 3e+06") == "2.8 × 10⁻⁵ ± 4 × 10⁻⁵ meV, of 3 × 10⁶"
    assert powers("file 1e-5.dat of v2e3 at 7net-0") == "file 1 × 10⁻⁵.dat of v2e3 at 7net-0"
