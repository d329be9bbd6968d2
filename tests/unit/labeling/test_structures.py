"""Files of structures that cannot be read are named, whatever ASE's reader raises."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff_distiller.errors import StructureError
from mlff_distiller.labeling.structures import read_frames, read_structures
from mlff_distiller.sampling.approach import ApproachSettings, approach
from mlff_distiller.sampling.rattle import rattle
from mlff_distiller.sampling.scans import ScanSettings, scan
from mlff_distiller.structure import enlarge
from mlff_distiller.workflows.distill import read_seeds

DAMAGED = {
    "cut.dump": b"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\n",
    "POSCAR": b"made in 1999\n1.0\n3 0 0\n0 3 0\n0 0 3\n1\nDirect\n0 0 0\n",
    "cut.xyz.gz": gzip.compress(b"1\n\nCu 0 0 0\n" * 50)[:-12],
    "damaged.db": b"SQLite format 3\0" + b"no database" * 9,
    "OUTCAR": b" vasp.6.3.0\n",
    "vasprun.xml": b"<modeling></modeling>",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_the_reader_stumbles_over_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(StructureError, match="cannot read structures from"):
        read_frames(path)


def charged() -> Atoms:
    return Atoms("CH4", molecule("CH4").positions, info={"charge": 1, "spin": 2, "note": "x"})


def test_charge_and_spin_reach_every_structure_made_of_one():
    rng = np.random.default_rng(0)
    assert read_seeds([charged()])[0].info == {"charge": 1, "spin": 2}
    assert rattle(charged(), charged(), 0.1, 0.0, rng).info == {"charge": 1, "spin": 2}
    made, _ = approach([charged()], 8, ApproachSettings(compressed=0.5), seed=0)
    assert len(made) == 8
    assert all(atoms.info["charge"] == 1 and atoms.info["spin"] == 2 for atoms in made)
    crystal = bulk("Cu")
    crystal.info.update(charge=1, spin=2)
    frames, _ = scan([crystal], ScanSettings(volumes=2, strains=0))
    assert [frame.info for frame in frames] == [{"charge": 1, "spin": 2}] * 2
    assert enlarge(crystal, 8).info == {"charge": 8, "spin": 9}


def test_charges_and_moments_of_atoms_make_another_structure():
    ion = Atoms("LiH", positions=[[0, 0, 0], [0, 0, 1.6]], charges=[1, 0])
    plain = Atoms("LiH", ion.positions, charges=[0, 0])  # zeros say nothing
    found = read_structures([ion, plain, Atoms("LiH", ion.positions)])
    assert found.n_repeated == 1
    assert [own.atoms.get_initial_charges().tolist() for own in found.all] == [[1, 0], [0, 0]]
    assert not found.all[1].atoms.has("initial_charges")
    magnet = bulk("Fe", cubic=True)
    magnet.set_initial_magnetic_moments([2.0, -2.0])
    [seed] = read_seeds([magnet])
    for made in (
        rattle(seed, seed, 0.1, 0.0, np.random.default_rng(0)),
        scan([seed], ScanSettings(volumes=2, strains=0))[0][0],
        approach([seed], 4, ApproachSettings(compressed=0.5), seed=0)[0][0],
    ):
        assert made.get_initial_magnetic_moments().tolist() == [2.0, -2.0]
    assert enlarge(seed, 4).get_initial_magnetic_moments().tolist() == [2.0, -2.0] * 2


def test_what_no_teacher_is_told_is_warned_of():
    magnet = Atoms("Fe", magmoms=[[0.0, 0.0, 2.0]])
    with pytest.warns(UserWarning, match="directions of magnetic moments"):
        read_seeds([magnet])
    ion = Atoms("Li", info={"total_spin": 2})
    with pytest.warns(UserWarning, match="'total_spin'"):
        read_structures([ion])


def test_a_charge_may_be_called_total():
    ions = [Atoms("Li", info={"total_charge": 1, "multiplicity": 3}), Atoms("Li")]
    found = read_structures(ions)
    assert [own.atoms.info for own in found.all] == [{"charge": 1, "spin": 3}, {}]
