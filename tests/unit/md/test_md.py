"""``run_md``: restarts, replicas, files, limits; what is refused, and what is left of failures."""

import json
import os
import signal
import time

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from tests.helpers import random_nep, random_painn, rattled

from mlff_distiller import StudentCalculator, run_md
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.errors import ConfigError, DynamicsError
from mlff_distiller.md import Ensemble, Simulation
from mlff_distiller.md.ensemble import seeds_of

ENSEMBLES = {
    "nve": {"ensemble": "nve"},
    "langevin": {"ensemble": "nvt", "friction_per_ps": 20.0},
    "bussi": {"ensemble": "nvt", "thermostat": "bussi"},
    "npt": {"ensemble": "npt", "pressure_GPa": 5.0, "barostat_time_fs": 200.0},
    "triclinic": {
        "ensemble": "npt",
        "thermostat": "bussi",
        "pressure_coupling": "triclinic",
        "barostat_time_fs": 200.0,
    },
}
BRIEF = {"time_step_fs": 0.2, "frames_every": 10, "log_every": 5, "skin_A": 0.3, "seed": 0}


def water_like(n: int = 3, seed: int = 0) -> Atoms:
    """A crystal of H and O that a random student finds no more comfortable than any other."""
    atoms = bulk("Fe", a=3.0, cubic=True) * (n, n, n)
    atoms.numbers = np.random.default_rng(1).choice([1, 8], len(atoms))
    atoms.set_initial_magnetic_moments(None)
    return rattled(atoms, 0.05, seed)


@pytest.fixture(scope="module")
def student():
    return random_nep()


@pytest.fixture(scope="module", params=["nep", "painn"])
def any_student(request, student):
    return student if request.param == "nep" else random_painn()


def simulation(student, frames, **settings) -> Simulation:
    frames = [frames] if isinstance(frames, Atoms) else frames
    settings = {"time_step_fs": 0.2, "skin_A": 0.3, "seed": 0} | settings
    ensemble = Ensemble(**settings)
    return Simulation(choose_engine(student, frames, skin=ensemble.skin_A), frames, ensemble)


def same(a, b) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("step", "positions", "velocities", "cell")
    )


def same_trajectories(a, b) -> None:
    if a.suffix == ".h5":
        with h5py.File(a) as one, h5py.File(b) as other:
            assert set(one) == set(other)
            assert all(np.array_equal(one[name], other[name]) for name in other)
        return
    for one, other in zip(read(a, ":"), read(b, ":"), strict=True):
        for name in ("positions", "momenta"):
            assert np.array_equal(one.arrays[name], other.arrays[name])
        assert np.array_equal(one.cell, other.cell)
        assert one.get_potential_energy() == other.get_potential_energy()
        assert np.array_equal(one.get_forces(), other.get_forces())


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "h5"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_every_format_continues_as_if_it_had_not_stopped(student, tmp_path, suffix, ensemble):
    a, b = (tmp_path / f"{name}.{suffix}" for name in "ab")
    settings = BRIEF | ENSEMBLES[ensemble]
    run_md(water_like(2), student, n_steps=60, out=a, **settings)
    for n_steps in (17, 40, 60):
        run_md(water_like(2), student, n_steps=n_steps, out=b, **settings)
    same_trajectories(a, b)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_continuing_equals_not_having_stopped(any_student, tmp_path, ensemble):
    atoms, settings = water_like(2), BRIEF | ENSEMBLES[ensemble]
    whole = run_md(atoms, any_student, n_steps=60, out=tmp_path / "a.extxyz", **settings)
    for n_steps in (17, 40, 60):
        parts = run_md(atoms, any_student, n_steps=n_steps, out=tmp_path / "b.extxyz", **settings)
    assert np.array_equal(parts.atoms[0].positions, whole.atoms[0].positions)
    assert np.array_equal(parts.atoms[0].get_momenta(), whole.atoms[0].get_momenta())
    assert np.array_equal(parts.atoms[0].cell, whole.atoms[0].cell)
    for suffix in ("extxyz", "log.csv"):
        assert (tmp_path / f"a.{suffix}").read_text() == (tmp_path / f"b.{suffix}").read_text()


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_replicas_move_as_single_runs_do(student, ensemble):
    frames = [water_like(2), water_like(3, seed=4), water_like(2, seed=5)]
    settings = ENSEMBLES[ensemble]
    batch = simulation(student, frames, seed=3, temperature_K=(100.0, 300.0, 500.0), **settings)
    batch.advance(40)
    for k, atoms in enumerate(frames):
        temperature = (100.0, 300.0, 500.0)[k]
        seed = int(seeds_of(3, k + 1)[k])
        alone = simulation(student, atoms, seed=seed, temperature_K=temperature, **settings)
        alone.advance(40)
        found, wanted = batch.frames()[k], alone.atoms()
        assert np.array_equal(found.positions, wanted.positions)
        assert np.array_equal(found.cell, wanted.cell)
        assert found.get_potential_energy() == wanted.get_potential_energy()
        assert np.array_equal(found.get_forces(), wanted.get_forces())


