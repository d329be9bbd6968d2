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


def test_charges_of_single_atoms_are_not_dropped_in_silence():
    ion = Atoms("LiH", positions=[[0, 0, 0], [0, 0, 1.6]], charges=[1, 0])
    with pytest.warns(UserWarning, match="charges of single atoms: give the total"):
        read_structures([ion])
    magnet = bulk("Fe")
    magnet.set_initial_magnetic_moments([2.0])
    with pytest.warns(UserWarning, match="magnetic moments"):
        read_seeds([magnet])
