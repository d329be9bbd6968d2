"""``MDBenchmark``: on a clock that tests move, so that what it says is known."""

import copy
import json
import re
import sys
from time import perf_counter

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from tests.helpers import random_nep, random_painn
from tests.unit.measure.clocks import Clock, Failing, Leaky, Timed
from tests.unit.reports.pages import ATTACK, Page, browse, cut_off_on_a_phone
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.cli.options import REFUSED
from mlff_distiller.errors import ConfigError, DistillerError
from mlff_distiller.md import Simulation
from mlff_distiller.measure import MDBenchmark, Settings, check, compare, read_result, record
from mlff_distiller.measure.contenders import contender
from mlff_distiller.measure.meters import MemoryMeter
from mlff_distiller.measure.results import speed_ups
from mlff_distiller.measure.trial import Plan, run_student
from mlff_distiller.reports.benchmark import write_page
from mlff_distiller.students import write_nep

GAS = Atoms("Ar4", np.diag([0.0, 1, 2, 3])[:, :3] * 4.0, cell=[20.0] * 3, pbc=True)


def measured(calculators, clock, *, ensembles=("nve",), systems=(GAS,), **settings):
    settings = {"n_steps": 100, "warm_up": 5, "repeats": 1, "least_seconds": 0.0} | settings
    return MDBenchmark(
        calculators,
        systems,
        ensembles=ensembles,
        engines=("ase",),
        settings=Settings(**settings),
        device="cpu",
        clock=clock,
    ).run()


@pytest.fixture
def clock():
    return Clock()


def test_first_call_warm_up_and_steps_are_told_apart(clock):
    [case] = measured({"two ms": Timed(clock, 2.0)}, clock, time_step_fs=0.5).cases
    assert case["first_call_s"] == pytest.approx(0.1)
    assert case["warm_up"] == {"n_steps": 5, "seconds": pytest.approx(0.01)}
    latency = case["latency_ms"]
    assert latency["n_samples"] == case["n_steps"] == 100
    for name in ("mean", "median", "min", "max", "p95", "p99"):
        assert latency[name] == pytest.approx(2.0)
    assert case["steps_per_s"] == pytest.approx(500.0)
    assert case["ns_per_day"] == pytest.approx(86400 * 500 * 0.5e-6)
    assert case["us_per_atom"] == pytest.approx(500.0)
    assert case["atom_steps_per_s"] == pytest.approx(2000.0)


def test_fast_models_go_on_and_slow_ones_are_cut_short(clock):
    models = {"fast": Timed(clock, 1.0), "slow": Timed(clock, 50.0)}
    fast, slow = measured(models, clock, least_seconds=0.3, most_seconds=1.0).cases
    assert (fast["n_steps"], fast["cut_short"]) == (300, False)
    assert (slow["n_steps"], slow["cut_short"]) == (20, True)