def test_forces_energy_and_pressure_are_the_calculators(student):
    one = simulation(student, water_like(), ensemble="npt", temperature_K=50.0)
    one.advance(30)
    atoms = one.atoms()
    atoms.info = {}
    found = {name: atoms.calc.results[name] for name in ("energy", "forces", "stress")}
    atoms.calc = StudentCalculator(student, device="cpu")
    assert np.abs(found["forces"] - atoms.get_forces()).max() < 1e-5
    assert found["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
    assert np.abs(found["stress"] - atoms.get_stress()).max() < 1e-6
    pressure = -np.trace(atoms.get_stress(voigt=False, include_ideal_gas=True)) / 3
    assert one.observables().pressure_GPa[0] == pytest.approx(pressure * 160.21766, rel=1e-4)


def test_steps_do_not_depend_on_how_they_are_asked_for(student):
    ends = []
    for sizes in ((40,), (1,) * 40, (7, 33)):
        one = simulation(student, water_like(2), **ENSEMBLES["npt"])
        for size in sizes:
            one.advance(size)
        ends.append(one.state())
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_results_do_not_depend_on_the_skin(student):
    ends = []
    for skin in (0.15, 2.0):
        one = simulation(student, water_like(2), skin_A=skin, temperature_K=2000.0)
        one.advance(30)
        ends.append((one.state(), one.n_rebuilds))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1] > ends[1][1] == 1


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_steps_recorded_and_sent_ahead_stop_where_neighbours_are_wanted(student, ensemble):
    """As on a GPU: a block's launches do not know of each other; Warp records on CPUs as well."""
    ends = []
    for ahead in (False, True):
        one = simulation(
            student, water_like(2), skin_A=0.1, temperature_K=1000.0, **ENSEMBLES[ensemble]
        )
        one._with_graphs = ahead
        one.advance(100)
        assert one.n_rebuilds > 10
        assert bool(one._graphs) == ahead
        ends.append(one.state())
    assert ends[0].step == 100
    assert same(*ends)


def test_a_barostat_does_not_find_neighbours_anew_at_every_step(student):
    one = simulation(student, water_like(), skin_A=1.0, **ENSEMBLES["triclinic"])
    before = one.cell()
    one.advance(50)
    assert np.abs(one.cell() - before).max() > 1e-3
    assert one.n_rebuilds < 10
    fresh = one.atoms()
    fresh.calc = StudentCalculator(student, device="cpu")
    assert np.abs(fresh.get_forces() - one.atoms().get_forces()).max() < 1e-5


def test_a_barostat_squeezes_a_crystal_without_losing_a_neighbour(student):
    """Atoms keep their places in the cell, so that nothing but its strain can wear the skin out."""
    atoms = bulk("Fe", a=3.0, cubic=True) * 2
    atoms.numbers[:] = 8
    atoms.set_initial_magnetic_moments(None)
    settings = {"temperature_K": 0.0, "friction_per_ps": 1e4, "barostat_time_fs": 200.0}
    one = simulation(student, atoms, ensemble="npt", pressure_GPa=1500.0, skin_A=1.0, **settings)
    for _ in range(20):
        one.advance(2)
        now = one.atoms()
        found = now.get_potential_energy()
        now.calc = StudentCalculator(student, device="cpu")
        assert found == pytest.approx(now.get_potential_energy(), abs=1e-4)
    assert now.cell.lengths().max() < 0.85 * atoms.cell.lengths().min()
    assert 1 < one.n_rebuilds < 10


