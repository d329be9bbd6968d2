"""``profile``: parts of a step on a clock that tests move; tables whose numbers are known."""

import copy
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from tests.helpers import random_nep, random_painn
from tests.unit.measure.clocks import Clock, Timed
from tests.unit.reports.pages import ATTACK, Page, browse, cut_off_on_a_phone
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.errors import ConfigError, TeacherError
from mlff_distiller.measure.findings import (
    ASE,
    CALCULATOR,
    COMPARING,
    MEANING,
    MODEL,
    NEIGHBORS,
    REMAINDER,
    findings,
)
from mlff_distiller.measure.profiling import ProfileSettings, _phases, profile
from mlff_distiller.measure.trace import STEP, tables
from mlff_distiller.reports.profile import write_page
from mlff_distiller.students import write_nep
from mlff_distiller.teachers import ase as ase_family

COPPER = bulk("Cu", cubic=True) * (2, 2, 2)
GAS = Atoms("Ar4", np.diag([0.0, 1, 2, 3])[:, :3] * 4.0, cell=[20.0] * 3, pbc=True)
COLD = {"n_steps": 8, "warm_up": 3, "traced": 2, "temperature_K": 5.0}


class Slow(Timed):
    """Takes another ms whenever ASE asks, as a calculator's own checks do."""

    def get_property(self, name, atoms=None, allow_calculation=True):
        self.clock.now += 1e-3
        return super().get_property(name, atoms, allow_calculation)


@pytest.mark.parametrize("kind", [Timed, Slow])
def test_what_the_parts_leave_of_a_step_is_the_remainder(kind):
    clock = Clock()
    [case] = profile(
        {"it": kind(clock, 3.0)},
        [GAS],
        engines=("ase",),
        settings=ProfileSettings(n_steps=40, warm_up=2, traced=2),
        device="cpu",
        clock=clock,
    ).cases
    rest = case["step_ms"] - 3.0
    assert rest > 0.9 if kind is Slow else rest == pytest.approx(0.0, abs=1e-9)
    spent = {row["name"]: row["ms"] for row in case["phases"]}
    expected = {ASE: 0.0, COMPARING: 0.0, MODEL: 3.0, REMAINDER: rest}
    assert spent == pytest.approx(expected, abs=1e-9)
    percent = f"{300 / (3.0 + rest):.0f} %"
    assert case["findings"][0]["text"] == f"{percent} of the step is the model itself; distil it"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    models = {"nep": random_nep(("Cu",), zbl=False), "painn": random_painn(("Cu",), zbl=False)}
    return profile(
        models,
        [COPPER],
        settings=ProfileSettings(**COLD),
        device="cpu",
        out=tmp_path_factory.mktemp("traces"),
    )


def test_parts_of_a_student_are_told_apart(found):
    for case in found.cases:
        spent = {row["name"]: row["ms"] for row in case["phases"]}
        parts = [ASE, CALCULATOR] if case["engine"] == "ase" else []
        assert spent.keys() == {*parts, NEIGHBORS, MODEL, REMAINDER}
        assert spent[MODEL] > 0
        assert sum(spent.values()) == pytest.approx(case["step_ms"])
        assert case["trace"]["gpu"] is None
        assert case["trace"]["functions"][0]["us"] > 0
    operators = {c["model"]: c["trace"]["operators"] for c in found.cases if c["engine"] == "ase"}
    names = {row["name"] for row in operators["painn"]}
    assert "aten::mm" in names
    assert STEP not in names
    assert found.cases[0]["trace_file"] == "trace-nep-ase-Cu32-32.json.gz"


def test_searches_for_neighbours_count_as_often_as_they_are_needed():
    hot = ProfileSettings(n_steps=60, warm_up=1, traced=1, temperature_K=3000.0)
    gas = Atoms("Cu8", np.array([*np.ndindex(2, 2, 2)]) * 6.0, cell=[12.0] * 3, pbc=True)
    student = random_nep(("Cu",), zbl=False)
    [case] = profile({"nep": student}, [gas], engines=("run_md",), settings=hot, device="cpu").cases
    assert 2 < case["steps_a_rebuild"] <= 60
    assert {row["name"]: row["ms"] for row in case["phases"]}[NEIGHBORS] > 0


