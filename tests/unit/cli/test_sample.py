"""``sample``, as a user runs it: what it makes, what it refuses, and why."""

import signal
import sys
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from tests.helpers import running
from typer.testing import CliRunner

from mlff_distiller import durable
from mlff_distiller.cli.main import app
from mlff_distiller.errors import ConfigError, DistillerError, StructureError, TeacherError

EMT = "ase:ase.calculators.emt:EMT"


@pytest.fixture
def copper(tmp_path):
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True), format="extxyz")
    return tmp_path / "cu.xyz"


@pytest.fixture
def water(tmp_path):
    write(tmp_path / "water.xyz", molecule("H2O"), format="extxyz")
    return tmp_path / "water.xyz"


def run(*words):
    return CliRunner().invoke(app, ["sample", *map(str, words), "--quiet"], catch_exceptions=False)


@pytest.mark.parametrize("method", ["tree", "md"])
def test_a_teacher_that_cannot_start_says_why(copper, tmp_path, method):
    words = (copper, "--method", method, "--teacher", "ase:no_such_library:factory")
    with pytest.raises(TeacherError, match="no_such_library"):
        run(*words, "--out", tmp_path / "new.xyz")


@pytest.mark.parametrize("method", ["tree", "md"])
def test_a_structure_the_teacher_cannot_evaluate_is_named(tmp_path, method):
    write(tmp_path / "si.xyz", bulk("Si"), format="extxyz")
    words = (tmp_path / "si.xyz", "--method", method, "--teacher", EMT)
    with pytest.raises(DistillerError, match=r"(?s)EMT.*Si"):
        run(*words, "-n", 2, "--out", tmp_path / "new.xyz")


def test_a_scan_needs_a_cell(water, copper, tmp_path):
    for extra in ((), ("--select", 3)):
        words = (water, "--method", "scan", "--out", tmp_path / "new.xyz", *extra)
        with pytest.raises(StructureError, match=r"(?s)periodic in three.*H2O.*remedy"):
            run(*words)
    assert not (tmp_path / "new.xyz").exists()
    run(water, copper, "--method", "scan", "--out", tmp_path / "new.xyz")
    assert {len(atoms) for atoms in read(tmp_path / "new.xyz", ":")} == {4}


def test_approach_pushes_pairs_together(water, tmp_path):
    run(water, "--method", "approach", "-n", 6, "--out", tmp_path / "new.xyz")
    frames = read(tmp_path / "new.xyz", ":")
    shortest = read(water).get_all_distances()[0, 1]
    assert len(frames) == 6
    assert {(atoms.info["source"], atoms.info["seed"]) for atoms in frames} == {("approach", 0)}
    near = [(atoms.get_all_distances() + 9 * np.eye(3)).min() for atoms in frames]
    assert 0.8 * shortest <= min(near) + 1e-6 < 0.9 * shortest
    write(tmp_path / "ar.xyz", Atoms("Ar"), format="extxyz")
    with pytest.raises(StructureError, match=r"(?s)pushed together.*found:\s*Ar"):
        run(tmp_path / "ar.xyz", "--method", "approach", "--out", tmp_path / "none.xyz")


def test_a_scan_says_where_its_frames_come_from(copper, tmp_path):
    run(copper, "--method", "scan", "--out", tmp_path / "new.xyz")
    frames = read(tmp_path / "new.xyz", ":")
    assert {(atoms.info["source"], atoms.info["seed"]) for atoms in frames} == {("scan", 0)}
    assert {len(np.ravel(atoms.info["strain"])) for atoms in frames} == {6}