def test_what_the_cell_alone_does_is_no_reason_to_find_neighbours_anew(student):
    atoms = bulk("Fe", a=3.0, cubic=True) * (2, 2, 20)
    atoms.numbers[:] = 8
    settings = {"temperature_K": 0.0, "friction_per_ps": 1e4, "barostat_time_fs": 200.0}
    one = simulation(student, atoms, ensemble="npt", pressure_GPa=100.0, skin_A=1.0, **settings)
    one.advance(40)
    assert atoms.cell[2, 2] - one.cell()[0, 2, 2] > 0.55
    assert one.n_rebuilds == 1


@pytest.mark.parametrize("coupling", ["isotropic", "triclinic"])
def test_a_barostat_reaches_its_pressure(student, coupling):
    """At 0 K, where pressure is the virial's, and where this model resists compression."""
    atoms = bulk("Fe", a=2.2, cubic=True) * 2
    atoms.numbers[:] = 8
    settings = {"temperature_K": 0.0, "friction_per_ps": 1e4, "pressure_coupling": coupling}
    start = simulation(student, atoms).observables().pressure_GPa[0]
    one = simulation(
        student,
        atoms,
        ensemble="npt",
        pressure_GPa=start + 2.0,
        barostat_time_fs=20.0,
        max_temperature_K=1e6,
        **settings,
    )
    one.advance(600)
    assert one.observables().pressure_GPa[0] == pytest.approx(start + 2.0, abs=0.05)


def test_a_density_jump_during_the_run_loses_no_neighbour(student):
    """Compressed by 30 %: the table grows, and forces are those of a fresh start."""
    one = simulation(student, water_like(4), max_temperature_K=1e9, max_step_A=5.0)
    one.advance(5)
    capacity = one.engine.neighbors.capacity
    one.set_cell(0.7 ** (1 / 3) * one.cell()[0])
    compressed = one.atoms()
    compressed.calc = StudentCalculator(student, device="cpu")
    assert np.abs(one.atoms().get_forces() - compressed.get_forces()).max() < 1e-4
    one.advance(3)
    assert one.engine.neighbors.capacity > capacity
    compressed = one.atoms()
    wanted = one.engine.forces.numpy().copy()
    compressed.calc = StudentCalculator(student, device="cpu")
    assert np.abs(wanted - compressed.get_forces()).max() < 1e-4


def test_an_atom_that_moves_too_far_ends_the_run_with_the_last_good_frame(student, tmp_path):
    atoms = water_like(2)
    momenta = np.zeros((len(atoms), 3))
    momenta[3, 0] = 50.0
    out, kicked = tmp_path / "a.extxyz", []

    def kick(one: Simulation) -> None:
        kicked.append(one.step)
        if one.step == 20:
            velocities = one.velocities.numpy().copy()
            velocities[3] = [500.0, 0.0, 0.0]
            one.velocities.assign(velocities)

    with pytest.raises(DynamicsError, match="blown up near step 20") as caught:
        run_md(atoms, student, n_steps=100, out=out, observers=[(5, kick)], **BRIEF)
    assert "atom 3 of system 0" in str(caught.value)
    frames = read(out, ":")
    assert all(np.isfinite(frame.positions).all() for frame in frames)
    assert frames[-1].info["step"] == 20
    assert kicked == [0, 5, 10, 15, 20]


def test_nan_ends_the_run_and_the_state_before_is_kept(student):
    one = simulation(student, water_like(2))
    one.advance(10)
    before = one.state()
    velocities = one.velocities.numpy().copy()
    velocities[5, 1] = np.nan
    one.velocities.assign(velocities)
    with pytest.raises(DynamicsError, match="atom 5 of system 0"):
        one.advance(10)
    one.load(before)
    one.advance(10)
    assert np.isfinite(one.state().positions).all()


def test_heat_ends_the_run(student):
    one = simulation(student, water_like(2), max_temperature_K=400.0, temperature_K=300.0)
    velocities = one.velocities.numpy() * 2.0
    one.velocities.assign(velocities)
    with pytest.raises(DynamicsError, match=r"system 0 has .* K"):
        one.advance(10)