def test_steps_of_run_md_fit_the_time_that_is_given(monkeypatch):
    clock = Clock()
    real = Simulation.advance

    def advance(self, n_steps):
        clock.now += 0.05 * n_steps
        real(self, n_steps)

    monkeypatch.setattr(Simulation, "advance", advance)
    student = random_nep(("Cu",), zbl=False)
    memory = MemoryMeter(lambda: 0)
    for most, n_steps, sample in ((np.inf, 40, 4), (1.01, 20, 2)):
        plan = Plan("nve", 0.1, 5.0, n_steps=40, warm_up=4, most_seconds=most)
        frames = [bulk("Cu", cubic=True) * (2, 2, 2)]
        trial = run_student(frames, student, plan, memory, clock, device="cpu")
        assert (trial.n_steps, trial.steps_a_sample, trial.warm_up_steps) == (n_steps, sample, 4)
        assert trial.samples_ms == pytest.approx(np.full(n_steps // sample, 50.0))


@pytest.mark.parametrize("wanted", [False, True])
def test_students_are_compiled_if_that_is_wanted(wanted, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.compile", lambda graph, **_: compiled.append(graph) or graph)
    monkeypatch.setattr("mlff_distiller.engines.painn.PainnEngine.measured_on", ())
    student = random_painn(("Cu",), zbl=False, layers=1, max_moment=1)
    one = contender(student, "painn", device="cpu", compile=wanted)
    gas = bulk("Cu", cubic=True) * (2, 1, 1)
    settings = Settings(n_steps=10, warm_up=1, repeats=1, least_seconds=0.0, time_step_fs=0.01)
    result = MDBenchmark([one], [gas], settings=settings, device="cpu").run()
    assert [case["engine"] for case in result.cases] == ["ase", "run_md"]
    assert bool(compiled) == wanted
    assert result.content["models"][0].get("compiled", False) == wanted


def test_models_take_turns(clock):
    order = []

    class Noted(Timed):
        def calculate(self, *arguments, **named):
            order.append(self.ms)
            super().calculate(*arguments, **named)

    measured({"a": Noted(clock, 1.0), "b": Noted(clock, 2.0)}, clock, repeats=2)
    changes = [ms for k, ms in enumerate(order) if k == 0 or order[k - 1] != ms]
    assert changes == [1.0, 2.0, 1.0, 2.0]


def test_a_planted_leak_is_reported_with_its_slope(clock):
    models = {"leaky": Leaky(clock, 1.0), "tight": Timed(clock, 1.0)}
    leaky, tight = measured(models, clock, n_steps=1200).cases
    assert leaky["memory"]["host"]["grows"]
    assert leaky["memory"]["host"]["growth_bytes_per_step"] == pytest.approx(16_384, rel=0.1)
    assert not tight["memory"]["host"]["grows"]
    assert tight["memory"]["gpu"] is None


def test_one_that_fails_does_not_stop_the_others(clock):
    result = measured({"bad": Failing(clock, 1.0), "good": Timed(clock, 1.0)}, clock)
    assert [case["model"] for case in result.cases] == ["good"]
    assert result.failed == [{"case": "bad ase nve Ar4:4", "error": "enough"}]


def test_an_explosion_fails(clock):
    class Pushing(Timed):
        def calculate(self, atoms=None, *arguments, **named):
            super().calculate(atoms, *arguments, **named)
            self.results["forces"] += 0.5 * atoms.get_momenta()

    result = measured({"any": Pushing(clock, 1.0)}, clock, time_step_fs=1.0)
    assert re.search("blown up near step [0-9]*5 ", result.failed[0]["error"])


def test_what_cannot_be_is_left_out_with_a_reason(clock):
    chain = Atoms("Ar4", GAS.positions)
    benchmark = MDBenchmark(
        {"gas": Timed(clock, 1.0)},
        [chain],
        ensembles=("nvt", "npt"),
        settings=Settings(n_steps=20, repeats=1, replicas=(1, 8), least_seconds=0.0),
        device="cpu",
        clock=clock,
    )
    result = benchmark.run()
    assert [case["ensemble"] for case in result.cases] == ["nvt"]
    reasons = {row["reason"] for row in result.skipped}
    assert reasons == {
        "npt needs a structure that is periodic in three directions",
        "run_md runs students only",
        "ASE moves one system at a time",
    }


def test_constant_energy_and_temperature_are_judged():
    copper = bulk("Cu", cubic=True) * (2, 2, 2)
    ensembles = ("nve", "nvt", "npt")
    cases = measured({"emt": EMT()}, perf_counter, ensembles=ensembles, systems=[copper]).cases
    assert abs(cases[0]["physics"]["drift_meV_per_atom_per_ps"]) < 5.0
    assert 0 < cases[0]["physics"]["fluctuation_meV_per_atom"] < 1.0
    assert cases[1]["physics"]["temperature_K"]["mean"] == pytest.approx(200, abs=120)
    assert "pressure_GPa" in cases[2]["physics"]


def test_students_run_both_ways_and_many_at_once():
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    settings = Settings(
        n_steps=40,
        warm_up=4,
        repeats=1,
        least_seconds=0.0,
        replicas=(1, 3),
        temperature_K=10.0,
        time_step_fs=0.1,
    )
    result = MDBenchmark(
        {"nep": random_nep(("Cu",), zbl=False)}, [atoms], settings=settings, device="cpu"
    ).run()
    assert not result.failed
    rows = {(case["engine"], case["replicas"]): case for case in result.cases}
    assert rows.keys() == {("ase", 1), ("run_md", 1), ("run_md", 3)}
    assert rows["run_md", 1]["steps_a_sample"] == 4
    assert rows["run_md", 1]["n_steps"] == 40
    batched = rows["run_md", 3]
    assert batched["atom_steps_per_s"] == pytest.approx(96 * batched["steps_per_s"])
    starts = [
        rows[key]["physics"]["series"]["temperature_K"][0] for key in (("ase", 1), ("run_md", 1))
    ]
    assert starts[0] == pytest.approx(starts[1], rel=0.05)  # the same start


# -- two results, baselines ------------------------------------------------------------------------


def run_of(ms, seed, folder=None):
    clock = Clock()
    result = measured({"model": Timed(clock, ms, jitter=0.04, seed=seed)}, clock, repeats=3)
    if folder is not None:
        folder.mkdir()
        (folder / "benchmark.json").write_text(json.dumps(result.content))
    return result


def test_comparing_says_slower_only_where_it_is(tmp_path):
    before, after, slow = run_of(2.0, 0), run_of(2.0, 1), run_of(2.4, 2)
    [same] = compare(before, after)
    assert (same.verdict, same.ratio) == ("same", pytest.approx(1.0, rel=0.01))
    [back] = compare(after, before)
    assert (back.verdict, back.ratio * same.ratio) == ("same", pytest.approx(1.0))
    [slower] = compare(before, slow)
    assert slower.verdict == "slower"
    assert slower.low < 1.2 < slower.high
    [faster] = compare(slow, before)
    assert faster.verdict == "faster"


def test_check_passes_on_the_same_code_and_fails_on_a_fifth_more(tmp_path):
    run_of(2.0, 0, tmp_path / "before"), run_of(2.0, 1, tmp_path / "same")
    run_of(2.4, 2, tmp_path / "slow")
    runner, database = CliRunner(), str(tmp_path / "baselines")
    words = ["benchmark", "record", str(tmp_path / "before"), "--into", database]
    assert runner.invoke(app, words, catch_exceptions=False).exit_code == 0
    for name, code in (("same", 0), ("slow", REFUSED)):
        words = ["benchmark", "check", str(tmp_path / name), "--against", database]
        done = runner.invoke(app, words, catch_exceptions=False)
        assert done.exit_code == code
    assert "+20." in done.output.replace("+19.", "+20.")
    words = ["benchmark", "compare", str(tmp_path / "before"), str(tmp_path / "slow"), "--json"]
    [row] = json.loads(runner.invoke(app, words, catch_exceptions=False).output)["cases"]
    assert row["verdict"] == "slower"


def test_a_noisy_machine_is_not_accused(tmp_path):
    before, slow = run_of(2.0, 0), run_of(2.4, 1)
    for case in (*before.cases, *slow.cases):
        case["noise"] = 0.1
    record(before, tmp_path)
    [verdict] = check(slow, tmp_path)
    assert verdict.passed
    assert verdict.limit == pytest.approx(3 * 0.1 * 2**0.5)


def test_another_machine_or_other_cases_are_no_baseline(tmp_path):
    result = run_of(2.0, 0)
    with pytest.raises(ConfigError, match="no baseline of this machine"):
        check(result, tmp_path)
    path = record(result, tmp_path)
    other = run_of(2.0, 0)
    other.about["device"] = "another GPU"
    with pytest.raises(ConfigError, match="to another machine"):
        check(other, path)
    result.cases[0]["system"] = "Ar5:5"
    with pytest.raises(ConfigError, match="none of these cases"):
        check(result, tmp_path)
    record(result, tmp_path)  # is added to what is there
    assert len(json.loads(path.read_text())["cases"]) == 2


def test_files_that_are_no_results_are_refused(tmp_path):
    (tmp_path / "text.json").write_text("no json")
    (tmp_path / "list.json").write_text("[]")
    content = run_of(2.0, 0).content
    (tmp_path / "new.json").write_text(json.dumps(content | {"schema": 99}))
    for name, what in (
        ("text", "not one of ours"),
        ("list", "not one of ours"),
        ("new", "another schema"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_result(tmp_path / f"{name}.json")


def test_settings_and_names_that_make_no_sense(clock):
    with pytest.raises(ConfigError, match="two models are called"):
        MDBenchmark([Timed(clock, 1.0), Timed(clock, 2.0)], [GAS], device="cpu")
    with pytest.raises(ConfigError, match="unknown name 'nph'"):
        MDBenchmark([Timed(clock, 1.0)], [GAS], ensembles=("nph",), device="cpu")
    with pytest.raises(ConfigError, match="repeats"):
        Settings(repeats=0)


# -- the page, and the command ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    clock = Clock()
    result = measured(
        {"slow & steady": Timed(clock, 5.0, 0.2), "fast": Timed(clock, 0.5, 0.2)},
        clock,
        ensembles=("nve", "nvt", "npt"),
        systems=[GAS, GAS.repeat((2, 1, 1)), Atoms("Ar4", GAS.positions)],
        n_steps=30,
        repeats=2,
    )
    result.about["gpu"] = {"memory_GiB": 80.0}
    for case in result.cases:
        course = {"mean": 50.0, "min": 0.0, "max": 90.0, "series": [0.0, 60.0, 90.0]}
        case["gpu"] = {"time_s": [0, 0.1, 0.2], "utilisation_percent": course}
        case["gpu"] |= {"power_W": course, "sm_clock_MHz": None}
    return result


def renamed(result, name):
    result = copy.deepcopy(result)
    for case in result.cases:
        case["model"] = case["model"].replace("slow & steady", name)
    return result


def test_the_page_tells_the_speed_up_and_what_was_left_out(tmp_path, made):
    result = made
    write_page(tmp_path / "report.html", result)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    ups = speed_ups(result)
    assert {row.key[3] for row in ups} == {"fast"}
    assert all(8 < row.ratio < 12 for row in ups)
    text = page.text.replace("\xa0", " ")
    assert "as fast as slow & steady through ASE" in text
    assert "npt needs a structure that is periodic in three directions" in text
    assert not [tag for tag, own in page.tags if "http" in str(own.get("src", own.get("href", "")))]


def test_the_page_says_what_was_measured_when_and_where_also_if_it_is_made_later(tmp_path, made):
    result = copy.deepcopy(made)
    result.about.update(date="1 May 2026, 12:00 UTC", command="mlff-distiller benchmark --out b")
    result.about.update(device="a GPU", cpu="a processor")
    write_page(tmp_path / "report.html", result)
    text = Page((tmp_path / "report.html").read_text("utf-8")).text.replace("\xa0", " ")
    assert "in Ar4 (Ar4:4), Ar8 (Ar8:8)" in text
    assert "at 300 K" in text
    assert "1 May 2026, 12:00 UTC · a GPU with a processor, " in text
    assert "mlff-distiller benchmark --out b" in text
    assert "All cases in numbers" in text
    assert re.search(r"through ASE \( ?[\d.]+ to [\d.]+ ?, 95 %\)", text)


def test_few_samples_have_neither_scatter_nor_drift():
    def told(n):
        clock = Clock()
        [case] = measured({"it": Timed(clock, 1.0)}, clock, n_steps=n).cases
        return case["physics"]

    few, many = told(2), told(600)
    assert few["temperature_K"]["std"] is few["temperature_K"]["drift"] is None
    assert many["temperature_K"]["std"] is not None
    assert many["drift_error_meV_per_atom_per_ps"] >= 0


@pytest.mark.parametrize("name", ["slow & steady", ATTACK], ids=["as it is", "hostile"])
def test_a_browser_draws_every_plot_without_an_error(tmp_path, made, name):
    write_page(tmp_path / "report.html", renamed(made, name))
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    figures = json.loads(page.scripts[1])
    dom, messages = browse(tmp_path, "--dump-dom")
    assert not re.findall(r".*(?:CONSOLE|Uncaught).*", messages)
    drawn = dict(re.findall(r'<div class="plot[^>]* id="([^"]+)"(.*?)</figure>', dom, re.S))
    assert (
        drawn.keys()
        == figures.keys()
        == {
            *("latency-0", "scaling-0", "scaling-1", "memory-0", "gpu-0", "gpu-1"),
            *("physics-0", "physics-1"),
        }
    )
    for plot in drawn.values():
        assert 'class="main-svg"' in plot
    assert "<img" not in json.dumps(figures)
    assert "<img" not in dom[dom.index("<body") :].split("<script>")[0]


def test_the_command_measures_a_student_beside_a_teacher(tmp_path):
    write_nep(random_nep(("Cu",), zbl=False), tmp_path / "nep.txt", max_neighbors=(200, 200))
    words = ["benchmark", "--student", f"mine={tmp_path / 'nep.txt'}"]
    words += ["--teacher", "emt=ase:ase.calculators.emt:EMT", "--system", "copper:32"]
    words += ["--steps", "20", "--warm-up", "2", "--repeats", "1", "--least-seconds", "0"]
    words += ["--temperature", "5", "--time-step", "0.1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / "out")
    models = {(case["model"], case["engine"]) for case in result.cases}
    assert models == {("mine", "ase"), ("mine", "run_md"), ("emt", "ase")}
    assert (tmp_path / "out" / "benchmark.html").stat().st_size > 10**6
    assert result.about["versions"]["torch"]
    assert result.content["models"][1]["load_s"] > 0
    assert sys.version.split()[0] == result.about["python"]


def test_the_command_says_what_it_lacks(tmp_path):
    for words in (["benchmark"], ["benchmark", "--student", "nowhere", "--out", str(tmp_path)]):
        with pytest.raises(DistillerError):
            CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_phone_shows_all_of_it(tmp_path, made):
    write_page(tmp_path / "report.html", made)
    assert cut_off_on_a_phone(tmp_path) == ""