def test_more_than_is_made_cannot_be_selected(copper, tmp_path):
    out = tmp_path / "new.xyz"
    with pytest.raises(ConfigError, match=r"(?s)--select.*at most 10.*found: +50"):
        run(copper, "--teacher", EMT, "--select", 50, "-n", 10, "--out", out)
    with pytest.raises(ConfigError, match=r"(?s)--select.*at most 34.*found: +50"):
        run(copper, "--method", "scan", "--select", 50, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("command", ["sample", "plan"])
def test_teachers_may_be_allowed_to_download(command, copper, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def calculator(spec, **options):
        raise Asked(options["allow_download"])

    monkeypatch.setattr(f"mlff_distiller.workflows.{command}.load_teacher", calculator)
    monkeypatch.setattr("mlff_distiller.workflows.plan.Dataset", lambda folder: None)
    words = [command, str(copper), "--teacher", "mace-mp-0"]
    words += ["--out", str(tmp_path / "new.xyz")] if command == "sample" else []
    for extra, allowed in (([], False), (["--allow-download"], True)):
        with pytest.raises(Asked) as caught:
            CliRunner().invoke(app, [*words, *extra], catch_exceptions=False)
        assert caught.value.args == (allowed,)


def test_a_crash_while_selecting_loses_nothing(copper, tmp_path, monkeypatch):
    out = tmp_path / "new.xyz"

    class Crash(Exception):
        pass

    def crash(path):
        raise Crash

    monkeypatch.setattr(durable, "_fsync_path", crash)
    with pytest.raises(Crash):
        run(copper, "--teacher", EMT, "-n", 6, "--select", 3, "--out", out)
    monkeypatch.undo()
    assert len(read(out, ":")) == 6  # all that were made
    out.unlink()
    run(copper, "--teacher", EMT, "-n", 6, "--select", 3, "--out", out)
    assert len(read(out, ":")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cu.xyz", "new.xyz"]


def test_selecting_from_a_pool_needs_no_teacher(tmp_path):
    common = [bulk("Cu", cubic=True) for _ in range(20)]
    for number, atoms in enumerate(common):
        atoms.rattle(0.01, seed=number)
        atoms.info["charge"] = 1
    rare = [bulk("Au", cubic=True), molecule("H2O")]
    write(tmp_path / "a.xyz", [*common, *common[:5]], format="extxyz")
    write(tmp_path / "b.xyz", rare, format="extxyz")
    words = (tmp_path / "a.xyz", tmp_path / "b.xyz", "--method", "pool")
    run(*words, "--select", 3, "--out", tmp_path / "few.xyz")
    few = read(tmp_path / "few.xyz", ":")
    assert [atoms.get_chemical_formula() for atoms in few] == ["Cu4", "Au4", "H2O"]
    about = few[0].info
    assert (about["charge"], about["file"]) == (1, str(tmp_path / "a.xyz"))
    assert few[0] == read(tmp_path / "a.xyz", about["frame"])
    with pytest.raises(ConfigError, match=r"at most 22"):  # repetitions count once
        run(*words, "--select", 23, "--out", tmp_path / "none.xyz")
    with pytest.raises(ConfigError, match=r"(?s)pool.*--select"):
        run(*words, "--out", tmp_path / "none.xyz")
    bad = bulk("Cu")
    bad.positions[0, 0] = np.nan
    write(tmp_path / "bad.xyz", bad, format="extxyz")
    with pytest.raises(StructureError, match=r"bad\.xyz, frame 0.*not finite"):
        run(tmp_path / "bad.xyz", *words[2:], "--select", 1, "--out", tmp_path / "none.xyz")


def test_what_an_interruption_says_is_true(copper, tmp_path):
    out = tmp_path / "new.xyz"
    command = [sys.executable, "-m", "mlff_distiller", "sample", copper, "--method", "md"]
    with running(*command, "--teacher", EMT, "-n", 100_000, "--out", out) as process:
        while not (out.exists() and out.stat().st_size) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; distill, label, train, md, validate and data import continue" in said
    assert "Traceback" not in said
    assert len(read(out, ":")) >= 1


def test_a_temperature_below_zero_is_refused(copper, tmp_path):
    for method in ("tree", "md"):
        words = (copper, "--method", method, "--teacher", EMT, "--temperature", -5)
        with pytest.raises(ConfigError, match=r"temperature_K.*greater than 0 \(found -5"):
            run(*words, "--out", tmp_path / "new.xyz")


def test_forces_come_from_one_model(copper, tmp_path):
    for words in ((), ("--teacher", EMT, "--student", copper)):
        with pytest.raises(ConfigError, match="either --teacher or --student"):
            run(copper, *words, "--out", tmp_path / "new.xyz")


@pytest.mark.parametrize("method", ["tree", "scan", "pool"])
def test_a_pressure_that_nothing_would_heed_is_refused(copper, tmp_path, method):
    with pytest.raises(ConfigError, match=f"--method {method} does not take a pressure"):
        run(copper, "--method", method, "--pressure", 1.0, "--out", tmp_path / "new.xyz")
    assert not (tmp_path / "new.xyz").exists()
