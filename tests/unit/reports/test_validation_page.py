"""The page of a validation: what it says, must never do, and what a browser does with it."""

import copy
import html
import json
import re
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.unit.reports.conftest import make_estimates
from tests.unit.reports.pages import ATTACK, Page, assert_safe, browse, cut_off_on_a_phone
from tests.unit.validation.faults import Hole, Pairs, argon
from tests.unit.validation.short import SHORT

from mlff_distiller.md.record import ForceField
from mlff_distiller.reports.validation import in_words, write_page
from mlff_distiller.reports.validation_plots import panels
from mlff_distiller.reports.validation_tables import tables
from mlff_distiller.validation.validate import validate

Found = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def measured() -> Found:
    """Content and series of an argon with a hole at short distance, beside its teacher."""
    settings = replace(SHORT, time_ps=1.0, large_atoms=32, rescored=4)
    content = validate(
        ForceField("argon", Hole()), argon(), settings, teacher=ForceField("teacher", Pairs())
    )
    series = content.pop("series")
    content |= {"settings": asdict(settings), "teacher": {"name": "pairs", "family": "ase"}}
    return content, series


@pytest.fixture
def found(measured) -> Found:
    return copy.deepcopy(measured)


def render(folder: Path, found: Found, name: str = "argon") -> Page:
    structure = folder / "structure.xyz"
    structure.write_text("")
    write_page(folder / "report.html", *found, name, {"structure": structure})
    return Page((folder / "report.html").read_text("utf-8"))


# What it says


def test_the_verdict_comes_first_with_its_reasons(tmp_path, found):
    page = render(tmp_path, found)
    verdict = found[0]["verdict"]
    assert page.visible[0] == "✗ Rejected"
    for reason in verdict["reasons"]:
        assert page.text.index(in_words(reason)) < page.text.index("Measured Limit Result")
    title = "Energy drop between two atoms at short distance"
    assert f"two atoms fall into a hole at short distance: {title} is" in page.text
    assert "yardstick" not in page.text
    found[0]["verdict"]["remarks"] = ["the teacher itself: <b>falls</b>"]
    assert "yardstick: the teacher itself: <b>falls</b>" in render(tmp_path, found).text
    found[0]["verdict"] |= {"status": "approved", "reasons": []}
    for check in verdict["checks"]:
        check["passed"] = True
    page = render(tmp_path, found)
    assert page.visible[0] == "✓ Approved"
    assert f"All {len(verdict['checks'])} checks passed." in page.text
    assert "checks passed. Fit for: production" in page.text


def test_every_check_is_a_row_with_value_and_limit(tmp_path, found):
    page = render(tmp_path, found)
    shown = {float(value) for value, _ in page.data}
    for check in found[0]["verdict"]["checks"]:
        if not check["name"].endswith("completed"):
            assert check["limit"] in shown
            assert check["value"] is None or check["value"] in shown
    text = page.text.replace("\xa0", " ")
    assert "Energy fluctuation, full over half time step" in text
    assert "at least 3 ✓ passed" in text
    assert re.search(
        r"Energy drop between two atoms at short distance [\d.]+ eV at most 0.05 eV ✗", text
    )


def test_every_curve_is_drawn(found):
    drawn = {
        one.title: one.figure
        for own in panels(found[0]["measurements"], found[1]).values()
        for one in own
    }
    assert [title for title, figure in drawn.items() if figure is None] == []
    assert {
        "Total energy at constant energy",
        "Distribution of temperatures",
        "Energy along straight lines",
        "Two atoms in vacuum",
        "Compression of the whole structure",
        "Radial distribution, Ar-Ar",
        "Angle at Ar",
        "Equation of state",
        "Frequencies, one by one",
        "Density of frequencies",
    } <= drawn.keys()
    band, other, student, teacher = drawn["Radial distribution, Ar-Ar"].data
    block = found[0]["measurements"]["teacher"]["distributions"][0]
    assert list(student.y) == block["student"]
    assert list(teacher.y) == block["teacher"]
    widest = max(block["student_error"])
    k = block["student_error"].index(widest)
    assert band.y[k] == pytest.approx(block["student"][k] + 2 * widest)
    assert other.showlegend is False


def test_a_student_that_knows_its_errors_is_told(tmp_path, found):
    assert "Does it know where it is wrong?" not in render(tmp_path, found).text
    found[0]["measurements"]["error_estimates"] = make_estimates()
    page = render(tmp_path, found).text.replace("\xa0", " ")
    for said in ("Does it know where it is wrong?", "above 0.31 eV/Å", "its own MD 640 0.438"):
        assert said in page
    (drawn,) = panels(found[0]["measurements"], found[1])["errors"]
    assert [len(trace.x) for trace in drawn.figure.data] == [2, 2, 2]


