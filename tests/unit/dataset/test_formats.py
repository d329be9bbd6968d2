"""Formats of others: round trips, units and signs against numbers by hand, and bad files."""

import gzip
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import iread, write
from ase.io.formats import ioformats

from mlff_distiller.dataset import Record
from mlff_distiller.dataset.formats import Conventions, detect, read_frames, write_records
from mlff_distiller.dataset.formats.ase_files import SAFE
from mlff_distiller.errors import ConfigError, DatasetError

STRESS = np.array([[0.01, 0.002, 0.003], [0.002, -0.02, 0.004], [0.003, 0.004, 0.05]])
AS_OURS = Conventions(stress_unit="eV/angstrom^3", stress_sign="tension")


def make(atoms, seed=0, stress=True):
    rng = np.random.default_rng(seed)
    labels = {
        "energy": np.array(rng.normal()),
        "forces": rng.normal(size=(len(atoms), 3)).astype(np.float32),
    }
    if stress:
        labels["stress"] = STRESS
    return Record(atoms, labels, f"{seed:064x}", seed)


@pytest.fixture
def records():
    skewed = bulk("SiC", "zincblende", 4.36) * (2, 1, 1)
    skewed.rattle(0.1, seed=1)
    return [
        make(skewed, 0),
        make(molecule("CH3OH"), 1, stress=False),
        make(bulk("Cu"), 2),
        make(skewed[[1, 0, 2, 3]], 3),
    ]


def same(frame, record):
    np.testing.assert_array_equal(frame.atoms.numbers, record.atoms.numbers)
    np.testing.assert_array_equal(frame.atoms.positions, record.atoms.positions)
    np.testing.assert_array_equal(frame.atoms.pbc, record.atoms.pbc)
    assert frame.labels.keys() == record.labels.keys()
    assert frame.labels["energy"] == record.labels["energy"]
    np.testing.assert_array_equal(
        frame.labels["forces"].astype(np.float32), record.labels["forces"]
    )
    if "stress" in record.labels:
        np.testing.assert_allclose(frame.labels["stress"], record.labels["stress"], atol=1e-15)


def test_extxyz_reads_back_bit_for_bit(records, tmp_path):
    assert write_records(tmp_path / "a.xyz", records, "extxyz") == 4
    for frame, record in zip(read_frames(tmp_path / "a.xyz", AS_OURS), records, strict=True):
        same(frame, record)
        np.testing.assert_array_equal(frame.atoms.cell, record.atoms.cell)


def test_nep_reads_back(records, tmp_path):
    write_records(tmp_path / "train.xyz", records, "nep")
    text = (tmp_path / "train.xyz").read_text()
    virial = float(text.split('virial="')[1].split()[0])
    volume = records[0].atoms.get_volume()
    assert virial == pytest.approx(-0.01 * volume, rel=1e-12)  # compressed is positive
    for frame, record in zip(
        read_frames(tmp_path / "train.xyz", format="nep"), records, strict=True
    ):
        same(frame, record)


def test_deepmd_reads_back_by_system(records, tmp_path):
    write_records(tmp_path / "dp", records, "deepmd")
    assert {path.name for path in (tmp_path / "dp").iterdir()} == {
        "C2Si2", "C2Si2-2", "CH4O-nopbc", "Cu"
    }  # fmt: skip
    frames = {frame.kin.split("/")[1]: frame for frame in read_frames(tmp_path / "dp")}
    for name, record in zip(("C2Si2", "CH4O-nopbc", "Cu", "C2Si2-2"), records, strict=True):
        same(frames[name], record)
    virial = np.load(tmp_path / "dp" / "Cu" / "set.000" / "virial.npy")
    assert virial[0, 0] == pytest.approx(-0.01 * bulk("Cu").get_volume())