def test_a_cell_that_collapses_ends_the_run(student):
    one = simulation(student, water_like(2), ensemble="npt", pressure_GPa=1e6)
    with pytest.raises(DynamicsError, match="cell of system 0 changes too fast"):
        one.advance(10)


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "h5"])
def test_trajectories_of_several_systems(student, tmp_path, suffix):
    frames, out = [water_like(2), water_like(3)], tmp_path / f"a.{suffix}"
    settings = BRIEF | {"n_steps": 30}
    result = run_md(frames, student, out=out, **settings)
    last = [result.atoms[k].positions for k in range(2)]
    if suffix == "h5":
        with h5py.File(out) as file:
            assert file["step"][:].tolist() == [0, 10, 20, 30]
            positions, system_idx = file["positions"][-1], file["system_idx"][:]
            assert file["energy"].shape == (4, 2)
        found = [positions[system_idx == k] for k in range(2)]
    else:
        frames = read(out, ":")
        assert [frame.info["system"] for frame in frames] == [0, 1] * 4
        assert [frame.info["step"] for frame in frames] == [0, 0, 10, 10, 20, 20, 30, 30]
        assert np.isfinite(frames[-1].get_potential_energy())
        assert frames[-1].get_momenta().any()
        found = [read(out, f"{k}::2")[-1].positions for k in range(2)]
    for a, b in zip(found, last, strict=True):
        assert np.abs(a - b).max() < 1e-7
    rows = (tmp_path / "a.log.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 7


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "h5"])
def test_what_was_written_after_the_checkpoint_is_cut_off(student, tmp_path, suffix):
    out, checkpoint = tmp_path / f"a.{suffix}", tmp_path / "a.checkpoint.safetensors"
    run_md(water_like(2), student, n_steps=20, out=out, **BRIEF)
    early = checkpoint.read_bytes()
    run_md(water_like(2), student, n_steps=80, out=out, **BRIEF)
    checkpoint.write_bytes(early)
    run_md(water_like(2), student, n_steps=30, out=out, **BRIEF)
    if suffix == "h5":
        with h5py.File(out) as file:
            steps = file["step"][:].tolist()
    else:
        steps = [frame.info["step"] for frame in read(out, ":")]
    assert steps == [0, 10, 20, 30]
    rows = (tmp_path / "a.log.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(0, 31, 5))


def test_log_as_json_lines_and_without_files(student, tmp_path):
    out = tmp_path / "a.traj"
    result = run_md(water_like(2), student, n_steps=10, out=out, log_format="jsonl", **BRIEF)
    rows = [json.loads(line) for line in (tmp_path / "a.log.jsonl").read_text().splitlines()]
    assert rows == result.log
    assert rows[-1]["total_energy"] == pytest.approx(
        rows[-1]["potential_energy"] + rows[-1]["kinetic_energy"]
    )
    molecule = Atoms("OH2", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0]])
    result = run_md(molecule, student, n_steps=10, max_temperature_K=1e6, **BRIEF)
    assert result.log[-1]["pressure_GPa"] is None
    assert result.files == {}


def test_fixed_atoms_stay_and_other_constraints_are_refused(student):
    atoms = water_like(2)
    atoms.set_constraint(FixAtoms([0, 4]))
    for name in ("nve", "langevin", "bussi"):
        one = simulation(student, atoms, **ENSEMBLES[name])
        one.advance(20)
        moved = np.abs(one.atoms().positions - atoms.positions).max(1)
        assert (moved[[0, 4]] == 0).all()
        assert (np.delete(moved, [0, 4]) > 0).all()
    with pytest.raises(DynamicsError, match="fixed atoms"):
        simulation(student, atoms, ensemble="npt")
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(DynamicsError, match="not supported"):
        simulation(student, atoms)


def test_what_is_refused(student, tmp_path):
    atoms = water_like(2)
    slab = atoms.copy()
    slab.pbc = [True, True, False]
    with pytest.raises(DynamicsError, match="no pressure"):
        run_md(slab, student, n_steps=1, ensemble="npt")
    with pytest.raises(ConfigError, match="ensemble"):
        run_md(atoms, student, n_steps=1, ensemble="nph")
    with pytest.raises(TypeError, match="temperatur_K"):
        run_md(atoms, student, n_steps=1, temperatur_K=300)
    with pytest.raises(ConfigError, match="length of the run"):
        run_md(atoms, student)
    with pytest.raises(DynamicsError, match="temperature_K has 2 values"):
        run_md(atoms, student, n_steps=1, temperature_K=[1, 2])
    with pytest.raises(DynamicsError, match="format"):
        run_md(atoms, student, n_steps=1, out=tmp_path / "a.pdb")
    out = tmp_path / "a.extxyz"
    run_md(atoms, student, n_steps=2, out=out, **BRIEF)
    with pytest.raises(ConfigError, match="another simulation: seed"):
        run_md(atoms, student, n_steps=4, out=out, **BRIEF | {"seed": 1})
    with pytest.raises(ConfigError, match="another simulation: structures_sha256"):
        run_md(water_like(2, seed=9), student, n_steps=4, out=out, **BRIEF)
    checkpoint = tmp_path / "a.checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(DynamicsError, match="damaged"):
        run_md(atoms, student, n_steps=4, out=out, **BRIEF)
    checkpoint.unlink()
    with pytest.raises(ConfigError, match="exists"):
        run_md(atoms, student, n_steps=4, out=out, **BRIEF)
    assert run_md(atoms, student, n_steps=4, out=out, overwrite=True, **BRIEF).n_steps == 4