def test_unknown_blocks_become_tables(tmp_path, found):
    found[0]["measurements"] |= {
        "pressure_run": {"density_g_per_cm3": 1.62, "why": "", "trace": list(range(500))},
        "teacher": found[0]["measurements"]["teacher"]
        | {"pressure_run": {"density_g_per_cm3": 1.7}},
        "elasticity": {
            "student": {
                "constants_GPa": [[1.5, 0.5, 0.25]] * 3,
                "shear_modulus_GPa": [0.75, 0.125],
            },
            "teacher": {"shear_modulus_GPa": [0.875, 0.25]},
        },
        "by_element": [
            {"element": "Ar", "rmse_meV_per_A": 1.25, "curve": list(range(99))},
            {"element": "Kr", "rmse_meV_per_A": None, "n": 7},
        ],
    }
    found[0]["measurements"]["memory"] = {
        "host": {"step": list(range(100)), "MB": [400.0 + 0.1 * k for k in range(100)]},
        "parity": {"element": ["Ar"] * 50, "true": [(-1) ** k * k for k in range(50)]},
    }
    found[0]["measurements"]["memory"]["parity"]["found"] = list(range(50))
    own = {table.name: table for table in tables(found[0]["measurements"])}
    assert own["by_element"].columns == ["element", "rmse_meV_per_A", "n"]
    assert own["by_element"].rows == [["Ar", 1.25, None], ["Kr", None, 7]]
    assert own["pressure_run"].rows == [["density_g_per_cm3", 1.62, 1.7]]
    assert own["elasticity.student.constants_GPa"].rows[1] == [2, 1.5, 0.5, 0.25]
    assert not {"teacher.pressure_run", "elasticity.teacher"} & own.keys()
    text = render(tmp_path, found).text
    assert "By element Element Root mean square error (meV/Å) Number of Ar 1.25 – Kr – 7" in text
    text = text.replace("\xa0", " ")
    assert "Pressure run What Student Teacher Density 1.62 g/cm³ 1.7 g/cm³" in text
    assert "Elasticity student constants (GPa) Row 1 2 3 1 1.5 0.5 0.25 2" in text
    assert "Shear modulus 0.75 ± 0.125 GPa 0.875 ± 0.25 GPa" in text
    theirs = {"step": list(range(50)), "MB": [9.0] * 50}
    found[0]["measurements"]["teacher"]["memory"] = {"host": theirs}
    drawn = {one.title: one for one in panels(found[0]["measurements"], found[1])["others"]}
    curve, cloud = drawn["Memory host"], drawn["Memory parity"]
    assert curve.figure.data[0].mode == "lines"
    assert list(curve.figure.data[0].y) == found[0]["measurements"]["memory"]["host"]["MB"]
    assert curve.figure.data[1].name == "teacher&#x27;s MB"
    assert list(curve.figure.data[1].y) == theirs["MB"]
    assert cloud.figure.data[0].mode == "markers"


def test_the_raw_numbers_are_the_content(tmp_path, found):
    raw = render(tmp_path, found).raw
    assert json.loads(raw[raw.index("{") :]) == json.loads(json.dumps(found[0]))
    assert "positions" not in raw


# What it must never do


def poisoned(found: Found) -> Found:
    """Every text that comes from data is an attack."""

    def spoil(tree: Any, key: str = "") -> Any:
        if isinstance(tree, dict):
            return {k: spoil(v, k) for k, v in tree.items()}
        if isinstance(tree, list):
            return [spoil(v, key) for v in tree]
        ours = key in ("positions", "color") or tree == "compression"
        return ATTACK if isinstance(tree, str) and not ours else tree

    content, series = spoil(found[0]), spoil(found[1])
    for own, check in zip(content["verdict"]["checks"], found[0]["verdict"]["checks"], strict=True):
        own["name"] = check["name"]
    content["measurements"]["rows"] = [{ATTACK: ATTACK}]
    content["measurements"]["incidents"] = [{"kind": ATTACK, "text": ATTACK}]
    return content, series


def test_names_from_data_stay_text(tmp_path, found):
    clean = render(tmp_path, found)
    page = render(tmp_path, poisoned(found), ATTACK)
    count = sum(tag == "script" for tag, _ in page.tags)
    assert count == sum(tag == "script" for tag, _ in clean.tags) == 5
    assert not any(tag in ("img", "iframe") or "onerror" in a for tag, a in page.tags)
    assert page.text.count(ATTACK) > 10
    for number in (1, 3):  # figures and frames
        assert not set("<>&") & set(page.scripts[number])


