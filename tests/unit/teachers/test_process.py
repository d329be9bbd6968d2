"""A teacher's process: nothing it does harms us or the next structure, and it never outlives us."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from tests.helpers import running

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import TeacherGaveUp, load_teacher

HERE = Path(__file__).parent
SOURCE = str(Path(sys.modules["mlff_distiller"].__file__).parents[1])
GOOD = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])


def starting_with(symbol: str) -> Atoms:
    return Atoms([symbol, "H"], [[0, 0, 0], [0, 0, 1.5]])


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize(
    ("atoms", "complaints"),
    [
        (starting_with("He"), ["ValueError: helium is beneath me", "HHe (2 atoms)", "raised at"]),
        (starting_with("Li"), ["bad forces", "NaN or infinity"]),
        (starting_with("Be"), ["exit code 7", "famous last words"]),
        (starting_with("C"), ["SIGKILL", "out of memory"]),
        (starting_with("N"), ["bad forces", "(2, 2)"]),
        (starting_with("F"), ["SystemExit: 3"]),
    ],
    ids=lambda value: value.symbols[0] if isinstance(value, Atoms) else "",
)
def test_a_failure_is_recorded_and_the_next_structure_is_not_spoilt(bad, atoms, complaints):
    calculator = bad()
    before, failed, after = calculator.label([GOOD, atoms, GOOD])
    assert failed.labels is None
    assert failed.seconds >= 0
    for complaint in complaints:
        assert complaint in failed.error
    for good in (before, after):
        assert good.error is None
        assert good.labels["energy"] == 2.0
        np.testing.assert_array_equal(good.labels["forces"], np.zeros((2, 3)))


def test_a_failure_ends_the_process_that_had_it(bad):
    calculator = bad()
    calculator.label([GOOD])
    first = calculator._session.pid
    calculator.label([GOOD])
    assert calculator._session.pid == first
    calculator.label([starting_with("He"), GOOD])
    assert calculator._session.pid != first
    assert gone_within(first, 5)


def test_refused_structures_never_reach_the_library(bad):
    calculator = bad()
    calculator.label([GOOD])
    pid = calculator._session.pid
    nan = GOOD.copy()
    nan.positions[1, 0] = np.nan
    empty, broken, good = calculator.label([Atoms(), nan, GOOD])
    assert "empty" in empty.error
    assert "atom 1 is not finite" in broken.error
    assert good.error is None
    assert calculator._session.pid == pid


def test_chatter_does_not_reach_the_protocol(bad, capfd):
    [noisy] = bad().label([starting_with("B")])
    assert noisy.labels["energy"] == 2.0
    assert capfd.readouterr() == ("", "")


def test_calculator_raises_and_forgets(bad):
    calculator = bad()
    atoms = GOOD.copy()
    atoms.calc = calculator
    assert atoms.get_potential_energy() == 2.0
    atoms.symbols[0] = "He"
    with pytest.raises(TeacherError, match="helium"):
        atoms.get_forces()
    atoms.symbols[0] = "H"
    assert atoms.get_potential_energy() == 2.0
    with pytest.raises(TeacherError, match="helium"):
        calculator.calculate(starting_with("He"))
    assert calculator.results == {}
    assert calculator.atoms is None


def test_killed_between_calls(bad):
    calculator = bad()
    calculator.label([GOOD])
    os.kill(calculator._session.pid, signal.SIGKILL)
    time.sleep(0.1)
    [good] = calculator.label([GOOD])
    assert good.error is None


def test_killed_during_a_call_and_again_when_it_is_repeated(bad):
    calculator = bad()
    calculator.label([GOOD])

    def kill_two() -> None:
        last = None
        for _ in range(2):
            while calculator._session.pid in (None, last):
                time.sleep(0.01)
            last = calculator._session.pid
            time.sleep(0.5)
            os.kill(last, signal.SIGKILL)

    killer = threading.Thread(target=kill_two)
    killer.start()
    [killed, good] = calculator.label([starting_with("Na"), GOOD])
    killer.join()
    assert "SIGKILL" in killed.error
    assert good.error is None


def test_interrupt_does_not_shift_answers(bad):
    calculator = bad()
    calculator.label([GOOD])
    main = threading.main_thread().ident
    # A job started in the background by a shell ignores ctrl-C, and Python keeps it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            calculator.label([starting_with("Na")])
    finally:
        signal.signal(signal.SIGINT, before)
    [good] = calculator.label([Atoms("H3", np.eye(3))])
    assert good.labels["energy"] == 3.0


def test_a_forked_child_of_the_library_neither_hides_its_death_nor_outlives_it(bad):
    calculator = bad("forking")
    _ = calculator.identity
    first = int(Path("child").read_text())
    started = time.monotonic()
    [dead, good] = calculator.label([starting_with("Be"), GOOD])
    assert "exit code 7" in dead.error
    assert good.error is None
    assert time.monotonic() - started < 15
    second = int(Path("child").read_text())
    assert gone_within(first, 2)
    assert alive(second)
    calculator.close()
    assert gone_within(second, 2)


def test_close_and_collection_leave_nothing_behind(bad):
    with bad() as calculator:
        calculator.label([GOOD])
        pid = calculator._session.pid
    assert gone_within(pid, 5)
    forgotten = load_teacher("ase:bad_teachers:Moody")
    forgotten.label([GOOD])
    pid = forgotten._session.pid
    del forgotten
    assert gone_within(pid, 5)


@pytest.mark.parametrize("busy", [False, True])
def test_worker_ends_with_its_parent(bad, busy):
    symbol = "Na" if busy else "H"
    code = f"""