def test_a_trajectory_that_cannot_be_written_is_an_error(student, tmp_path, monkeypatch):
    def full(self, frame):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlff_distiller.md.formats.ASETrajectory.append", full)
    with pytest.raises(DynamicsError, match="No space left"):
        run_md(water_like(2), student, n_steps=50, out=tmp_path / "a.traj", **BRIEF)


def program(every: float, out, n_steps: int, settings) -> None:
    run_md(
        water_like(2), random_nep(), n_steps=n_steps, out=out, checkpoint_every_s=every, **settings
    )


def wait_for_rows(path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["extxyz", "traj", "h5"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_killed_continues_as_if_it_had_not(student, tmp_path, start, suffix, by):
    out = tmp_path / f"a.{suffix}"
    settings = BRIEF | ENSEMBLES["npt"] | {"temperature_K": 20.0}
    # A checkpoint after every block where nothing else can save the run.
    every = 0.0 if by == signal.SIGKILL else 1e9
    killed = start(program, every, out, 1_000_000, settings)
    wait_for_rows(tmp_path / "a.log.csv", 40)
    os.kill(killed.pid, by)
    killed.join(timeout=60)
    ends = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: 1}
    assert killed.exitcode == ends[by]  # 1: multiprocessing's word for KeyboardInterrupt
    reached = 5 * (len((tmp_path / "a.log.csv").read_text().splitlines()) - 2)
    n_steps = reached + 50 - reached % 10
    steps = []
    watch = [(5, lambda one: steps.append(one.step))]
    again = run_md(water_like(2), student, n_steps=n_steps, out=out, observers=watch, **settings)
    assert steps[0] >= reached - 10  # lost: at most what came after the last checkpoint
    whole = run_md(
        water_like(2), student, n_steps=n_steps, out=tmp_path / f"b.{suffix}", **settings
    )
    assert np.array_equal(again.atoms[0].positions, whole.atoms[0].positions)
    assert (tmp_path / "a.log.csv").read_text() == (tmp_path / "b.log.csv").read_text()
    same_trajectories(out, tmp_path / f"b.{suffix}")


@pytest.mark.parametrize("ignored", [True, False])
def test_ctrl_c_stays_ignored_where_it_was(student, tmp_path, ignored):
    """As in the background of a shell; elsewhere it ends the run after a checkpoint."""
    press = [(5, lambda one: signal.raise_signal(signal.SIGINT))]
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    before = signal.signal(signal.SIGINT, handler)
    ended, out = False, tmp_path / "a.traj"
    try:
        run_md(water_like(2), student, n_steps=10, out=out, observers=press, **BRIEF)
    except KeyboardInterrupt:
        ended = True
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended is not ignored
    rows = (tmp_path / "a.log.csv").read_text().splitlines()
    assert (len(rows) == 4) is ignored  # a head, steps 0, 5 and, if it goes on, 10


def test_command(student, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mlff_distiller.cli.main import app
    from mlff_distiller.students.nep_file import write_nep

    monkeypatch.chdir(tmp_path)
    write_nep(student, tmp_path / "nep.txt", max_neighbors=(100, 100))
    water_like(2).write("start.extxyz")
    command = ["md", "start.extxyz", "--student", "nep.txt", "--ensemble", "nvt", "--replicas", "2"]
    command += ["--temperature", "50", "--time-step", "0.2", "--frames-every", "5", "--skin", "0.5"]
    for time_ps in ("0.002", "0.004"):
        done = CliRunner().invoke(app, [*command, "--time-ps", time_ps, "--out", "md.extxyz"])
        assert done.exit_code == 0, done.output
        assert "ns/day" in done.output
    assert [frame.info["step"] for frame in read("md.extxyz", "1::2")] == [0, 5, 10, 15, 20]
