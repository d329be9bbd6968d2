"""Built-in systems: of the size asked for, sane, the same every time."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mlff_distiller.batch import check_structure
from mlff_distiller.errors import ConfigError
from mlff_distiller.measure.systems import BUILT_IN, build_system


@pytest.mark.parametrize("name", BUILT_IN)
def test_atoms_keep_apart(name):
    atoms = build_system(name).atoms
    check_structure(atoms)
    distances = atoms.get_all_distances(mic=True)
    assert distances[~np.eye(len(atoms), dtype=bool)].min() > 0.9
    assert np.array_equal(build_system(name).atoms.positions, atoms.positions)


@pytest.mark.parametrize(
    ("spec", "n"), [("copper:32", 32), ("silicon:1e6", 10**6), ("water:81", 81)]
)
def test_sizes(spec, n):
    system = build_system(spec)
    assert len(system.atoms) == n
    assert system.name == f"{spec.split(':')[0]}:{n}"


def test_what_kind_of_box():
    assert build_system("water").has_pressure
    assert not build_system("alkane:500").atoms.pbc.any()
    assert len(build_system("alkane:500").atoms) == 500
    assert build_system("silicon-slab:200").atoms.pbc.tolist() == [True, True, False]


def test_water_is_as_dense_as_water_and_its_molecules_do_not_touch():
    water = build_system("water").atoms
    density = water.get_masses().sum() / water.cell.volume / 0.60221408
    assert density == pytest.approx(0.997, rel=1e-6)
    molecule = np.repeat(np.arange(len(water) // 3), 3)
    distances = water.get_all_distances(mic=True)
    assert distances[molecule[:, None] != molecule].min() > 1.9


def test_files_of_ones_own(tmp_path):
    write(tmp_path / "a.xyz", bulk("Cu", cubic=True), format="extxyz")
    system = build_system(f"{tmp_path / 'a.xyz'}:100")
    assert system.name == "a:108"
    with pytest.raises(ConfigError, match="no system 'gold'"):
        build_system("gold:64")
    with pytest.raises(ConfigError, match="is out of range"):
        build_system("copper:1e9")
