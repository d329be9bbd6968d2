"""``profile``: phases that add up, on a clock that tests move; a trace whose answer is known."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators import calculator as ase_calculator
from tests.helpers import random_nep, random_painn
from tests.unit.measure.clocks import Clock, Timed
from tests.unit.reports.pages import ATTACK, Page, browse
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.engines import backends
from mlff_distiller.errors import ConfigError, TeacherError
from mlff_distiller.measure import phases as p
from mlff_distiller.measure.findings import findings
from mlff_distiller.measure.profiling import ProfileSettings, profile
from mlff_distiller.measure.trace import STEP, analyse, union
from mlff_distiller.reports.profile import write_page
from mlff_distiller.students import write_nep

COPPER = bulk("Cu", cubic=True) * (2, 2, 2)
COLD = {"n_steps": 8, "warm_up": 3, "traced": 2, "temperature_K": 5.0}


class Inner:
    def __init__(self, clock):
        self.clock = clock

    def step(self):
        self.clock.now += 1.0
        self.search()
        self.clock.now += 2.0
        self.model()
        self.clock.now += 4.0

    def search(self):
        self.clock.now += 8.0

    def model(self):
        self.clock.now += 16.0


def test_a_phase_is_its_own_time_without_what_it_calls():
    clock = Clock()
    inner, phases = Inner(clock), p.Phases("cpu", clock)
    phases.wrap(inner, "step", p.TO_DEVICE)
    phases.wrap(inner, "search", p.NEIGHBORS)
    phases.wrap(inner, "model", p.MODEL, then=p.TO_HOST)
    phases.wrap(inner, "what is not there", p.MODEL)
    inner.step()  # not counted
    with phases.running():
        clock.now += 32.0
        inner.step()
    spent = {name: seconds for name, seconds in phases.seconds.items() if seconds}
    assert spent == {
        p.BOOKKEEPING: 32.0,
        p.TO_DEVICE: 3.0,
        p.NEIGHBORS: 8.0,
        p.MODEL: 16.0,
        p.TO_HOST: 4.0,
    }
    phases.close()
    assert "step" not in vars(inner)


def test_what_counting_costs_is_found_and_taken_off():
    clock = Clock()

    def ticking():
        clock.now += 0.25
        return clock.now

    phases = p.Phases("cpu", ticking)
    phases.calibrate(100)
    assert phases.cost == pytest.approx(0.5, abs=0.05)  # it looks at the clock twice
    phases.calls[p.MODEL], phases.seconds[p.MODEL] = 10, 20.0
    phases.inner_calls[p.INTEGRATOR], phases.seconds[p.INTEGRATOR] = 10, 30.0
    corrected = phases.corrected()  # half of it inside, half around
    assert corrected[p.MODEL] == pytest.approx(17.5, abs=0.25)
    assert corrected[p.INTEGRATOR] == pytest.approx(27.5, abs=0.25)


def test_phases_of_a_calculator_add_up_to_the_step():
    clock = Clock()
    gas = Atoms("Ar4", np.diag([0.0, 1, 2, 3])[:, :3] * 4.0, cell=[20.0] * 3, pbc=True)
    found = profile(
        {"slow": Timed(clock, 3.0)},
        [gas],
        engines=("ase",),
        settings=ProfileSettings(n_steps=40, warm_up=2, traced=2),
        device="cpu",
        clock=clock,
    )
    [case] = found.cases
    assert case["step_ms"] == pytest.approx(3.0)
    assert case["sum_ms"] == pytest.approx(3.0)
    assert case["phases"] == [{"name": p.MODEL, "ms": pytest.approx(3.0), "percent": 100.0}]
    assert case["findings"][0]["text"].startswith("100 % of the step is the model itself")


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


def test_every_phase_of_a_student_is_told_apart(found):
    told = {(c["model"], c["engine"]): {row["name"] for row in c["phases"]} for c in found.cases}
    around = {p.BOOKKEEPING, p.COMPARING, p.INTEGRATOR, p.TO_DEVICE, p.TO_HOST}
    for model in ("nep", "painn"):
        assert told[model, "ase"] == around | {p.NEIGHBORS, p.MODEL}
        assert told[model, "run_md"] >= {p.BOOKKEEPING, p.INTEGRATOR, p.MODEL}
    operators = {c["model"]: c["trace"]["operators"] for c in found.cases if c["engine"] == "ase"}
    assert "aten::mm" in {row["name"] for row in operators["painn"]}
    assert found.cases[0]["trace_file"] == "trace-nep-ase-Cu32-32.json.gz"


def test_all_is_put_back(found):
    assert backends.neighbor_list.__module__ == "mlff_distiller.neighbors"
    assert ase_calculator.compare_atoms.__qualname__ == "compare_atoms"
    assert torch.Tensor.to.__qualname__ != "_follow_copies.<locals>.to"


def test_a_teacher_is_looked_into_in_this_process():
    settings = ProfileSettings(**COLD)
    spec = "ase:ase.calculators.emt:EMT"
    [case] = profile([spec], [COPPER], settings=settings, device="cpu").cases
    assert (case["kind"], case["engine"]) == ("teacher", "ase")
    assert p.COMPARING in {row["name"] for row in case["phases"]}
    assert "its search for neighbours cannot be told from the model" in case["notes"]
    with pytest.raises(ConfigError, match="one teacher at a time"):
        profile([spec, "ase:ase.calculators.lj:LennardJones"], [COPPER], device="cpu")


def test_a_teacher_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(p._SEARCHES, "ase", ("no_such_library", "search"))
    with pytest.raises(TeacherError, match="no_such_library"):
        p.InProcessTeacher("ase:ase.calculators.emt:EMT", "cpu", p.Phases())


# -- traces ----------------------------------------------------------------------------------------


def event(cat, name, ts, dur, **args):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 1, "args": args}


def allocation(ts, size, total):
    args = {"Device Type": 1, "Bytes": size, "Total Allocated": total}
    return {"ph": "i", "name": "[memory]", "ts": ts, "args": args}


GPU_TRACE = [
    event("user_annotation", STEP, 0.0, 100.0),
    event("user_annotation", STEP, 100.0, 100.0),
    event("cuda_runtime", "cudaLaunchKernel", 1.0, 5.0),
    event("cuda_runtime", "cudaLaunchKernel", 7.0, 5.0),
    event("cuda_runtime", "cudaGraphLaunch", 110.0, 10.0),
    event("cuda_runtime", "cudaStreamSynchronize", 121.0, 50.0),
    event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 5.0, 2.0, bytes=1536),
    event("kernel", "forces", 10.0, 30.0),
    event("kernel", "forces", 30.0, 20.0),  # on another stream, at the same time
    event("kernel", "kick", 120.0, 10.0),
    event("kernel", "before", -50.0, 10.0),
    allocation(5.0, 2**20, 2**22),
    allocation(9.0, -(2**20), 3 * 2**20),
]


def test_kernels_launches_copies_and_gaps_of_a_step():
    gpu = analyse(GPU_TRACE, 2)["gpu"]
    assert gpu["busy_us"] == (2 + 40 + 10) / 2
    assert gpu["utilisation"] == pytest.approx(52 / 200)
    assert gpu["idle_us"] == (200 - 52) / 2
    assert gpu["largest_gap_us"] == 70.0
    assert (gpu["n_kernels"], gpu["n_launches"], gpu["n_graph_launches"]) == (1.5, 1.5, 0.5)
    assert (gpu["launch_us"], gpu["wait_us"]) == (10.0, 25.0)
    assert gpu["copies"] == {"HtoD": {"n": 0.5, "us": 1.0, "bytes": 768.0}}
    assert [(row["name"], row["n"], row["mean_us"]) for row in gpu["kernels"]] == [
        ("forces", 1.0, 25.0),
        ("kick", 0.5, 10.0),
    ]
    memory = analyse(GPU_TRACE, 2)["allocations"]["cuda"]
    assert (memory["n"], memory["peak_MiB"], memory["left_MiB"]) == (0.5, 4.0, -1.0)


def test_time_of_several_streams_counts_once():
    assert union([(5, 7), (0, 2), (1, 3)]) == [(0, 3), (5, 7)]


def test_an_operator_counts_without_those_it_calls():
    events = [
        event("user_annotation", STEP, 0.0, 100.0),
        event("cpu_op", "outer", 0.0, 50.0),
        event("cpu_op", "inner", 10.0, 20.0),
        event("cpu_op", "inner", 60.0, 5.0),
    ]
    rows = {row["name"]: row["us"] for row in analyse(events, 1)["operators"]}
    assert rows == {"outer": 30.0, "inner": 25.0}
    assert analyse([], 1)["gpu"] is None


def test_findings_carry_their_numbers():
    spent = {p.TO_DEVICE: 0.15, p.COMPARING: 0.62, p.MODEL: 0.23}
    trace = analyse(GPU_TRACE, 2)
    case = {
        "phases": [{"name": name, "ms": ms} for name, ms in spent.items()],
        "sum_ms": 1.0,
        "step_ms": 0.1,
        "engine": "ase",
        "kind": "student",
        "trace": trace,
    }
    texts = [one.text for one in findings(case)]
    assert texts[0] == "62 % of the step is the comparison of atoms; run_md does without"
    assert texts[1].startswith("15 % of the step carries arrays")
    assert texts[2].startswith("the GPU computes 26 % of the time, in 2 kernels of 2 launches")
    assert texts[-1] == "83 % of the GPU's time is forces"


# -- the page and the command ----------------------------------------------------------------------


@pytest.mark.parametrize("attacked", [False, True], ids=["as it is", "hostile"])
def test_a_browser_draws_every_plot_without_an_error(tmp_path, found, attacked):
    found = copy.deepcopy(found)
    found.cases[0]["trace"]["gpu"] = analyse(GPU_TRACE, 2)["gpu"]
    if attacked:
        for case in found.cases:
            case["model"], case["system"] = ATTACK, case["system"] + ATTACK + case["engine"]
        found.cases[0]["trace"]["gpu"]["kernels"][0]["name"] = ATTACK
    write_page(tmp_path / "report.html", found)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    figures = json.loads(page.scripts[1])
    assert "<img" not in json.dumps(figures)
    assert figures.keys() == {"phases-0", "phases-1", "memory-0", "memory-1"}
    dom, messages = browse(tmp_path, "--dump-dom")
    assert not re.findall(r".*(?:CONSOLE|Uncaught).*", messages)
    drawn = re.findall(r'<div class="plot[^>]* id="([^"]+)"(.*?)</figure>', dom, re.S)
    assert [name for name, plot in drawn if 'class="main-svg"' in plot] == list(figures)
    assert "<img" not in dom[dom.index("<body") :].split("<script>")[0]


def test_the_command(tmp_path):
    write_nep(random_nep(("Cu",), zbl=False), tmp_path / "nep.txt", max_neighbors=(200, 200))
    words = ["profile", "--student", str(tmp_path / "nep.txt"), "--system", "copper:32"]
    words += ["--engine", "ase", "--steps", "8", "--warm-up", "1", "--traced", "1"]
    words += ["--temperature", "5", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "phases add up to" in done.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"profile.json", "profile.html", "trace-nep-ase-copper-32.json.gz"}
    with pytest.raises(ConfigError, match="what is to be profiled"):
        CliRunner().invoke(app, ["profile"], catch_exceptions=False)