import sys, threading
sys.path[:0] = [{SOURCE!r}]
from ase import Atoms
from mlff_distiller.teachers import TeacherGaveUp, load_teacher
calculator = load_teacher("ase:bad_teachers:Moody")
calculator.label([Atoms("H")])
print(calculator._session.pid, flush=True)
if {busy}:
    calculator.label([Atoms({symbol!r})])
threading.Event().wait()
"""
    with running(sys.executable, "-c", code) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert alive(pid)
        parent.kill()
        assert gone_within(pid, 5)


def test_a_fork_of_ours_starts_its_own(bad):
    calculator = bad()
    ours = calculator.identity.device
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _ = calculator.label([GOOD])
            os.write(writer, str(calculator._session.pid).encode())
            calculator.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert f"pid-{int(os.read(reader, 100))}" != ours
    os.close(reader)
    os.close(writer)
    assert calculator.label([GOOD])[0].error is None
    assert f"pid-{calculator._session.pid}" == ours


def test_threads_take_turns(bad, monkeypatch):
    calculator = bad()
    calculator.label([GOOD])
    calculate = calculator.calculate

    def slow(*arguments: object) -> None:
        calculate(*arguments)
        time.sleep(1e-3)  # time enough for another thread to put its own results there

    monkeypatch.setattr(calculator, "calculate", slow)
    frames = [Atoms(f"H{n}", np.arange(3.0 * n).reshape(n, 3)) for n in (1, 2, 3, 4)]
    seen = {}

    def run(n: int, atoms: Atoms) -> None:
        seen[n] = [calculator.get_property("energy", atoms) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(len(a), a)) for a in frames]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {n: [float(n)] * 20 for n in (1, 2, 3, 4)}


def test_nothing_heavy_is_imported_there(bad):
    assert bad("Modules").label([GOOD])[0].labels["energy"] == 0.0


def test_the_real_package_is_there_for_who_asks(bad, monkeypatch):
    [answer] = bad("Package").label([GOOD])
    assert answer.error is None
    assert answer.labels["energy"] == 2.0


def test_offline_unless_asked(bad, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert bad("Environment").label([GOOD])[0].labels["energy"] == 3.0
    for_name = Atoms("O")
    for answer in bad("Online").label([GOOD, for_name]):
        assert "downloads need allow_download=True" in answer.error
    assert bad("Environment", allow_download=True).label([GOOD])[0].labels["energy"] == 0.0
    [answer] = bad("Online", allow_download=True).label([GOOD])
    assert "allow_download" not in answer.error


def shadowed(tmp_path: Path, package: str) -> str:
    """A Python in which ``package`` is missing."""
    folder = tmp_path / "shadow"
    folder.mkdir()
    (folder / f"{package}.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}', name={package!r})"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_missing_library(tmp_path, monkeypatch):
    python = shadowed(tmp_path, "sevenn")
    with pytest.raises(TeacherError) as caught:
        _ = load_teacher("7net-0", python=python).identity
    assert "needs the Python package 'sevenn'" in str(caught.value)
    assert f"{python} -m pip install sevenn" in str(caught.value)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "shadow"))
    with pytest.raises(TeacherError) as caught:
        load_teacher("7net-0").label([GOOD])
    assert "pip install sevenn" in str(caught.value)


def test_an_interpreter_without_the_basics(tmp_path):
    python = shadowed(tmp_path, "numpy")
    with pytest.raises(TeacherError) as caught:
        _ = load_teacher("7net-0", python=python).identity
    assert "lacks 'numpy'" in str(caught.value)
    assert "-m pip install numpy ase" in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("no_calculator", "gives no ASE calculator"),
        ("missing", "nothing named 'missing'"),
        ("library_missing", "needs the Python package 'a_library_that_is_missing'"),
    ],
)
def test_factories_that_give_nothing(bad, factory, complaint):
    with pytest.raises(TeacherError, match=complaint):
        _ = bad(factory).identity


def test_module_that_is_missing():
    with pytest.raises(TeacherError, match=r"no module 'no_such_module'.*"):
        _ = load_teacher("ase:no_such_module.sub:X").identity


@pytest.mark.parametrize("symbol", ["K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni"])
def test_results_that_are_no_real_numbers_are_refused_with_the_reason(bad, symbol):
    crystal = Atoms([symbol], cell=3 * np.eye(3), pbc=True)
    odd, good = bad("Odd").label([crystal, GOOD])
    assert "real number" in odd.error
    assert good.error is None


def test_an_energy_in_an_array_of_one_is_a_number(bad):
    assert bad("Odd").label([starting_with("Cu")])[0].labels["energy"] == 2.0


def test_whoever_writes_into_every_file_is_stopped_and_harms_nobody(bad):
    calculator = bad("Intruder")
    odd, good, again = calculator.label([starting_with("O"), GOOD, GOOD])
    assert "unreadable" in odd.error
    assert good.labels["energy"] == again.labels["energy"] == 2.0


@pytest.mark.parametrize("factory", ["Moody", "Deaf"])
def test_a_question_without_an_answer_ends(bad, factory):
    calculator = bad(factory, timeout_s=6.0)
    calculator.label([GOOD])
    pid = calculator.pid
    hung, good = calculator.label([starting_with("Na"), GOOD])
    assert "no answer within 6 s" in hung.error
    assert "--teacher-timeout" in hung.error
    assert good.error is None
    assert not alive(pid)


def test_a_teacher_that_never_loads_ends(bad):
    with pytest.raises(TeacherError, match="no answer within 1 s"):
        bad("sleepy", timeout_s=1.0).label([GOOD])


def test_the_time_allowed_grows_with_what_was_measured(bad):
    session = bad()._session
    assert session._patience(10) == 6 * 3600
    session._longest = (1.0, 10)
    assert session._patience(10) == 3600
    session._longest = (100.0, 10)
    assert session._patience(20) == 8 * 100 * 100
    with pytest.raises(TeacherError, match="time limit"):
        bad(timeout_s=0.0)


@pytest.mark.parametrize(("symbol", "costs"), [("He", 1), ("Be", 5), ("Na", 17)])
def test_a_teacher_that_fails_again_and_again_is_given_up(bad, monkeypatch, symbol, costs):
    monkeypatch.setattr("mlff_distiller.teachers.session._PATIENCE", 2 * costs + 1)
    calculator = bad(timeout_s=6.0)  # which a busy machine needs for loading alone
    calculator.label([GOOD])
    frames = [starting_with(symbol)] * 8
    with pytest.raises(TeacherGaveUp, match=r"(?s)again and again.*the last time") as end:
        calculator.label(frames)
    assert 1 <= len(end.value.answered) <= 3
    assert all(one.labels is None and one.error for one in end.value.answered.values())
    assert calculator.label([GOOD])[0].error is None


def test_a_daemon_of_the_teacher_ends_with_it(bad):
    for symbol in ("H", "Be", "Na"):
        calculator = bad("daemonic", timeout_s=6.0)
        calculator.label([starting_with(symbol)])
        pid = int(Path("daemon").read_text())
        calculator.close()
        assert gone_within(pid, 2)
        Path("daemon").unlink()


def test_an_abort_from_another_thread_is_for_good(bad):
    calculator = bad()
    calculator.label([GOOD])
    threading.Timer(0.5, calculator.abort).start()
    started = time.monotonic()
    with pytest.raises(TeacherGaveUp):
        calculator.label([starting_with("Na"), GOOD])
    assert time.monotonic() - started < 30
    with pytest.raises(TeacherGaveUp):
        calculator.label([GOOD])