def test_deepmd_keeps_charge_and_spin_and_says_what_it_cannot(tmp_path):
    ion, radical, plain = (make(molecule("CH4"), k, stress=False) for k in range(3))
    ion.atoms.info["charge"] = -1
    radical.atoms.info |= {"charge": 1, "spin": 2}
    for record in (ion, radical):
        record.atoms.set_initial_charges([0.2, 0.2, 0.2, 0.2, 0.2])
    with pytest.warns(UserWarning, match="'initial_charges' is left out") as caught:
        write_records(tmp_path / "dp", [ion, radical, plain], "deepmd")
    assert len(caught) == 1
    found = {float(frame.labels["energy"]): frame.atoms for frame in read_frames(tmp_path / "dp")}
    for record in (ion, radical, plain):
        assert found[float(record.labels["energy"])].info == record.atoms.info
    [states] = (tmp_path / "dp").glob("*/set.000/charge_spin.npy")
    assert np.load(states).tolist() == [[-1.0, 0.0], [1.0, 2.0]]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("energy-unit=hartree force-unit=hartree/bohr", "energy-unit=hartree"),
        ("units=kcal/mol", "units=kcal/mol"),
        ("unit_energy=Ha", "unit_energy=Ha"),
        ("energy_unit=eV force_unit=eV/Angstrom", ""),
        ("unit_cell=conventional formula_units=4 units=metal", ""),
    ],
)
def test_units_that_a_comment_names_are_not_overlooked(said, asked, tmp_path):
    text = f"1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-0.5 {said}\nCu 0 0 0 0.1 0 0\n"
    (tmp_path / "a.xyz").write_text(text)
    if asked:
        with pytest.raises(DatasetError, match=rf"(?s){asked}.*--energy-unit.*--forces-unit"):
            list(read_frames(tmp_path / "a.xyz"))
    given = Conventions(energy_unit="hartree", forces_unit="hartree/bohr") if asked else None
    [frame] = read_frames(tmp_path / "a.xyz", given)
    assert frame.labels["energy"] == pytest.approx(-0.5 * (units.Hartree if asked else 1.0))


def test_a_molecule_has_no_stress_though_a_cell_may_be_left_over(tmp_path):
    text = '1\nLattice="3 0 0 0 3 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 energy=-0.5 '
    text += 'stress="1 0 0 0 1 0 0 0 1" pbc="F F F"\nCu 0 0 0 0.1 0 0\n'
    (tmp_path / "a.xyz").write_text(text)
    [frame] = read_frames(tmp_path / "a.xyz")
    assert sorted(frame.labels) == ["energy", "forces"]


def test_nep_says_that_it_has_no_place_for_spin(tmp_path):
    record = make(molecule("CO"), 0, stress=False)
    record.atoms.info |= {"charge": 1, "spin": 2}
    with pytest.warns(UserWarning, match="'spin' is left out"):
        write_records(tmp_path / "a.xyz", [record], "nep")


def test_deepmd_types_need_names(tmp_path):
    write_records(tmp_path / "dp", [make(molecule("H2O"), stress=False)], "deepmd")
    system = tmp_path / "dp" / "H2O-nopbc"
    (system / "type_map.raw").unlink()
    with pytest.raises(DatasetError, match=r"(?s)type_map\.raw.*--type-map O,H"):
        list(read_frames(system))
    [frame] = read_frames(system, Conventions(type_map=("H", "O")))
    assert frame.atoms.get_chemical_formula() == "H2O"
    with pytest.raises(DatasetError, match="type without a name"):
        list(read_frames(system, Conventions(type_map=("H",))))


def test_a_slab_is_no_deepmd_system(tmp_path):
    slab = make(Atoms("Cu", cell=[3, 3, 9], pbc=[True, True, False]), stress=False)
    with pytest.raises(DatasetError, match="some of its vectors only"):
        write_records(tmp_path / "dp", [slab], "deepmd")
    assert not (tmp_path / "dp").exists()


def test_a_pickled_array_is_refused(tmp_path):
    write_records(tmp_path / "dp", [make(bulk("Cu"))], "deepmd")
    target = tmp_path / "dp" / "Cu" / "set.000" / "energy.npy"
    np.save(target, np.array([Marker(tmp_path / "marker")]), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"energy\.npy is not a plain NumPy array"):
        list(read_frames(tmp_path / "dp"))
    assert not (tmp_path / "marker").exists()
    np.save(target, np.zeros(3))
    with pytest.raises(DatasetError, match=r"(?s)wrong shape.*\(1, 1\).*\(3,\)"):
        list(read_frames(tmp_path / "dp"))


@pytest.mark.parametrize("content", ["archive", "torn archive"])
def test_an_archive_is_no_array(tmp_path, content):
    write_records(tmp_path / "dp", [make(bulk("Cu"))], "deepmd")
    target = tmp_path / "dp" / "Cu" / "set.000" / "coord.npy"
    with target.open("wb") as stream:
        np.savez(stream, a=np.zeros((1, 3)))
    if content == "torn archive":
        target.write_bytes(target.read_bytes()[:50])
    with pytest.raises(DatasetError, match=r"coord\.npy is not a plain NumPy array"):
        list(read_frames(tmp_path / "dp"))


