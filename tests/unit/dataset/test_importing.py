"""Imports: every frame counted, resumed after kills, refused when anything else is asked for."""

import json
import signal
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mlff_distiller.dataset import Dataset, verify
from mlff_distiller.dataset.formats import Conventions
from mlff_distiller.dataset.importing import import_frames
from mlff_distiller.errors import DatasetError


def frame(number, atoms=None, **changes):
    atoms = (bulk("Cu", cubic=True) if atoms is None else atoms).copy()
    atoms.rattle(0.3, seed=number)
    results = {"energy": float(number), "forces": np.full((len(atoms), 3), number / 10)}
    atoms.calc = SinglePointCalculator(atoms, **(results | changes))
    return atoms


def test_every_frame_is_counted(tmp_path):
    bad = frame(3, energy=np.nan)
    spiked = frame(4)
    spiked.calc.results["forces"][0, 0] = np.inf
    nowhere = bulk("Cu", cubic=True)
    nowhere.positions[0] = 1e12
    lost = frame(5, nowhere)
    write(tmp_path / "a.traj", [frame(0), frame(1), frame(0), bad, spiked, lost, bulk("Al")])
    out = tmp_path / "out"
    for _ in range(2):  # again: the same counts, and nothing twice
        report = import_frames([tmp_path / "a.traj"], out)
        counts = (report.n_frames, report.n_imported, report.n_repeated, report.n_rejected)
        assert counts == (7, 2, 1, 4)
        rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
        assert [row["frame"] for row in rows] == [3, 4, 5, 6]
        words = (
            "energy is not finite",
            "forces is not finite",
            "atom 0 is too far",
            "no energy",
        )
        for row, word in zip(rows, words, strict=True):
            assert word in row["problem"]
        assert len(Dataset(out)) == 2
    assert Dataset(out).provenance(1) == {"file": str(tmp_path / "a.traj"), "frame": 1}
    assert verify(out).ok


def test_a_charge_that_is_none_rejects_its_frame_alone(tmp_path):
    bad = frame(1)
    bad.info["charge"] = "abc"
    write(tmp_path / "a.xyz", [frame(0), bad, frame(2)])
    report = import_frames([tmp_path / "a.xyz"], tmp_path / "out")
    assert (report.n_imported, report.n_rejected) == (2, 1)
    [row] = [
        json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().split("\n")[:1]
    ]
    assert "charge" in row["problem"]


def test_an_atom_that_was_wrapped_breaks_no_trajectory(tmp_path):
    one = frame(0)
    other = one.copy()
    other.positions += 0.01
    other.positions[1] += 2 * other.cell[0] - other.cell[2]
    far = one.copy()
    far.positions[0, 0] += 0.2
    other.calc, far.calc = one.calc, one.calc
    for atoms in (other, far):
        atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((len(atoms), 3)))
    write(tmp_path / "a.traj", [one, other, far])
    import_frames([tmp_path / "a.traj"], tmp_path / "out")
    assert Dataset(tmp_path / "out").groups.tolist() == [0, 0, 1]


def test_the_same_structure_with_another_label_is_not_a_second_label(tmp_path):
    write(tmp_path / "a.traj", [frame(0), frame(0, energy=7.0)])
    for _ in range(2):
        report = import_frames([tmp_path / "a.traj"], tmp_path / "out")
        assert (report.n_imported, report.n_repeated) == (1, 1)
        assert report.contradictions.n == 1
        assert "energy differs by 1.75 eV/atom" in str(report.contradictions)
        [row] = (tmp_path / "out/rejected.jsonl").read_text().splitlines()
        assert "known, and energy differs by 1.75 eV/atom" in json.loads(row)["problem"]
        assert float(Dataset(tmp_path / "out").read([0]).labels["energy"][0]) == 0.0


def test_a_mistake_leaves_no_folder(tmp_path):
    path, out = tmp_path / "a.xyz", tmp_path / "out"
    write(path, [frame(k) for k in range(3)])
    path.write_text(path.read_text().replace(":forces:", ":REF_forces:"))
    with pytest.raises(DatasetError, match="the numbers for the forces are not named"):
        import_frames([path], out)
    assert not out.exists()
    conventions = Conventions(forces_key="wrong", forces_unit="eV/angstrom")
    assert import_frames([path], out, conventions).n_imported == 0
    conventions = Conventions(forces_key="REF_forces", forces_unit="eV/angstrom")
    assert import_frames([path], out, conventions).n_imported == 3
    assert not (out / "rejected.jsonl").exists()


