"""Guards of ``run_md``: what they count, keep and stop; and that they move no atom."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from tests.helpers import command, random_nep, random_painn, rattled

from mlff_distiller import StudentCalculator, md, run_md
from mlff_distiller.batch import Batch
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.nep import NEPEngine
from mlff_distiller.engines.torch import TorchEngine
from mlff_distiller.errors import ConfigError, UntrustedError
from mlff_distiller.md import Ensemble, Simulation, guard
from mlff_distiller.md.watch import Watch
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students.error_model import ErrorModel, fit_error_model

BRIEF = {
    "time_step_fs": 0.2,
    "frames_every": 20,
    "log_every": 10,
    "guard_every": 4,
    "skin_A": 0.3,
    "seed": 0,
    "temperature_K": 3000.0,
}
"""Hot, so that forces, the planted estimates, grow within a few steps."""


ENSEMBLES = {
    "nve": {"ensemble": "nve"},
    "npt": {"ensemble": "npt", "pressure_GPa": 5.0, "barostat_time_fs": 200.0},
}


def crystal(seed: int = 0) -> Atoms:
    """H and O that a random student finds no more comfortable than any other places."""
    atoms = bulk("Fe", a=3.0, cubic=True) * 2
    atoms.numbers = np.random.default_rng(1).choice([1, 8], len(atoms))
    atoms.set_initial_magnetic_moments(None)
    return rattled(atoms, 0.05, seed)


def forces_as_errors(engine) -> None:
    """The planted estimate: how large the force on an atom is."""
    engine.errors.assign(np.linalg.norm(engine.forces.numpy(), axis=1))


@pytest.fixture(autouse=True)
def _planted(monkeypatch):
    for engine in (NEPEngine, TorchEngine):
        monkeypatch.setattr(engine, "estimate_errors", forces_as_errors)


@cache
def model(architecture: str) -> ErrorModel:
    student = {"nep": random_nep, "painn": random_painn}[architecture]()
    frames = []
    for seed in range(4):
        batch = Batch.from_atoms([crystal(seed)])
        found = student(batch, neighbor_list(batch, student.cutoff))
        labels = {"energy": found.energy, "forces": found.forces.detach() + 0.01}
        frames.append(replace(batch, labels=labels))
    return fit_error_model(student, frames[:2], frames[2:])


def knowing(student, limit: float):
    """``student`` with an error model of that limit."""
    student.error_model = replace(model(student.architecture), limit=limit)
    return student


def largest_forces(every: int = 4, n_steps: int = 60, **settings) -> dict[int, float]:
    """What each look of an unguarded run would meet."""
    found = {}

    def look(simulation) -> None:
        found[simulation.step] = float(
            np.linalg.norm(simulation.engine.forces.numpy(), axis=1).max()
        )

    run_md(crystal(), random_nep(), n_steps=n_steps, observers=[(every, look)], **BRIEF | settings)
    return found


@pytest.fixture(scope="module")
def course():
    return largest_forces()


@pytest.fixture(scope="module")
def limit(course):
    """Exceeded by some look after others that stay below."""
    values = list(course.values())
    first = next(k for k in range(3, len(values)) if values[k] > 1.001 * max(values[:k]))
    return 0.5 * (values[first] + max(values[:first]))


def met(course, limit) -> int:
    return next(step for step, value in course.items() if value > limit)


@pytest.mark.filterwarnings("ignore:the student does not know")
@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("make", [random_nep, random_painn])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_guard_moves_no_atom(make, ensemble, limit, device):
    ends = []
    for mode in ("off", "warn"):
        settings = BRIEF | ENSEMBLES[ensemble]
        student = knowing(make(), 0.5 * limit)
        run = run_md(crystal(), student, n_steps=60, guard=mode, device=device, **settings)
        ends.append(run)
    off, warned = ends
    assert off.trusted is None
    assert warned.trusted < 1.0
    assert np.array_equal(off.atoms[0].positions, warned.atoms[0].positions)
    assert np.array_equal(off.atoms[0].get_momenta(), warned.atoms[0].get_momenta())


@pytest.mark.filterwarnings("ignore:the student does not know")
def test_what_is_counted_is_what_each_look_met(course, limit):
    forces = []

    def look(simulation) -> None:
        forces.append(np.linalg.norm(simulation.engine.forces.numpy(), axis=1))

    run = run_md(
        crystal(), knowing(random_nep(), limit), n_steps=60, observers=[(4, look)], **BRIEF
    )
    assert run.trusted == np.mean(np.array(forces) <= limit)
    assert run.max_forces_error == max(course.values())
    rows = {row["step"]: row for row in run.log}
    assert rows[0]["max_forces_error"] == course[0]
    assert rows[20]["max_forces_error"] == max(course[12], course[16], course[20])
    assert rows[60]["trusted"] == run.trusted


def test_steps_recorded_and_sent_ahead_are_looked_at_as_others_are(limit):
    """As on a GPU: looks are launched before it is known whether a step was finished."""
    ends = []
    for ahead in (False, True):
        student = knowing(random_nep(), limit)
        one = Simulation(
            choose_engine(student, [crystal()], skin=0.1),
            [crystal()],
            Ensemble(time_step_fs=0.2, skin_A=0.1, seed=0, temperature_K=3000.0),
        )
        one._with_graphs = ahead
        events = []
        watch = Watch(one, [3], limit, events.append)
        watch.begin(continues=False)
        one.advance(100)
        assert one.n_rebuilds > 5
        assert bool(one._graphs) == ahead
        trust = watch.seen()
        ends.append((trust.n_looks, trust.n_untrusted, trust.largest, events[0].step))
    assert ends[0][0] == 34
    assert ends[0] == ends[1]


@pytest.mark.filterwarnings("ignore:the student does not know")
@pytest.mark.parametrize("make", [random_nep, random_painn])
def test_a_guarded_run_continues_as_if_it_had_not_stopped(make, tmp_path, limit):
    student = knowing(make(), 0.5 * limit)
    whole = run_md(crystal(), student, n_steps=60, out=tmp_path / "a.extxyz", **BRIEF)
    for n_steps in (17, 40, 60):
        parts = run_md(crystal(), student, n_steps=n_steps, out=tmp_path / "b.extxyz", **BRIEF)
    assert (parts.trusted, parts.max_forces_error) == (whole.trusted, whole.max_forces_error)
    for suffix in ("extxyz", "log.csv"):
        assert (tmp_path / f"a.{suffix}").read_text() == (tmp_path / f"b.{suffix}").read_text()


def test_a_warning_is_given_once_for_each_system_and_frames_are_kept(course, limit, tmp_path):
    with pytest.warns(UserWarning, match="does not know what it met") as said:
        run = run_md(
            [crystal(), crystal(3)],
            knowing(random_nep(), 0.3 * limit),
            n_steps=200,
            out=tmp_path / "md.extxyz",
            **BRIEF,
        )
    assert sorted(str(one.message).split("system ")[1][0] for one in said) == ["0", "1"]
    kept = read(run.files["untrusted"], ":")
    assert 2 <= len(kept) <= 20
    for atoms in kept:
        assert atoms.info["step"] % 4 == 0
        assert atoms.arrays["forces_error"].max() > 0.3 * limit


def test_kept_frames_are_those_that_were_met(course, limit, tmp_path):
    student = knowing(random_nep(), limit)
    with pytest.warns(UserWarning, match="does not know what it met"):
        run = run_md(crystal(), student, n_steps=60, out=tmp_path / "md.extxyz", **BRIEF)
    atoms = read(run.files["untrusted"], 0)
    assert atoms.info["step"] == met(course, limit)
    assert atoms.arrays["forces_error"].max() == pytest.approx(course[met(course, limit)])
    atoms.calc = StudentCalculator(student, device="cpu")
    forces = np.linalg.norm(atoms.get_forces(), axis=1)
    assert forces == pytest.approx(atoms.arrays["forces_error"], rel=1e-4)


def test_a_stopped_run_goes_on_from_its_last_trusted_state(limit, tmp_path):
    """Also where rows of the log, at which it looks as well, come between two looks."""
    course = largest_forces(every=2)
    looks = [step for step in course if step % 4 == 0 or step % 10 == 0]
    first = next(step for step in looks if course[step] > limit)
    settings = BRIEF | {"out": tmp_path / "md.extxyz"}
    student = knowing(random_nep(), limit)
    for _ in range(2):  # again, it meets the same
        with pytest.raises(UntrustedError, match="does not know") as stopped:
            run_md(crystal(), student, n_steps=60, guard="stop", **settings)
        assert f"step {first} " in str(stopped.value)
        last = read(tmp_path / "md.extxyz", -1)
        assert last.info["step"] == max(step for step in looks if step < first)
        assert np.linalg.norm(last.get_forces(), axis=1).max() <= limit
    assert len(read(tmp_path / "md.untrusted.extxyz", ":")) == 1
    parts = run_md(crystal(), student, n_steps=60, guard="off", **settings)
    whole = run_md(crystal(), student, n_steps=60, guard="off", **BRIEF)
    assert np.array_equal(parts.atoms[0].positions, whole.atoms[0].positions)
    steps = [atoms.info["step"] for atoms in read(tmp_path / "md.extxyz", ":")]
    assert steps == [0, 20, 40, 60]


@pytest.mark.filterwarnings("ignore:the student does not know")
def test_what_is_harvested_covers_the_run_and_stays_below_its_cap(tmp_path, monkeypatch):
    monkeypatch.setitem(guard._MOST, "harvest", 7)
    monkeypatch.setattr(guard, "_APART_FS", 1.0)
    student = knowing(random_nep(), 1e-6)
    for n_steps in (100, 300):
        run = run_md(
            crystal(),
            student,
            n_steps=n_steps,
            out=tmp_path / "md.extxyz",
            guard="harvest",
            harvest=tmp_path / "pool",
            **BRIEF,
        )
    assert run.files["untrusted"] == tmp_path / "pool" / "md.extxyz"
    steps = [atoms.info["step"] for atoms in read(run.files["untrusted"], ":")]
    assert 4 <= len(steps) <= 7
    assert steps == sorted(set(steps))
    assert steps[-1] > 200


@pytest.mark.filterwarnings("ignore:the student does not know")
def test_a_teacher_takes_over_where_the_student_does_not_know(limit, tmp_path):
    """It is the student itself in ASE's loop: the trajectory tells whether any step lacks."""
    whole = run_md(crystal(), random_nep(), n_steps=60, out=tmp_path / "a.extxyz", **BRIEF)
    settings = BRIEF | {"guard": "teacher", "teacher_steps": 6, "out": tmp_path / "b.extxyz"}
    student = knowing(random_nep(), limit)
    for n_steps in (17, 60):
        teacher = StudentCalculator(random_nep(), device="cpu")
        run = run_md(crystal(), student, n_steps=n_steps, teacher=teacher, **settings)
    assert run.n_steps == 60
    assert np.abs(run.atoms[0].positions - whole.atoms[0].positions).max() < 1e-5
    made = {step for first, last in run.teacher_steps for step in range(first, last + 1)}
    assert 0 < len(made) < 60
    lines = (tmp_path / "b.log.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [int(row["step"]) for row in rows] == list(range(0, 61, 10))
    assert sum(int(row["teacher_steps"]) for row in rows) == len(made)
    frames = [read(tmp_path / name, ":") for name in ("a.extxyz", "b.extxyz")]
    for one, other in zip(*frames, strict=True):
        assert one.info["step"] == other.info["step"]
        assert np.abs(one.get_forces() - other.get_forces()).max() < 1e-4


def test_a_run_that_begins_untrusted_is_the_teachers_until_it_is_not(tmp_path):
    teacher = StudentCalculator(random_nep(), device="cpu")
    settings = {"guard": "teacher", "teacher": teacher, "teacher_steps": 6} | BRIEF
    with pytest.warns(UserWarning, match="does not know what it met at step 0 "):
        run = run_md(crystal(), knowing(random_nep(), 1e-6), n_steps=15, **settings)
    assert run.teacher_steps == ((1, 15),)


def test_a_log_without_these_columns_is_continued_without_them(limit, tmp_path):
    settings = BRIEF | {"out": tmp_path / "md.extxyz"}
    run_md(crystal(), random_nep(), n_steps=20, **settings)
    before = (tmp_path / "md.log.csv").read_text()
    assert "trusted" not in before
    run = run_md(crystal(), knowing(random_nep(), 1e3), n_steps=40, **settings)
    assert run.trusted == 1.0
    lines = (tmp_path / "md.log.csv").read_text().splitlines()
    assert "\n".join(lines[:4]) == before.strip()
    assert {line.count(",") for line in lines} == {8}


def test_a_guard_without_an_estimate_is_refused():
    with pytest.raises(ConfigError, match="estimates its errors"):
        run_md(crystal(), random_nep(), n_steps=1, guard="warn")
    with pytest.raises(ConfigError, match="unknown guard"):
        run_md(crystal(), random_nep(), n_steps=1, guard="shout")
    with pytest.raises(ConfigError, match="harvested"):
        run_md(crystal(), knowing(random_nep(), 1.0), n_steps=1, guard="harvest")
    with pytest.raises(ConfigError, match="a teacher takes over"):
        run_md(crystal(), knowing(random_nep(), 1.0), n_steps=1, guard="teacher")
    teacher = {"guard": "teacher", "teacher": StudentCalculator(random_nep(), device="cpu")}
    with pytest.raises(ConfigError, match="for one system"):
        run_md([crystal()] * 2, knowing(random_nep(), 1.0), n_steps=1, **teacher)
    with pytest.raises(ConfigError, match="guard_every"):
        run_md(crystal(), random_nep(), n_steps=1, guard_every=0)


def test_a_command_that_the_guard_has_stopped_ends_with_a_code_of_its_own(tmp_path, monkeypatch):
    def stopped(*_, **settings):
        assert (settings["guard"], settings["guard_limit"]) == ("stop", 0.5)
        raise UntrustedError("the student does not know what it met")

    monkeypatch.setattr(md, "run_md", stopped)
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    words = ("--student", "run", "--time-ps", 1, "--out", tmp_path / "md.extxyz")
    done = command("md", tmp_path / "a.xyz", *words, "--guard", "stop", "--guard-limit", 0.5)
    assert done.returncode == 3
    assert "does not know what it met" in done.stderr


@pytest.mark.filterwarnings("ignore:the student does not know")
def test_a_calculator_counts_warns_and_stops(limit):
    atoms = crystal()
    student = knowing(random_nep(), limit)
    atoms.calc = StudentCalculator(student, device="cpu", guard="warn", guard_every=2)
    forces = [atoms.get_forces()]
    for _ in range(4):
        atoms.rattle(0.2, rng=np.random.default_rng(len(forces)))
        forces.append(atoms.get_forces())
    bad = sum((np.linalg.norm(one, axis=1) > limit).sum() for one in forces[::2])
    assert (atoms.calc.n_looks, atoms.calc.n_untrusted) == (3 * len(atoms), bad)
    assert bad > 0
    atoms.calc = StudentCalculator(student, device="cpu", guard="stop", guard_every=1)
    with pytest.raises(UntrustedError, match="does not know this structure"):
        atoms.get_forces()
    with pytest.raises(ConfigError, match="estimates its errors"):
        StudentCalculator(random_nep(), device="cpu", guard="warn")


def test_one_core_counts(limit):
    """Atomic additions of Warp are none on a CPU: of several cores some would be lost."""
    atoms = crystal() * 4
    engine = choose_engine(knowing(random_nep(), limit), [atoms])
    engine.n_threads = 4
    watch = Watch(Simulation(engine, [atoms], Ensemble()), [1], 1.0, lambda event: None)
    count, keep = watch._launches
    assert len(count._ranges) == 1 < len(keep._ranges)
    engine.errors.fill_(2.0)
    for _ in range(3):
        count()
        keep()
    assert watch.seen().n_untrusted == [3 * len(atoms)]