def test_nothing_is_loaded_from_anywhere(tmp_path, found):
    page = render(tmp_path, found)
    assert_safe(page)
    assert not [tag for tag, attrs in page.tags if "href" in attrs]
    style = re.findall("<style>(.*?)</style>", (tmp_path / "report.html").read_text("utf-8"), re.S)
    assert "url(" not in style[0]
    assert "@import" not in style[0]


@pytest.mark.parametrize("nothing", [None, {}, "missing"])
def test_missing_blocks_are_no_error(tmp_path, measured, nothing):
    keys = [*measured[0]["measurements"], "teacher.distributions", "teacher.frequencies_per_cm"]
    for key in [*keys, "all"]:
        content, series = copy.deepcopy(measured)
        block = content["measurements"]
        for part in key.split(".")[:-1]:
            block = block[part]
        for name in list(block) if key == "all" else [key.split(".")[-1]]:
            block[name] = nothing
            if nothing == "missing":
                del block[name]
        page = render(tmp_path, (content, series if key != "all" else {}))
        assert page.visible[0] == "✗ Rejected"
        assert not re.search(r"\b(nan|None)\b", page.text.split("Where it comes from")[0])
    assert page.text.count("not measured") >= 6
    assert "canvas" not in [tag for tag, _ in page.tags]


# In a browser

# The browser's virtual time does not wait for frames, so frames are made timers.
FRAMES = "<head><script>requestAnimationFrame = draw => setTimeout(draw, 16);</script>"
PROBE = """<script>
"use strict";
addEventListener("load", async () => {
  const seen = {}, sleep = ms => new Promise(done => setTimeout(done, ms));
  try {
    const canvas = document.querySelector("canvas"), picture = () => canvas.toDataURL();
    const says = document.querySelector("output"), play = document.querySelector("[data-do=play]");
    const drawn = () => sleep(50);
    const key = name => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
    const changed = async act => {
      const before = picture();
      act();
      await drawn();
      return before !== picture();
    };
    const at = (type, x, y) => new PointerEvent(type, { clientX: x, clientY: y, buttons: 1 });
    await sleep(500);
    seen.painted = picture().length;
    seen.start = says.value;
    play.click();
    await sleep(1500);
    seen.playing = [play.textContent, says.value];
    play.click();
    seen.paused = says.value;
    await sleep(500);
    seen.still = says.value;
    key(".");
    seen.stepped = says.value;
    const slider = document.querySelector("input[type=range]");
    slider.value = slider.max;
    slider.dispatchEvent(new Event("input"));
    seen.last = says.value;
    await drawn();
    seen.idle = await changed(() => {});
    seen.turned = await changed(() => key("ArrowLeft"));
    seen.zoomed = await changed(() => key("+"));
    seen.wheeled = await changed(() =>
      canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 90 })));
    seen.dragged = await changed(() => {
      canvas.dispatchEvent(at("pointerdown", 300, 300));
      canvas.dispatchEvent(at("pointermove", 360, 320));
    });
    key("Home");
    key(" ");
    await sleep(300);
    seen.spaced = play.textContent;
    key(" ");
    seen.csv = {};
    let text = "";
    window.Blob = class { constructor(parts) { text = parts.join(""); } };
    URL.createObjectURL = () => "#";
    HTMLAnchorElement.prototype.click = function () { seen.csv[this.download] = text; };
    document.querySelectorAll("button.csv").forEach(button => button.click());
    seen.cells = ["=1+1", "+x", "-x", "@x", "-1.5", "+2", "a,b", 'a"b', "", "-1e3"].map(csvCell);
    dispatchEvent(new Event("beforeprint"));
    seen.open = Array.from(document.querySelectorAll("details")).every(own => own.open);
    seen.loaded = performance.getEntriesByType("resource").length;
  } catch (error) { seen.error = String(error.stack); }
  document.body.dataset.seen = JSON.stringify(seen);
});
</script></body>"""


@pytest.fixture(scope="module", params=[False, True], ids=["as it is", "with hostile names"])
def browsed(request, tmp_path_factory, measured) -> tuple[dict[str, Any], str, str, Page]:
    """What a probe in the page saw, the DOM, the browser's messages, and the page."""
    folder = tmp_path_factory.mktemp("page")
    page = render(folder, poisoned(measured) if request.param else measured)
    path = folder / "report.html"
    before, head, after = path.read_text("utf-8").partition("<head>")
    text, end, after = after.rpartition("</body>")
    assert head
    assert end
    path.write_text(before + FRAMES + text + PROBE + after, "utf-8")
    dom, messages = browse(folder, "--dump-dom")
    seen = re.search(r'<body[^>]* data-seen="([^"]*)"', dom)
    assert seen, messages
    return json.loads(html.unescape(seen[1])), dom, messages, page