def test_types_of_a_mixed_deepmd_system_are_whole(tmp_path):
    write_records(tmp_path / "dp", [make(molecule("H2O"), stress=False)], "deepmd")
    inside = tmp_path / "dp" / "H2O-nopbc" / "set.000"
    np.save(inside / "real_atom_types.npy", np.array([[1.0, 0.0, 0.0]]))
    [frame] = read_frames(tmp_path / "dp")
    assert frame.atoms.get_chemical_symbols() == ["O", "H", "H"]
    np.save(inside / "real_atom_types.npy", np.array([[1.0, 0.5, 0.0]]))
    with pytest.raises(DatasetError, match=r"(?s)real_atom_types\.npy.*whole"):
        list(read_frames(tmp_path / "dp"))


def test_a_frame_without_stress_costs_the_others_none(tmp_path):
    given = [make(bulk("Cu", a=3.6 + 0.01 * k), k, stress=k != 1) for k in range(3)]
    assert write_records(tmp_path / "dp", given, "deepmd") == 3
    frames = {float(frame.labels["energy"]): frame for frame in read_frames(tmp_path / "dp")}
    for record in given:
        same(frames[float(record.labels["energy"])], record)


class Marker:
    """Unpickling this leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def spice(path, **changes):
    arrays = {
        "atomic_numbers": np.array([8, 1, 1]),
        "conformations": np.ones((2, 3, 3)) * np.arange(3)[:, None],
        "dft_total_energy": np.array([-76.0, -76.1]),
        "dft_total_gradient": np.full((2, 3, 3), 0.01),
    }
    with h5py.File(path, "w") as file:
        group = file.create_group("water")
        for name, array in (arrays | changes).items():
            group[name] = array
        group["smiles"] = "O"
        group["conformations"].attrs["units"] = "bohr"
    return path


def test_spice_units(tmp_path):
    path = spice(tmp_path / "a.hdf5")
    assert detect(path) == "spice"
    frames = list(read_frames(path))
    assert [frame.kin for frame in frames] == ["water", "water"]
    assert frames[1].labels["energy"] == pytest.approx(-76.1 * 27.211386024367243)
    np.testing.assert_allclose(frames[0].labels["forces"], -0.01 * 51.42206707, rtol=1e-7)
    np.testing.assert_allclose(frames[0].atoms.positions[2], 2 * 0.5291772105638411)


def test_spice_that_is_not(tmp_path):
    path = spice(tmp_path / "a.hdf5", dft_total_energy=np.zeros(3))
    with pytest.raises(DatasetError, match=r"(?s)do not fit together.*\(2,\).*\(3,\)"):
        list(read_frames(path))
    path = spice(tmp_path / "b.hdf5")
    with h5py.File(path, "a") as file:
        file["water/conformations"].attrs["units"] = "angstrom"
    with pytest.raises(DatasetError, match=r"(?s)another unit.*bohr.*angstrom"):
        list(read_frames(path))
    with pytest.raises(ConfigError, match=r"(?s)fixes its own.*--energy-unit"):
        list(read_frames(path, Conventions(energy_unit="eV")))


def mace(path, count=2):
    with h5py.File(path, "w") as file:
        for k in range(count):
            config = file.create_group(f"config_batch_0/config_{k}")
            atoms = bulk("Cu") * (k + 1, 1, 1)
            config["atomic_numbers"], config["positions"] = atoms.numbers, atoms.positions
            config["cell"], config["pbc"] = atoms.cell.array, atoms.pbc
            config["config_type"] = "Default"
            config["properties/energy"] = -3.0 * (k + 1)
            config["properties/forces"] = np.ones((k + 1, 3))
            config["properties/stress"] = np.array([1.0, 2, 3, 4, 5, 6])
            config["properties/virials"] = "None"
            for name in ("energy", "forces", "stress", "virials"):
                config[f"property_weights/{name}"] = float(name != "stress" or k == 0)
    return path


def test_mace_hdf5(tmp_path):
    path = mace(tmp_path / "train.h5", 12)
    assert detect(path) == "mace-hdf5"
    frames = list(read_frames(path))
    assert [len(frame.atoms) for frame in frames] == list(range(1, 13))  # 2 before 10
    np.testing.assert_array_equal(frames[0].labels["stress"], [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert "stress" not in frames[1].labels  # its weight is zero: it stands for nothing
    assert frames[1].labels["energy"] == -6.0


def test_fractional_atomic_numbers_are_refused(tmp_path):
    path = spice(tmp_path / "a.hdf5", atomic_numbers=np.array([8.0, 1.5, 1.0]))
    with pytest.raises(DatasetError, match=r"(?s)water.*atomic_numbers.*whole.*1\.5"):
        list(read_frames(path))
    path = mace(tmp_path / "b.h5")
    with h5py.File(path, "a") as file:
        del file["config_batch_0/config_1/atomic_numbers"]
        file["config_batch_0/config_1/atomic_numbers"] = np.array([29.0, np.nan])
    with pytest.raises(DatasetError, match=r"(?s)config_1/atomic_numbers.*whole.*nan"):
        list(read_frames(path))
    path = spice(tmp_path / "c.hdf5", atomic_numbers=np.array([8.0, 1.0, 1.0]))
    assert [len(frame.atoms) for frame in read_frames(path)] == [3, 3]


def external_link(file, folder):
    mace(folder / "other.h5")
    del file["config_batch_0/config_0"]
    file["config_batch_0/config_0"] = h5py.ExternalLink("other.h5", "/config_batch_0/config_0")


def soft_cycle(file, folder):
    del file["config_batch_0/config_0"]
    file["config_batch_0/config_0"] = h5py.SoftLink("/config_batch_0/config_0")


def external_storage(file, folder):
    (folder / "secret").write_bytes(bytes(24))
    del file["config_batch_0/config_0/positions"]
    file.create_dataset(
        "config_batch_0/config_0/positions", (1, 3), "f8", external=[(folder / "secret", 0, 24)]
    )


def bomb(file, folder):
    del file["config_batch_0/config_0/positions"]
    file.create_dataset(
        "config_batch_0/config_0/positions", (2**31, 3), "f8", chunks=(2**16, 3), compression="gzip"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "link to elsewhere"),
        (soft_cycle, "link to elsewhere"),
        (external_storage, "another file"),
        (bomb, "absurd size"),
    ],
)
def test_hdf5_that_must_not_be_followed(tmp_path, change, message):
    path = mace(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        change(file, tmp_path)
    with pytest.raises(DatasetError, match=message):
        list(read_frames(path))


@pytest.mark.parametrize("content", [b"", b"no hdf5", None])
def test_damaged_hdf5(tmp_path, content):
    path = mace(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:700] if content is None else content)
    with pytest.raises(DatasetError, match=r"a\.h5 cannot be read as HDF5"):
        list(read_frames(path))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(DatasetError, match=r"not a group|unknown layout"):
        detect(tmp_path / "b.h5")


def with_results(atoms, **results):
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_ase_files_hold_ases_units(tmp_path):
    voigt = [STRESS[k] for k in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]]
    atoms = with_results(bulk("Cu"), energy=1.5, forces=np.ones((1, 3)), stress=np.array(voigt))
    write(tmp_path / "a.traj", [atoms, atoms])
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
    with connect(tmp_path / "a.json") as database:
        database.write(atoms)
    for name, n in (("a.traj", 2), ("a.db", 1), ("a.json", 1)):
        frames = list(read_frames(tmp_path / name))
        assert len(frames) == n
        np.testing.assert_allclose(frames[-1].labels["stress"], STRESS)
        assert frames[-1].labels["energy"] == 1.5


def test_formats_of_ase_that_are_read_exist_and_unpickle_nothing():
    assert set(ioformats) >= SAFE
    assert not SAFE & {"bundletrajectory", "json", "db", "python", "gpw", "prismatic"}


def test_files_that_are_not_read(tmp_path):
    (tmp_path / "a.pckl").write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
    (tmp_path / "a.traj").write_bytes(b"- of Ulm" + bytes(40))
    (tmp_path / "b.traj").write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
    for name in ("a.pckl", "a.traj", "b.traj"):
        with pytest.raises(DatasetError, match=name):
            list(read_frames(tmp_path / name))
    assert not (tmp_path / "marker").exists()
    with pytest.raises(DatasetError, match="no file or folder"):
        list(read_frames(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="no such format"):
        list(read_frames(tmp_path / "a.traj", format="pickle"))


def text(tmp_path, comment, columns="species:S:1:pos:R:3:forces:R:3"):
    path = tmp_path / "a.xyz"
    path.write_text(
        f'2\nLattice="2 0 0 0 2 0 0 0 2" Properties={columns} {comment}\n'
        "Cu 0 0 0 0.5 0 0\nCu 1 1 1 -0.5 0 0\n"
    )
    return path


def test_stress_of_text_is_never_guessed(tmp_path):
    path = text(tmp_path, 'energy=2.0 stress="10 0 0 0 20 0 0 0 30"')
    with pytest.raises(DatasetError, match=r"(?s)unit and sign of 'stress'.*--stress-unit"):
        list(read_frames(path))
    [frame] = read_frames(path, Conventions(stress_key="none"))
    assert "stress" not in frame.labels
    [frame] = read_frames(path, Conventions(stress_unit="kbar", stress_sign="compression"))
    np.testing.assert_allclose(frame.labels["stress"][0, 0], -1.0 * units.GPa)
    [frame] = read_frames(path, Conventions(stress_unit="GPa", stress_sign="tension"))
    np.testing.assert_allclose(frame.labels["stress"][2, 2], 30 * units.GPa)


def test_a_virial_is_an_energy(tmp_path):
    path = text(tmp_path, 'energy=2.0 virial="8 0 0 0 16 0 0 0 24"')
    with pytest.raises(DatasetError, match=r"(?s)numbers for the stress.*virial"):
        list(read_frames(path))
    how = Conventions(virial_key="virial", stress_unit="eV", stress_sign="compression")
    [frame] = read_frames(path, how)
    np.testing.assert_allclose(np.diag(frame.labels["stress"]), [-1, -2, -3])
    with pytest.raises(DatasetError, match=r"GPa is not a unit of a virial"):
        list(
            read_frames(
                path, Conventions(virial_key="virial", stress_unit="GPa", stress_sign="tension")
            )
        )


def test_six_numbers_need_an_order(tmp_path):
    path = text(tmp_path, 'energy=2.0 sigma_stress="1 2 3 4 5 6"')
    how = {"stress_key": "sigma_stress", "stress_unit": "eV/angstrom^3", "stress_sign": "tension"}
    with pytest.raises(DatasetError, match="order is not given"):
        list(read_frames(path, Conventions(**how)))
    [frame] = read_frames(path, Conventions(**how, voigt_order="xx,yy,zz,xy,yz,zx"))
    np.testing.assert_array_equal(frame.labels["stress"], [[1, 4, 6], [4, 2, 5], [6, 5, 3]])


def test_keys_of_others_need_a_unit(tmp_path):
    columns = "species:S:1:pos:R:3:REF_forces:R:3"
    path = text(tmp_path, "REF_energy=2.0", columns)
    with pytest.raises(DatasetError, match=r"(?s)numbers for the energy.*REF_energy"):
        list(read_frames(path))
    keys = {"energy_key": "REF_energy", "forces_key": "REF_forces"}
    with pytest.raises(DatasetError, match="the unit of 'REF_energy' is not given"):
        list(read_frames(path, Conventions(**keys)))
    units = {"energy_unit": "kcal/mol", "length_unit": "bohr"}
    with pytest.raises(DatasetError, match="the unit of 'REF_forces' is not given"):
        list(read_frames(path, Conventions(**keys, **units)))
    [frame] = read_frames(path, Conventions(**keys, **units, forces_unit="kcal/mol/bohr"))
    assert frame.labels["energy"] == pytest.approx(2.0 * 0.0433641153)
    assert frame.labels["forces"][0, 0] == pytest.approx(0.5 * 0.0433641153 / 0.529177211)
    assert frame.atoms.positions[1, 0] == pytest.approx(0.529177211)


def test_forces_of_ase_are_not_in_the_unit_of_another_energy(tmp_path):
    """Hartree of one column say nothing about the other: it is asked for."""
    path = text(tmp_path, "REF_energy=2.0", "species:S:1:pos:R:3:forces:R:3")
    given = {"energy_key": "REF_energy", "energy_unit": "hartree"}
    with pytest.raises(DatasetError, match="'forces' is not given, and other units are given"):
        list(read_frames(path, Conventions(**given)))
    [frame] = read_frames(path, Conventions(**given, forces_unit="eV/angstrom"))
    assert frame.labels["forces"][0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("hello\n", "line 1 is not the start"),
        ("999999999999\ncomment\n", "more atoms than the file can hold"),
        ("2\n\nH 0 0 0\n", "ends early"),
    ],
)
def test_text_that_is_no_extxyz(tmp_path, content, message):
    (tmp_path / "a.xyz").write_text(content)
    with pytest.raises(DatasetError, match=message):
        list(read_frames(tmp_path / "a.xyz"))


def test_one_bad_frame_does_not_spoil_the_others(tmp_path):
    path = text(tmp_path, "energy=2.0")
    good = path.read_text()
    path.write_text(good + good.replace("Cu 1 1 1 -0.5", "Cu 1 x 1 -0.5") + good)
    frames = list(read_frames(path))
    assert [bool(frame.problem) for frame in frames] == [False, True, False]
    assert "line 5" in frames[1].problem


def test_existing_files_are_not_overwritten(records, tmp_path):
    (tmp_path / "a.xyz").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        write_records(tmp_path / "a.xyz", records, "extxyz")
    assert (tmp_path / "a.xyz").read_text() == "mine"


def test_published_sets(shared):
    for name, how, n in (
        ("3bpa/train_300K.xyz", {}, 500),
        ("water_pbe0ts/dp_water_data0.extxyz", {}, 40),
        ("pbte/train.xyz", {"format": "nep"}, 25),
    ):
        frames = list(read_frames(shared / "data" / name, **how))
        assert len(frames) == n
        assert not any(frame.problem for frame in frames)


def test_labels_of_atoms_read_back_bit_for_bit(tmp_path):
    """And ASE itself finds ``energies`` among the results."""
    records = []
    for number, n_atoms in enumerate((3, 1)):
        rng = np.random.default_rng(number)
        energies, spread = rng.normal(size=n_atoms), rng.random(n_atoms).astype(np.float32)
        record = make(Atoms(f"Ar{n_atoms}", rng.normal(size=(n_atoms, 3))), number, stress=False)
        extra = {"energy": np.array(energies.sum()), "energies": energies, "forces_spread": spread}
        records.append(replace(record, labels={**record.labels, **extra}))
    path = tmp_path / "all.xyz"
    assert write_records(path, records, "extxyz") == 2
    for frame, record in zip(read_frames(path, Conventions()), records, strict=True):
        assert frame.labels.keys() == record.labels.keys()
        for name, value in record.labels.items():
            assert np.array_equal(frame.labels[name].astype(value.dtype), value)
    for atoms, record in zip(iread(path), records, strict=True):
        assert np.array_equal(atoms.get_potential_energies(), record.labels["energies"])
        assert "forces_spread" in atoms.arrays


def test_energies_of_atoms_are_those_of_the_energy_or_left_out(tmp_path):
    path = tmp_path / "two.xyz"
    columns = "species:S:1:pos:R:3:forces:R:3:energies:R:1:forces_spread:R:1"
    row = "Ar {0} 0 0 0.1 0 0 {1} 0.5"
    lines = [
        f'2\nenergy={energy} pbc="F F F" Properties={columns}\n{row.format(0, -1)}\n'
        f"{row.format(4, -2)}\n"
        for energy in (-3.0, -3.1)
    ]
    path.write_text("".join(lines))
    good, other = read_frames(path, Conventions())
    assert good.labels["energies"].tolist() == [-1.0, -2.0]
    assert set(other.labels) == {"energy", "forces", "forces_spread"}
    units = Conventions(energy_unit="hartree", forces_unit="hartree/angstrom")
    good, _ = read_frames(path, units)
    assert good.labels["energies"].sum() == pytest.approx(float(good.labels["energy"]))
    assert good.labels["energies"][0] == pytest.approx(-27.2114, abs=1e-3)
    assert good.labels["forces_spread"][0] == pytest.approx(0.5 * 27.2114, abs=1e-3)
    path.write_text(lines[0].replace("energies:R:1", "energies:S:1").replace(" -1 ", " no "))
    [bad] = read_frames(path, Conventions())
    assert "could not convert" in bad.problem


CELL = '9 0 0 0 9 0 0 0 9"'
ROWS = "Cu 0 0 0 0.1 0 0\nCu 0 0 2 -0.1 0 0\n"


@pytest.mark.parametrize(
    ("comment", "pbc"),
    [
        (f'energy=-1.0 lattice="{CELL} Properties=species:S:1:pos:R:3:force:R:3', True),
        (f'Energy = -1.0 LATTICE="{CELL} properties=species:S:1:pos:R:3:FORCE:R:3', True),
        (f'energy=-1 Lattice="{CELL} Properties=species:S:1:pos:R:3:force:R:3 PBC="f F f"', False),
        (
            f'energy=-1 Lattice="{CELL} Properties=species:S:1:pos:R:3:force:R:3 '
            'pbc="[False, False, False]"',
            False,
        ),
    ],
)
def test_gpumd_spells_in_any_case(comment, pbc, tmp_path):
    path = tmp_path / "train.xyz"
    path.write_text(f"2\n{comment}\n{ROWS}", encoding="utf-8")
    (frame,) = read_frames(path, format="nep")
    assert not frame.problem
    assert frame.atoms.pbc.tolist() == [pbc] * 3
    assert frame.atoms.cell.lengths().tolist() == [9.0] * 3
    assert float(frame.labels["energy"]) == -1.0
    assert frame.labels["forces"][0, 0] == 0.1


def test_a_periodicity_that_is_none_rejects_its_frame(tmp_path):
    path = tmp_path / "train.xyz"
    comment = f'energy=-1 Lattice="{CELL} Properties=species:S:1:pos:R:3:force:R:3 pbc="None"'
    path.write_text(f"2\n{comment}\n{ROWS}", encoding="utf-8")
    (frame,) = read_frames(path, format="nep")
    assert "is not three of T and F" in frame.problem


def test_a_compressed_text_says_no_more_than_a_plain_one(tmp_path):
    path = tmp_path / "k.xyz.gz"
    stress = "-50 0 0 0 -50 0 0 0 -50"
    text = (
        f'2\nenergy=-1 stress="{stress}" Lattice="{CELL} Properties=species:S:1:pos:R:3:forces:R:3'
    )
    path.write_bytes(gzip.compress(f"{text}\n{ROWS}".encode()))
    with pytest.raises(DatasetError, match="unit and sign of 'stress' are not given"):
        list(read_frames(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError):
        list(read_frames(path))


@pytest.mark.parametrize("name", ["gradient", "dft_Grad", "dE_dR", "energy_derivative"])
def test_a_gradient_is_the_negative_of_forces(name, tmp_path):
    path = tmp_path / "g.xyz"
    text = f"2\nenergy=-1 Properties=species:S:1:pos:R:3:{name}:R:3"
    path.write_text(f"{text}\n{ROWS}", encoding="utf-8")
    given = Conventions(forces_key=name, forces_unit="eV/angstrom")
    (frame,) = read_frames(path, given)
    assert frame.labels["forces"][0].tolist() == [-0.1, 0.0, 0.0]


def test_energies_are_not_in_the_unit_of_ase_beside_forces_of_another(tmp_path):
    path = tmp_path / "u.xyz"
    path.write_text(f"2\nenergy=-0.5 Properties=species:S:1:pos:R:3:force:R:3\n{ROWS}")
    with pytest.raises(DatasetError, match="the unit of 'energy' is not given"):
        list(read_frames(path, Conventions(forces_key="force", forces_unit="hartree/bohr")))


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, False), (True, False, False)])
def test_leftover_cells_do_not_become_crystals(pbc, tmp_path):
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]], cell=[3, 3, 3], pbc=pbc)
    path = tmp_path / "train.xyz"
    write_records(path, [make(atoms)], "nep")
    (frame,) = read_frames(path, format="nep")
    lengths = frame.atoms.cell.lengths()
    assert all(
        length == 3.0 if axis else length >= 100.0
        for axis, length in zip(pbc, lengths, strict=True)
    )


def test_all_that_is_left_open_is_asked_at_once(tmp_path):
    path = tmp_path / "a.xyz"
    comment = 'REF_energy=-1 REF_stress="1 2 3 4 5 6" Properties=species:S:1:pos:R:3:grad:R:3'
    comment += ' Lattice="9 0 0 0 9 0 0 0 9"'
    path.write_text(f"2\n{comment}\n{ROWS}")
    with pytest.raises(DatasetError) as error:
        list(read_frames(path))
    words = error.value.remedy.removeprefix("for example ").split()
    asked = dict(zip(words[::2], words[1::2], strict=True))
    assert asked.pop("--voigt-order") == "xx,yy,zz,yz,xz,xy"
    assert asked == {
        "--energy-key": "REF_energy",
        "--energy-unit": "eV",
        "--forces-key": "grad",
        "--forces-unit": "eV/angstrom",
        "--stress-key": "REF_stress",
        "--stress-unit": "eV/angstrom^3",
        "--stress-sign": "tension",
    }
    fields = {name[2:].replace("-", "_"): value for name, value in asked.items()}
    (frame,) = read_frames(path, Conventions(voigt_order="xx,yy,zz,xy,yz,zx", **fields))
    assert frame.labels["stress"].tolist() == [[1, 4, 6], [4, 2, 5], [6, 5, 3]]


@pytest.mark.parametrize("quotes", ['""', "[]", "{}"])
@pytest.mark.parametrize("name", ["stress", "virial"])
def test_six_numbers_by_the_name_that_ase_reserves_for_nine(quotes, name, tmp_path):
    path = tmp_path / "a.xyz"
    comment = f'energy=-1 Lattice="{CELL} Properties=species:S:1:pos:R:3:forces:R:3'
    path.write_text(f"2\n{comment} {name}={quotes[0]}1 2 3 4 5 6{quotes[1]}\n{ROWS}")
    unit = {"stress_unit": "eV" if name == "virial" else "GPa", "stress_sign": "compression"}
    order = "xx,yy,zz,yz,xz,xy"
    (frame,) = read_frames(path, Conventions(**{f"{name}_key": name}, **unit, voigt_order=order))
    factor = -1 / frame.atoms.get_volume() if name == "virial" else -units.GPa
    wanted = factor * np.array([[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert np.allclose(frame.labels["stress"], wanted)
    (frame,) = read_frames(path, Conventions(stress_key="none"))
    assert set(frame.labels) == {"energy", "forces"}


def test_a_system_without_forces_costs_the_others_none(records, tmp_path):
    write_records(tmp_path / "all", records, "deepmd")
    next((tmp_path / "all").rglob("force.npy")).unlink()
    frames = list(read_frames(tmp_path / "all"))
    assert sum(bool(frame.problem) for frame in frames) == 1
    assert sum(bool(frame.labels) for frame in frames) == len(frames) - 1 > 0


def test_an_isolated_atom_has_no_forces(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nenergy=-7.5 pbc=F\nC 0 0 0\n".replace("=F", '="F F F"'))
    for format in ("extxyz", "nep"):
        (frame,) = read_frames(tmp_path / "a.xyz", format=format)
        assert frame.labels["energy"] == -7.5
        assert frame.labels["forces"].tolist() == [[0.0, 0.0, 0.0]]


def test_labels_of_schnetpack_need_their_units(tmp_path):
    with connect(tmp_path / "a.db") as database:
        data = {"energy": np.array([-2.0]), "forces": np.full((2, 3), 0.5)}
        database.write(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), data=data)
    with pytest.raises(DatasetError, match=r"(?s)unit of 'energy'.*unit of 'forces'"):
        list(read_frames(tmp_path / "a.db"))
    hartree = Conventions(energy_unit="hartree", forces_unit="hartree/bohr")
    (frame,) = read_frames(tmp_path / "a.db", hartree)
    assert float(frame.labels["energy"]) == pytest.approx(-2 * units.Hartree)
    assert frame.labels["forces"][0, 0] == pytest.approx(0.5 * units.Hartree / units.Bohr)


def test_a_format_that_is_not_known_may_be_named(tmp_path):
    path = tmp_path / "train.dat"
    path.write_text(f"2\nenergy=-1 Properties=species:S:1:pos:R:3:forces:R:3\n{ROWS}")
    with pytest.raises(DatasetError, match="--format extxyz"):
        list(read_frames(path))
    (frame,) = read_frames(path, format="extxyz")
    assert frame.labels


def test_a_file_of_another_kind_than_it_seems_is_no_empty_success(tmp_path):
    with connect(tmp_path / "a.db"):
        pass
    (tmp_path / "a.xyz").write_text("\n\n")
    for name in ("a.db", "a.xyz"):
        with pytest.raises(DatasetError, match="holds no frame"):
            list(read_frames(tmp_path / name))


def test_charges_are_exported_where_the_format_knows_them(tmp_path):
    atoms = Atoms("LiH", [[0, 0, 0], [0, 0, 1.6]], charges=[1, 0], info={"charge": 1.0})
    write_records(tmp_path / "a.xyz", [make(atoms, stress=False)], "extxyz")
    (frame,) = read_frames(tmp_path / "a.xyz")
    assert frame.atoms.get_initial_charges().tolist() == [1, 0]
    assert frame.atoms.info == {"charge": 1.0}
    with pytest.warns(UserWarning, match="'initial_charges' is left out"):
        write_records(tmp_path / "a.nep", [make(atoms, stress=False)], "nep")
    (frame,) = read_frames(tmp_path / "a.nep", format="nep")
    assert frame.atoms.info == {"charge": 1.0}