@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_a_teacher_is_profiled_in_this_process(ensemble):
    settings = ProfileSettings(**COLD, ensemble=ensemble)
    spec = "ase:ase.calculators.emt:EMT"
    [case] = profile([spec], [COPPER], settings=settings, device="cpu").cases
    assert (case["kind"], case["engine"]) == ("teacher", "ase")
    assert {row["name"] for row in case["phases"]} == {ASE, COMPARING, MODEL, REMAINDER}
    assert any("emt.py" in row["name"] for row in case["trace"]["functions"])


def test_a_part_that_scatters_has_an_error_and_an_outlier_adds_none():
    turns = {"step": np.array([4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 90.0])}
    turns |= {"evaluation": np.array([1.0, 1.2, 0.8, 1.0, 1.1, 0.9, 1.0, 1.0])}
    turns["rebuild"] = np.zeros(8)
    _, model, rest = _phases(turns, 0.0)
    assert (model["name"], model["ms"], rest["ms"]) == (MODEL, 1.0, 3.0)
    assert model["error_ms"] == pytest.approx(1.2533 * 1.4826 * 0.05 / np.sqrt(8))
    assert 0 < rest["error_ms"] < 0.1


def test_a_part_that_alone_takes_longer_than_the_step_is_all_of_it():
    trace = {"gpu": None}
    case = {"phases": [{"name": MODEL, "percent": 104.2}], "engine": "ase", "kind": "student"}
    [found] = findings(case | {"trace": trace, "step_ms": 1.0})
    assert found["text"].startswith("100 % of the step")


def test_one_teacher_at_a_time():
    specs = [f"ase:ase.calculators.{name}" for name in ("emt:EMT", "lj:LennardJones")]
    with pytest.raises(ConfigError, match="only one teacher"):
        profile(specs, [COPPER], device="cpu")


def test_a_teacher_without_its_library_says_what_to_install(monkeypatch):
    def load(*_):
        raise ModuleNotFoundError("No module named 'no_such_library'", name="no_such_library")

    monkeypatch.setattr(ase_family, "load", load)
    with pytest.raises(TeacherError, match=r"no_such_library(.|\n)*pip install"):
        profile(["ase:ase.calculators.emt:EMT"], [COPPER], device="cpu")


# -- tables ----------------------------------------------------------------------------------------


def average(device, key, count, us):
    times = {"self_cpu_time_total": us, "self_device_time_total": us}
    return SimpleNamespace(key=key, count=count, device_type=SimpleNamespace(name=device), **times)


AVERAGES = [
    average("CPU", STEP, 2, 200.0),
    average("CUDA", STEP, 2, 200.0),
    average("CPU", "Activity Buffer Request", 1, 70.0),
    average("CPU", "aten::mm", 4, 20.0),
    average("CPU", "cudaLaunchKernel", 24, 10.0),
    average("CPU", "cudaGraphLaunch", 1, 10.0),
    average("CPU", "cudaStreamSynchronize", 1, 50.0),
    average("CUDA", "Memcpy HtoD (Pinned -> Device)", 1, 2.0),
    average("CUDA", "kick", 1, 10.0),
    average("CUDA", "forces", 2, 50.0),
]


def test_kernels_launches_and_copies_of_a_step():
    found = tables(AVERAGES, 2)
    gpu = found["gpu"]
    assert (gpu["busy_us"], gpu["n_kernels"], gpu["n_launches"]) == (31.0, 1.5, 12.5)
    assert (gpu["launch_us"], gpu["wait_us"]) == (10.0, 25.0)
    [copies] = gpu["copies"]
    assert (copies["name"], copies["us"]) == ("Memcpy HtoD (Pinned -> Device)", 1.0)
    assert [(row["name"], row["n"], row["mean_us"]) for row in gpu["kernels"]] == [
        ("forces", 1.0, 25.0),
        ("kick", 0.5, 10.0),
    ]
    assert [row["name"] for row in found["operators"]][:2] == ["cudaStreamSynchronize", "aten::mm"]
    assert tables(AVERAGES[:3], 2)["gpu"] is None


