"""Files of structures that cannot be read are named, whatever ASE's reader raises."""

import gzip
from pathlib import Path

import pytest

from mlff_distiller.errors import StructureError
from mlff_distiller.labeling.structures import read_frames

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
