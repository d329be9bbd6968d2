"""Files of ``run_md``: one writer, damage, full disks, and what structures carry."""

import os
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from ase.constraints import FixCom
from ase.io import read
from tests.helpers import command, random_nep
from tests.unit.md.test_md import BRIEF, same_trajectories, water_like

from mlff_distiller import run_md
from mlff_distiller.errors import ConfigError, DynamicsError
from mlff_distiller.students.nep_file import write_nep

SUFFIXES = ("extxyz", "traj", "h5")
CHECKPOINT = "a.checkpoint.safetensors"


@pytest.fixture(scope="module")
def student():
    return random_nep()


@pytest.fixture(scope="module")
def runs(student, tmp_path_factory):
    """By suffix, a folder with the files of a run of 30 steps."""
    folders = {}
    for suffix in SUFFIXES:
        folders[suffix] = tmp_path_factory.mktemp(suffix)
        out = folders[suffix] / f"a.{suffix}"
        run_md([water_like(2), water_like(2, 1)], student, n_steps=30, out=out, **BRIEF)
    return folders


def go_on(student, out, n_steps=50, **more):
    frames = [water_like(2), water_like(2, 1)]
    return run_md(frames, student, n_steps=n_steps, out=out, **BRIEF | more)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(100) + content[middle + 100 :]


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def swapped(content: bytes) -> bytes:
    return content[len(content) // 2 :] + content[: len(content) // 2]


DAMAGE = [truncated, zeroed, flipped, swapped, lambda content: b"", lambda content: b"other\n" * 99]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("spoil", DAMAGE)
@pytest.mark.parametrize("which", ["trajectory", "log", "checkpoint"])
def test_damage_is_named_and_nothing_is_written(student, runs, tmp_path, suffix, spoil, which):
    folder = shutil.copytree(runs[suffix], tmp_path / "run")
    names = {"trajectory": f"a.{suffix}", "log": "a.log.csv", "checkpoint": CHECKPOINT}
    path = folder / names[which]
    path.write_bytes(spoil(path.read_bytes()))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        go_on(student, folder / f"a.{suffix}")
    except DynamicsError as error:
        assert path.name in error.problem  # noqa: PT017
        assert error.remedy  # noqa: PT017
    else:  # HDF5 does not use all of its bytes
        assert (suffix, which) == ("h5", "trajectory")
        whole = go_on(student, tmp_path / "b.h5")
        assert whole.n_steps == 50
        with h5py.File(path) as a, h5py.File(tmp_path / "b.h5") as b:
            assert all(np.array_equal(a[name], b[name]) for name in b)
        return
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert go_on(student, folder / f"a.{suffix}", overwrite=True).n_steps == 50


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_in_the_place_of_a_trajectory_is_named(student, runs, tmp_path, suffix):
    folder = shutil.copytree(runs[suffix], tmp_path / "run")
    (folder / f"a.{suffix}").unlink()
    (folder / f"a.{suffix}").mkdir()
    with pytest.raises(DynamicsError, match=rf"a\.{suffix}"):
        go_on(student, folder / f"a.{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_no_checkpoint_knows_of_is_cut_off_not_checked(student, runs, tmp_path, suffix):
    folder = shutil.copytree(runs[suffix], tmp_path / "run")
    with (folder / "a.log.csv").open("a") as log:
        log.write("half a li")
    if suffix != "h5":
        with (folder / f"a.{suffix}").open("ab") as file:
            file.write(b"half a frame")
    go_on(student, folder / f"a.{suffix}")
    go_on(student, tmp_path / f"b.{suffix}")
    assert (folder / "a.log.csv").read_bytes() == (tmp_path / "b.log.csv").read_bytes()
    if suffix != "h5":
        a, b = read(folder / f"a.{suffix}", ":"), read(tmp_path / f"b.{suffix}", ":")
        assert all(np.array_equal(x.positions, y.positions) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("other", ["a.extxyz", "a.h5"])
def test_a_second_run_is_refused_while_the_first_writes(student, tmp_path, other):
    """The same files, or another trajectory with the same log and checkpoint."""
    refused = []

    def again(simulation):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}") as caught:
            go_on(student, tmp_path / other, overwrite=True)
        refused.append(caught.value)

    out = tmp_path / "a.extxyz"
    go_on(student, out, n_steps=20, observers=[(10, again)])
    assert len(refused) == 3
    assert len(read(out, ":")) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(CHECKPOINT, "a.extxyz", "a.log.csv")
    ]


def test_a_log_of_something_else_is_not_overwritten(student, tmp_path):
    (tmp_path / "a.log.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"a\.log\.csv exists"):
        go_on(student, tmp_path / "a.extxyz")
    assert (tmp_path / "a.log.csv").read_text() == "mine"


def test_overwriting_waits_until_the_new_run_can_begin(student, tmp_path):
    go_on(student, tmp_path / "a.extxyz")
    before = (tmp_path / "a.extxyz").read_bytes()
    with pytest.raises(DynamicsError, match="3 values"):
        go_on(student, tmp_path / "a.extxyz", overwrite=True, temperature_K=[1, 2, 3])
    assert (tmp_path / "a.extxyz").read_bytes() == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_that_died_before_its_first_checkpoint_blocks_nothing(
    student, tmp_path, suffix, monkeypatch
):
    out = tmp_path / f"a.{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr("mlff_distiller.md.run._Run.until", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            go_on(student, out)
    assert out.exists()
    assert go_on(student, out, temperature_K=20.0).n_steps == 50


LIMITED = """
import resource, signal, sys
from pathlib import Path
from tests.helpers import random_nep
from tests.unit.md.test_files import go_on
from mlff_distiller.errors import DynamicsError
out, size = Path(sys.argv[1]), int(sys.argv[2])
student = random_nep()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
try:
    go_on(student, out, 60, frames_every=1, checkpoint_every_s=0.0)
except DynamicsError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("suffix", "size"),
    [(suffix, size) for suffix in SUFFIXES for size in (20, 3000, 60_000)] + [("h5", 90_000)],
)
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    student, tmp_path, suffix, size
):
    out = tmp_path / f"a.{suffix}"
    words = [sys.executable, "-c", LIMITED, str(out), str(size)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stdout
    assert not list(tmp_path.glob(".*"))
    for path in (out, tmp_path / f"b.{suffix}"):
        result = go_on(student, path, 60, frames_every=1)
    assert result.n_steps == 60
    assert (tmp_path / "a.log.csv").read_bytes() == (tmp_path / "b.log.csv").read_bytes()
    same_trajectories(out, tmp_path / f"b.{suffix}")


def test_an_observer_that_fails_leaves_no_hole(student, tmp_path):
    out, fails = tmp_path / "a.extxyz", [20]

    def fail(simulation):
        if simulation.step in fails:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        go_on(student, out, observers=[(5, fail)])
    fails.clear()
    go_on(student, out, observers=[(5, fail)])
    rows = (tmp_path / "a.log.csv").read_text().splitlines()[1::2]
    assert [int(row.split(",")[0]) for row in rows] == list(range(0, 51, 5))
    assert [frame.info["step"] for frame in read(out, "::2")] == list(range(0, 51, 10))


# -- what structures carry -------------------------------------------------------------------------


def labelled():
    atoms = water_like(2)
    n = len(atoms)
    atoms.info |= {"energy": -43.3, "stress": np.zeros(6), "REF_energy": 1.0, "dft_virial": 2.0}
    atoms.info |= {"name": "ice", "free_energy": 3.0}
    for name in ("forces", "REF_forces", "mace_forces"):
        atoms.set_array(name, np.ones((n, 3)))
    atoms.set_array("energies", np.ones(n))
    atoms.set_array("residue", np.arange(n))
    return atoms


@pytest.mark.parametrize("suffix", ["extxyz", "traj"])
def test_labels_of_the_first_frame_are_not_those_of_all(student, tmp_path, suffix):
    out = tmp_path / f"a.{suffix}"
    run_md(labelled(), student, n_steps=10, out=out, **BRIEF)
    last = read(out, "-1")
    assert set(last.info) == {"name", "step", "time_ps"}
    assert set(last.arrays) == {"numbers", "positions", "momenta"} | (
        {"residue"} if suffix == "extxyz" else set()  # .traj keeps none of its own
    )
    assert last.get_potential_energy() != -43.3
    assert last.get_forces().std() > 0.0


def test_extended_xyz_leaves_out_what_it_cannot_hold(student, tmp_path):
    atoms = water_like(2)
    n = len(atoms)
    atoms.info |= {"comment": "two\nlines", "name": "ice"}
    atoms.set_array("tensor", np.zeros((n, 3, 3)))
    atoms.set_array("small", np.zeros(n, np.uint8))
    atoms.set_array("residue", np.arange(n))
    with pytest.warns(UserWarning, match="cannot hold comment, small, tensor"):
        run_md(atoms, student, n_steps=10, out=tmp_path / "a.extxyz", **BRIEF)
    frames = read(tmp_path / "a.extxyz", ":")
    assert [frame.info["name"] for frame in frames] == ["ice"] * 2
    assert np.array_equal(frames[-1].arrays["residue"], np.arange(n))


def test_what_the_simulation_ignores_is_said(student):
    def told(**changes):
        atoms = water_like(2)
        for name, value in changes.items():
            if isinstance(value, np.ndarray) and len(value) == len(atoms):
                atoms.set_array(name, value)
            else:
                atoms.info[name] = value
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run_md(atoms, student, n_steps=1, **BRIEF)
        return " ".join(str(warning.message) for warning in seen)

    n = len(water_like(2))
    for words, changes in {
        "charges": {"charge": 1},
        "charges: it": {"total_charge": "-1"},
        "ignores charges": {"charge": np.array([0, 1, 0])},
        "spins": {"spin": 3},
        "spins and": {"multiplicity": 2},
        "magnetic": {"initial_magmoms": np.ones(n)},
        "'vel'": {"vel": np.ones((n, 3))},
        "'velocities'": {"velocities": np.ones((n, 3))},
        "'mass'": {"mass": np.ones(n)},
        "'Velocity'": {"Velocity": np.ones((n, 3))},
        "'MASSES'": {"MASSES": np.ones(n)},
    }.items():
        assert words in told(**changes)
    nothing = {"charge": 0, "total_charge": "0", "spin": 1, "multiplicity": None}
    assert told(**nothing, initial_magmoms=np.zeros(n)) == ""
    assert told(charge=np.zeros(3), vel=np.ones((n, 3)), momenta=np.ones((n, 3))) == ""


def test_any_constraint_but_fixed_atoms_is_refused_in_words(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atoms = water_like(2)
    atoms.set_constraint(FixCom())
    with pytest.raises(DynamicsError, match="constraint that is not supported"):
        run_md(atoms, student, n_steps=1)
    atoms.write("fixed.traj")
    write_nep(student, tmp_path / "nep.txt", max_neighbors=(100, 100))
    words = ("md", "fixed.traj", "--student", "nep.txt", "--time-ps", "1", "--out", "a.h5")
    done = command(*words)
    assert done.returncode == 1
    assert "FixCom" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.traj", "nep.txt"]