def test_a_number_that_cannot_be_stored_rejects_its_frame_alone(tmp_path):
    write(tmp_path / "a.traj", [frame(0), frame(1, forces=np.full((4, 3), 1e40)), frame(2)])
    report = import_frames([tmp_path / "a.traj"], tmp_path / "out")
    assert (report.n_imported, report.n_rejected) == (2, 1)
    assert "forces is not finite, or too large" in (tmp_path / "out/rejected.jsonl").read_text()


def test_other_crystals_are_no_kin(tmp_path):
    """One atom at the origin moves nowhere, whatever its cell becomes."""
    frames = []
    for a in (3.6, 3.602, 3.9, 4.4):
        atoms = bulk("Cu", a=a)
        atoms.calc = SinglePointCalculator(atoms, energy=a, forces=np.zeros((1, 3)))
        frames.append(atoms)
    free = frames[-1].copy()
    free.pbc = False
    free.calc = SinglePointCalculator(free, energy=0.0, forces=np.zeros((1, 3)))
    write(tmp_path / "a.traj", [*frames, free])
    import_frames([tmp_path / "a.traj"], tmp_path / "out")
    assert Dataset(tmp_path / "out").groups.tolist() == [0, 0, 1, 2, 3]


def test_charges_of_atoms_are_kept(tmp_path):
    """They define a structure: without them, another label would look like a contradiction."""
    ion, magnet = bulk("Cu", cubic=True), bulk("Cu", cubic=True)
    ion.set_initial_charges([1, 0, 0, 0])
    magnet.set_initial_magnetic_moments([0, 0, 0, 2.5])
    write(tmp_path / "a.traj", [frame(0), frame(0, ion), frame(0, magnet, energy=1.0)])
    report = import_frames([tmp_path / "a.traj"], tmp_path / "out")
    assert (report.n_imported, report.n_repeated) == (3, 0)
    dataset = Dataset(tmp_path / "out")
    none, charged, magnetic = (record.atoms for record in dataset.iterate())
    assert not none.has("initial_charges")
    assert charged.get_initial_charges().tolist() == [1, 0, 0, 0]
    assert magnetic.get_initial_magnetic_moments().tolist() == [0, 0, 0, 2.5]
    assert verify(tmp_path / "out").ok
    import_frames([tmp_path / "a.traj"], tmp_path / "out")
    assert len(Dataset(tmp_path / "out")) == 3


@pytest.mark.parametrize("change", ["file", "conventions", "level"])
def test_other_inputs_are_refused(tmp_path, change):
    path, out = tmp_path / "a.traj", tmp_path / "out"
    write(path, [frame(0)])
    import_frames([path], out)
    if change == "file":
        write(path, [frame(1)])
        with pytest.raises(DatasetError, match=r"inputs\.files"):
            import_frames([path], out)
    elif change == "level":
        with pytest.raises(DatasetError, match=r"teacher\.name: 'PBE' != 'imported'"):
            import_frames([path], out, level="PBE")
    else:
        with pytest.raises(DatasetError, match=r"conventions\.stress_key"):
            import_frames([path], out, Conventions(stress_key="none"))


def test_neighbouring_frames_of_a_trajectory_are_kin(tmp_path):
    atoms = molecule("CH3OH")
    frames = []
    for shift in (0.0, 0.05, 0.09, 1.0, 1.04):
        moved = atoms.copy()
        moved.positions[0, 0] += shift
        moved.calc = SinglePointCalculator(moved, energy=0.0, forces=np.zeros((6, 3)))
        frames.append(moved)
    write(tmp_path / "a.traj", [*frames, frame(1)])
    write(tmp_path / "b.traj", frames[-1])
    import_frames([tmp_path / "a.traj"], tmp_path / "one")
    assert Dataset(tmp_path / "one").groups.tolist() == [0, 0, 0, 1, 1, 2]


def test_nothing_to_import(tmp_path):
    with pytest.raises(DatasetError, match="nothing to import"):
        import_frames([], tmp_path / "out")


@pytest.mark.slow
def test_killed_and_continued(tmp_path, start):
    path, n = tmp_path / "a.extxyz", 2600
    atoms = Atoms("Cu")
    write(path, [frame(k, atoms * (1, 1, 1)) for k in range(n)])
    straight = import_frames([path], tmp_path / "straight")
    for number in range(1, 4):
        process = start(import_frames, [path], tmp_path / "killed")
        while len(list((tmp_path / "killed").glob("*.h5"))) < number and process.is_alive():
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert 0 < len(Dataset(tmp_path / "killed")) < n
    assert import_frames([path], tmp_path / "killed") == straight
    both = [Dataset(tmp_path / name) for name in ("straight", "killed")]
    assert both[0].label_set_hash() == both[1].label_set_hash()
    assert both[0].keys == both[1].keys
    assert both[0].groups.tolist() == both[1].groups.tolist()