def test_findings_carry_their_numbers():
    percents = {CALCULATOR: 15.0, ASE: 62.0, MODEL: 23.0, REMAINDER: 40.0}
    case = {
        "phases": [{"name": name, "percent": percent} for name, percent in percents.items()],
        "step_ms": 0.1,
        "engine": "ase",
        "kind": "student",
        "trace": tables(AVERAGES, 2),
    }
    assert [one["text"] for one in findings(case)] == [
        "62 % of the step is ASE's Python around the calculator; run_md keeps the step on the "
        "device",
        "15 % of the step checks and copies arrays for the model; run_md leaves them there",
        "31 % of the time the GPU computes, after 12.5 launches per step; take larger systems or "
        "replicas",
        "10 µs of the host's time go into 12.5 launches per step; a CUDA graph is one launch",
        "83 % of the kernels' time is forces",
    ]
    assert findings(case)[0]["value"] == 62.0
    assert "larger systems hide it" in findings({**case, "kind": "teacher"})[0]["text"]


# -- the page and the command ----------------------------------------------------------------------


@pytest.mark.parametrize("attacked", [False, True], ids=["as it is", "hostile"])
def test_a_browser_draws_the_plot_without_an_error(tmp_path, found, attacked):
    found = copy.deepcopy(found)
    found.cases[0]["trace"]["gpu"] = tables(AVERAGES, 2)["gpu"]
    for case in found.cases:  # which function takes longest depends on the machine
        case["trace"]["functions"][0]["name"] = "the_first"
    if attacked:
        for case in found.cases:
            case["model"], case["system"] = ATTACK, case["system"] + ATTACK + case["engine"]
            case["trace"]["functions"][0]["name"] = case["findings"][0]["text"] = ATTACK
        found.cases[0]["trace"]["gpu"]["kernels"][0]["name"] = ATTACK
    write_page(tmp_path / "report.html", found)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    figures = json.loads(page.scripts[1])
    assert "<img" not in json.dumps(figures)
    assert figures.keys() == {"phases-0"}
    dom, messages = browse(tmp_path, "--dump-dom")
    assert not re.findall(r".*(?:CONSOLE|Uncaught).*", messages)
    [plot] = re.findall(r'<div class="plot[^>]* id="phases-0"(.*?)</figure>', dom, re.S)
    assert 'class="main-svg"' in plot
    body = dom[dom.index("<body") :]
    assert "<img" not in body.split("<script>")[0]
    assert all(f"<strong>{name}</strong>" in body for name in MEANING)
    assert ("the_first</code>" in body) is not attacked


def test_the_command(tmp_path):
    write_nep(random_nep(("Cu",), zbl=False), tmp_path / "nep.txt", max_neighbors=(200, 200))
    words = ["profile", "--student", str(tmp_path / "nep.txt"), "--system", "copper:32"]
    words += ["--engine", "ase", "--steps", "8", "--warm-up", "1", "--traced", "1"]
    words += ["--temperature", "5", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "ms per step" in done.output
    assert all(part in done.output for part in (ASE, CALCULATOR, NEIGHBORS, MODEL, REMAINDER))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"profile.json", "profile.html", "trace-nep-ase-copper-32.json.gz"}
    content = json.loads((tmp_path / "out" / "profile.json").read_text("utf-8"))
    assert content.keys() == {"schema", "kind", "about", "settings", "cases"}
    with pytest.raises(ConfigError, match="nothing to profile"):
        CliRunner().invoke(app, ["profile"], catch_exceptions=False)


def test_a_phone_shows_all_of_it(tmp_path, found):
    write_page(tmp_path / "report.html", found)
    assert cut_off_on_a_phone(tmp_path) == ""