def test_a_browser_draws_every_plot_without_an_error(browsed):
    seen, dom, messages, page = browsed
    assert "error" not in seen, seen["error"]
    assert not re.findall(r".*(?:CONSOLE|Uncaught).*", messages)
    assert seen["loaded"] == 0
    figures = json.loads(page.scripts[1])
    drawn = dict(re.findall(r'<div class="plot[^>]* id="([^"]+)"(.*?)</figure>', dom, re.S))
    assert drawn.keys() == figures.keys()
    assert len(drawn) >= 11
    for name, plot in drawn.items():
        assert plot.count('class="trace ') == len(figures[name]["data"]), name
    assert "<img" not in dom[dom.index("<body") :].split("<script>")[0]


def test_a_phone_shows_all_of_it(tmp_path, measured):
    render(tmp_path, measured)
    assert cut_off_on_a_phone(tmp_path) == ""


def test_the_viewer_plays_and_turns(browsed):
    seen = browsed[0]
    frame = {key: int(str(seen[key]).split()[1]) for key in ("start", "paused", "still", "stepped")}
    assert seen["painted"] > 10_000
    assert seen["start"].startswith("frame 1 of 100")
    assert seen["playing"][0] == "Pause"
    assert frame["paused"] > 10
    assert frame["still"] == frame["paused"]
    assert frame["stepped"] == frame["paused"] + 1
    assert seen["last"].startswith("frame 100 of 100")
    assert not seen["idle"]
    assert [seen[how] for how in ("turned", "zoomed", "wheeled", "dragged")] == [True] * 4
    assert seen["spaced"] == "Pause"


def test_tables_are_saved_as_csv(browsed, measured):
    seen = browsed[0]
    assert seen["cells"] == [
        *("'=1+1", "'+x", "'-x", "'@x", "-1.5", "+2", '"a,b"', '"a""b"', "", "-1e3")
    ]
    checks = seen["csv"]["checks.csv"].lstrip("\ufeff").split("\r\n")
    assert checks[0] == "Check,Measured,Limit,Result"
    names = [check["name"] for check in measured[0]["verdict"]["checks"]]
    drop = measured[0]["verdict"]["checks"][names.index("dimer_drop_eV")]["value"]
    row = checks[1 + names.index("dimer_drop_eV")].split(",")
    assert float(row[1]) == drop
    assert float(row[2]) == 0.05
    assert len(checks) == len(names) + 2
    assert seen["open"]


def test_the_page_is_small_enough(tmp_path, found):
    render(tmp_path, found)
    assert (tmp_path / "report.html").stat().st_size < 2.6e6


def test_the_page_says_where_it_was_made_and_by_what(tmp_path, found, monkeypatch):
    words = ["/usr/bin/mlff-distiller", "validate", "a b.xyz", "--out", "<p>"]
    monkeypatch.setattr("sys.argv", words)
    text = render(tmp_path, found).text
    assert "mlff-distiller validate 'a b.xyz' --out '<p>'" in text
    assert f"cores · MLFF Distiller {version('mlff-distiller')}" in text
    assert re.search(r"\d\d [A-Z][a-z]+ 20\d\d, \d\d:\d\d UTC", text)
    monkeypatch.setattr("sys.argv", ["pytest"])
    assert "a b.xyz" not in render(tmp_path, found).text


def test_a_difference_within_noise_is_shown_with_its_error(tmp_path, found):
    check = {"name": "density_difference_percent", "value": 0.0, "limit": 2.0, "passed": True}
    found[0]["verdict"]["checks"] = [check]
    finding = {"value": 0.0, "words": "2.33 and 2.32 ± 0.02 g/cm³"}
    found[0]["structures"] = [{"findings": {check["name"]: finding}}]
    text = render(tmp_path, found).text.replace("\xa0", " ")
    assert "2.33 and 2.32 ± 0.02 g/cm³ 0 % beyond noise at most 2 %" in text


def test_pairs_differ_by_colour_and_the_teacher_by_its_dash(found):
    curves = [
        {"name": name, "x": [1.0, 2.0], "energy_eV": [1.0, 0.0]}
        for name in (
            "Cu-Cu",
            "Cu-Au",
            "Au-Au",
            "Cu-Cu, teacher",
            "Cu-Au, teacher",
            "Au-Au, teacher",
        )
    ]
    found[0]["measurements"]["short_range"] = {"curves": curves}
    dimers = next(
        p for p in panels(*(found[0]["measurements"], found[1]))["laws"] if "Two" in p.title
    )
    look = {line.name: (line.line.color, line.line.dash) for line in dimers.figure.data}
    assert len({color for color, _ in look.values()}) == 3
    for pair in ("Cu-Cu", "Cu-Au", "Au-Au"):
        assert look[pair][0] == look[f"{pair}, teacher"][0]
        assert (look[pair][1], look[f"{pair}, teacher"][1]) == ("solid", "dash")
