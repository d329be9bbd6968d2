"""Shards of every schema: old ones stay readable to the bit, and mix with those of today."""

import base64
import hashlib
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase import Atoms

from mlff_distiller.dataset import Dataset, DatasetWriter, Record, layout, verify, writer
from mlff_distiller.dataset.columns import COLUMNS
from mlff_distiller.dataset.manifest import Manifest, ShardEntry, write_manifest
from mlff_distiller.dataset.shard import Shard
from mlff_distiller.errors import DatasetError

OLD = {
    1: "000000-48121ac23599a252.h5",
    2: "000000-43290e90c966f1a8.h5",
}
PACKED = {
    1: (
        "eNrr9HBx4+WS4mLi4GCAgf9QoCoF4RtAxXna7/T6e7gEMTEcExViYEEohAEuJgZGoDKgemYGdgYOkJK0/KLcxBIGYaC4"
        "CNAIJiDOzUlL003JLC7JzMlJLVIozkgsSuHRgOjhAekpTs5IzU1kEAC6COIoB7A+RpgzwObzQ9Rm5qWkVsQDNSRnF5fm"
        "MggwoOo52nNdr3vuHXcmIZBYOi/EhJ9Q2uCq5z2whxgZGBmBzmNiZGRkhtoCp3kYGJFdwgr0IzMXB9A8ZkZeJogaCVjI"
        "7WAYskD8clMPjA31Fih8yQaUhGsq8/AJ14XlT8VgbC5YCqbUUHjgqgADFxi6LGiBi85nFmFgFFSwhwe2CTeDyX+gJHKg"
        "H4JqSoBZsmDwB+7cBkkF/Co+2EMZDhCK04FYs3fItb4O3PHOnjrJnwU9ZkDJH16ocaDERAobWvYbwsn/+KkzD/n4OBip"
        "kdhNgEHJzMjIhJ640UotZjIS/3p2iNoJMEsnDL6g7Hm2MxTCEoAm4gc4EidM/gIB+QEA6CUXE6FIVGRgtGCC5BNQdQHL"
        "L26OPsGuDCFBoa5AMeSYrOGEaGSD2Th5UOaL/Heb5YDFAhVKFib0kCMiue+D1kQCMEM3DL2SZfEkyd0Q1o96aFm/f4CC"
        "k5dn6AenlXCgAlpw2rsFA/OYPB+Ey/iUgUEalGC/3Da1p1VIhvMO/ZBk7NeZnQYGqgeMQeBy0AG3II8ABnZwYAgwYHS0"
        "nkL5sKBmQA86KOAn0gUsSDohRYwCkFaFN6f9l3XecgrxcGFgBanjBoqkaBTyweyA2cLzsVHZLRioiuEpilkIGmFfAEMF"
        "gwJcRhaaH6D9Rzg9ez3fXacQHzcG1n2BjjIMP8HWaexYls1gxwDqH/J8MK1kuA1k8jFEBfhWMswEK3jrsnIqA6gFIcwQ"
        "8/DEDIYVQFFBBiW+0HUMHWCmq8POrQzZYLVur55fYFAHdWcYPFU0LjG8BKel6uoJVxhEgUwhhrLWv/cZgoBMSQatDTYP"
        "GHaCTXB5Y/WWoQps8cqFmz8xnAKLztL5dZ1hFNC2AUBc10UeKq7AIM7BIA4qoJBLjVpB1IGKodB1SUnkrjh75ozt2TM+"
        "+2bNnGkHZO8Fsu2A7H1IypBL2v30aAnvFBr8LWHBztMvYexJKp5AdMgeQl+yv70tF4Sg/Ef228HcZ1Dx1/awug0i/8ke"
        "tc4jnyZY+3EwMIJGwRzQ0m6oCES+AeahPUM7fy+zP/8mkUKQRCEgGBd4xp4eiqK1QIZw51uzdsNRWN5nxdFK40Ebk8I3"
        "MPFXDG38agiHTf3V8yeqlYpTU1OUrAxqq2uJSjMM2NOMqMTwSTP9AZesQ12utGu/Fkk9fTs2Vf6jjq6bh4sTfPAcBM56"
        "H05iZGDPT0srTi0phnVjGRl4MvPS8uOhwpFMMGHOgvzizJLM/LzibcwwMb7EkvzczOT4vNLcpNSi4ghWmARLcmpOzmI2"
        "GJe5ICm5gAPGY0vOSCxKT93ECVddXJCZx8gNl0/NSy1Kr/TmgQuk5RclpxYXCsAFikuKUouL1wrCLchOrfQUhvFY04vy"
        "SwuuisDNB/nooyiMywGbaeAUH0FtNgB+86I4"
    ),
    2: (
        "eNrdVl1IFFEUPjOj67huuampRT8SSUJaVhZl5G5ktaVgab9ELLuzd21oZ3ebO1KLSFBURD1F0Q8EBT3Vaz++pCLUQylE"
        "FkFGRWCQUpgP4ZvdO3OvjNMuRPaQHQbuueece++55zvn3DkfqN82yz3fLcoycJpgpORZ82omX3X/9N2mQH2zCE+9XoBy"
        "0RLXMLVbBAGAajokS7KBaTxkBwlyQIYsgGhC10IGFBLbIqKjm2ixaLQqomJDjcWQXoaPhPSIp8Ja46FrsHIEaSHwEh8t"
        "N/3mOnHK/vmWrRqPoBNBskA5its0IO5MWfPk4psVF26+204l1/J/HDAvJIAgEGdEQRCY6zA5ekCwn5tNbim55QKiEWYx"
        "B0p55DphxlLJwKmLnOdxzWJj05ZAA8U1nG3N1zK5i0RBgJxENIqRgQWBr895ez85nbgi6f+J6+3jQ8Wcd/N8dcS1WJ5a"
        "Sa4SGlePGo8mgiy4BzkmsG/Z+AdncEUHcFIdCOtIEHcR/ihKgVltfjJp1RNtSfDbAz9ZKQF7qdjh6GV5cIu7cPZfCW7+"
        "19Cx0DSJJ+Te+lfnlo8UofA0idUIPB88jBZ/r6ziIA/nWvLVHORCCrKsRlDcUI3UQ2my/WrtYQvghZkBHiIAuwDuEV5B"
        "sRhALeEC1EJiRTanzDeJZk0e1EwQYTKsQKCWGZgluV6kXoDZWq36lWHb5saWrbCnee9WIlNIM25F0JBuO5xU49CSToPi"
        "SG9NwaG0qwwdYQzKb3lsz8MeF6sA1mhG9o+tsTiv3xo/+tLnCde/yKgXePcaP8nHqEnlPdzo0tId5Ov1WeNL3+BDjX5s"
        "/sn3yJx+ZvIRdtQo04/5/nr2j3bzI9ZQGmjucV7hT0eas3MLaP+fcBBr+TiFDaThqyzZH7xvGXb2pCzHIyKlrJ5UTvhk"
        "AquGmohjK29LeTamy4CQkdBUJRhv08JIx1BKuxTPVPIvoSAM82pZU2WbLGaHlkGJDCX0VvY02scK8TKPY8NfRcWovPM6"
        "k252f1/fpv6+xq4b16/XcfCYjqVorp8aPSZGdcSoK9NOso3/JbM6F50Z2d35zSfYZN0UU7HA/n/HiXanGvavt5KZb7/6"
        "WHci6nE8X+YTbkPDHuSKvKm2M/kJfxa8EGlfghGKLKmt7mjvoJF0eem9s2ly4p0MDFc+lWXRZ3sBe+o3Jq98+QnoNls5"
    ),
}
"""Shards that the program wrote when these schemas were the newest; zlib, base64."""

CELL = np.array([[4.0, 0.5, 0.0], [0.0, 4.0, 0.25], [0.0, 0.0, 4.0]])
WRITTEN = [
    Record(
        Atoms([14, 14], [[0.0, 0.0, 0.0], [1.0, 2.0, 3.125]], cell=CELL, pbc=True),
        {
            "energy": np.array(-10.7),
            "forces": np.array([[0.1, -0.2, 0.3], [-0.1, 0.2, -0.3]], np.float32),
            "stress": np.arange(9.0).reshape(3, 3) / 7,
        },
        "a" * 64,
        3,
        {"seed": 0},
    ),
    Record(
        Atoms([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.96]], info={"charge": -1.0, "spin": 1.0}),
        {
            "energy": np.array(-75.3),
            "forces": np.array([[0.0, 0.0, 0.5], [0.0, 0.0, -0.5]], np.float32),
        },
        "b" * 64,
        5,
    ),
]
"""What is in them."""


def old_shard(folder: Path, schema: int) -> ShardEntry:
    """Unpack a shard into ``folder``."""
    content = zlib.decompress(base64.b64decode(PACKED[schema]))
    (folder / OLD[schema]).write_bytes(content)
    return ShardEntry(OLD[schema], 2, 4, len(content), hashlib.sha256(content).hexdigest(), 0)


@pytest.fixture(params=[1, 2])
def old(request, tmp_path) -> Path:
    """A dataset of one old shard."""
    write_manifest(tmp_path, Manifest({"teacher": "none"}, (old_shard(tmp_path, request.param),)))
    return tmp_path


def committee(number: int, n_atoms: int = 3) -> Record:
    """Both optional labels of atoms."""
    rng = np.random.default_rng(number)
    energies = rng.normal(-5.0, 1.0, n_atoms)
    labels = {
        "energy": np.array(energies.sum()),
        "forces": rng.normal(size=(n_atoms, 3)),
        "forces_spread": rng.random(n_atoms),
        "energies": energies,
    }
    atoms = Atoms(rng.integers(1, 119, n_atoms), rng.normal(size=(n_atoms, 3)))
    return Record(atoms, labels, hashlib.sha256(b"new %d" % number).hexdigest(), number)


def assert_same(read: Record, written: Record) -> None:
    """To the bit."""
    assert read.labels.keys() == written.labels.keys()
    for name, value in written.labels.items():
        stored = np.asarray(value, COLUMNS[name].dtype)
        assert read.labels[name].dtype == stored.dtype
        assert read.labels[name].tobytes() == stored.tobytes()
    assert read.atoms.positions.tobytes() == written.atoms.positions.tobytes()
    assert read.atoms.cell.array.tobytes() == written.atoms.cell.array.tobytes()
    assert read.atoms.numbers.tolist() == written.atoms.numbers.tolist()
    assert read.atoms.pbc.tolist() == written.atoms.pbc.tolist()
    assert read.atoms.info == written.atoms.info
    assert (read.key, read.group) == (written.key, written.group)
    assert read.provenance == written.provenance


def test_a_shard_of_an_old_schema_is_read_to_the_bit(old):
    dataset = Dataset(old)
    for read, written in zip(dataset.iterate(), WRITTEN, strict=True):
        assert_same(read, written)
    batch = dataset.read([1, 0])
    for name in ("forces_spread", "energies"):
        assert batch.labels[name].shape == (4,)
        assert batch.labels[name].isnan().all()
    assert batch.labels["stress"].isnan().all(-1).all(-1).tolist() == [True, False]
    assert dataset.label_set_hash() == (
        "136734b99879d2df6ef103228523b2e630ada4c788e456e0b8a7443c3b0fdfcf"
    )
    for path in (old, next(old.glob("*.h5"))):
        assert verify(path).problems == []


def test_damage_to_an_old_shard_is_still_found(old):
    path = next(old.glob("*.h5"))
    whole = path.read_bytes()
    place = whole.index(np.float32(0.3).tobytes())
    path.write_bytes(whole[:place] + b"\0" + whole[place + 1 :])
    with pytest.raises(DatasetError, match="record 0 is damaged"):
        Dataset(old).read([0])
    assert Dataset(old).read([1]).n_systems == 1


def test_schemas_mix_and_merge(old, monkeypatch):
    """Reads in any order across them; a merge writes the newest, and loses nothing."""
    with DatasetWriter(old, {"teacher": "none"}) as open_:
        open_.append([committee(0), committee(1, 1)])
        open_.append([committee(2, 5)])
        assert set(open_.labels(committee(0).key)) == {*COLUMNS} & {*committee(0).labels}
        assert "energies" not in open_.labels("a" * 64)
    everything = [*WRITTEN, committee(0), committee(1, 1), committee(2, 5)]
    order = [4, 0, 3, 1, 2, 0]
    before = Dataset(old)
    for read, number in zip(before.records(order), order, strict=True):
        assert_same(read, everything[number])
    batch = before.read([0, 2])
    assert batch.labels["energies"].isnan().tolist() == [True, True, False, False, False]
    whole = before.label_set_hash()
    assert verify(old).problems == []
    monkeypatch.setattr(writer, "MERGED_AT_ONCE", 3)
    with DatasetWriter(old, {"teacher": "none"}) as open_:
        open_.append([committee(3)])
    assert len(list(old.glob("*.h5"))) == 2
    merged = Dataset(old)
    for read, number in zip(merged.records(order), order, strict=True):
        assert_same(read, everything[number])
    assert merged.read(range(5)).labels["forces_spread"].isnan().sum() == 4
    assert before.label_set_hash() == whole  # opened before the merge
    assert verify(old).problems == []


def test_what_no_record_has_takes_no_room(tmp_path):
    """A shard of such records is of the size it had, and their checksums are the same."""
    for name, records in {"plain": WRITTEN, "shares": [WRITTEN[0], committee(0)]}.items():
        with DatasetWriter(tmp_path / name, {}) as open_:
            open_.append(records)
    entry = old_shard(tmp_path, 2)
    plain, shares = (next((tmp_path / name).glob("*.h5")) for name in ("plain", "shares"))
    assert plain.stat().st_size == entry.n_bytes
    with h5py.File(plain) as new, h5py.File(tmp_path / entry.name) as old:
        assert set(new) == set(old)
        assert new.attrs["schema"] == 3
        assert new["identity"]["checksum"].tolist() == old["identity"]["checksum"].tolist()
    with h5py.File(shares) as both:
        assert {"forces_spread", "energies"} < set(both)
        assert both["forces_spread"].shape == both["energies"].shape == (5,)


@pytest.mark.parametrize("name", ["forces_spread", "energies"])
@pytest.mark.parametrize(
    ("atom", "record", "change"),
    [
        (0, 0, "a number"),
        (0, 0, "another NaN"),
        (3, 1, "a number"),
        (3, 1, "another NaN"),
        (3, 1, "a NaN"),
    ],
)
def test_damage_to_an_optional_label_is_found(tmp_path, name, atom, record, change):
    """Also where a record lacks it: no other bytes pass for the NaN written there."""
    with DatasetWriter(tmp_path, {}) as open_:
        open_.append([WRITTEN[0], committee(0)])
    path = next(tmp_path.glob("*.h5"))
    with h5py.File(path) as file:
        row = file[name].dtype.itemsize
        place = file[name].id.get_offset() + atom * row
    nan = bytearray(np.array(np.nan, f"<f{row}").tobytes())
    nan[0] ^= change == "another NaN"
    new = np.array(1.0, f"<f{row}").tobytes() if change == "a number" else bytes(nan)
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + new + whole[place + row :])
    with pytest.raises(DatasetError, match=f"record {record} is damaged"):
        Dataset(tmp_path).read([record])
    assert Dataset(tmp_path).read([1 - record]).n_systems == 1
    assert f"record {record}: damaged (checksum mismatch)" in verify(tmp_path).problems[0]


def test_an_optional_table_cannot_be_a_link_or_of_another_schema(tmp_path):
    with DatasetWriter(tmp_path, {}) as open_:
        open_.append([committee(0)])
    path = next(tmp_path.glob("*.h5"))
    with h5py.File(path, "r+", libver=("v108", "v108")) as file:
        file.attrs.modify("schema", np.int64(2))
    with pytest.raises(DatasetError, match="unexpected contents"):
        Shard(path)
    with h5py.File(path, "r+", libver=("v108", "v108")) as file:
        file.attrs.modify("schema", np.int64(3))
        del file["energies"]
        file["energies"] = h5py.SoftLink("/forces_spread")
    with pytest.raises(DatasetError, match="soft or external link"):
        Shard(path)


def test_shares_must_sum_to_the_energy(tmp_path):
    good = committee(0)
    off = dict(good.labels, energy=good.labels["energy"] + 4e-6)
    with DatasetWriter(tmp_path, {}) as open_:
        with pytest.raises(
            DatasetError, match=r"(?s)'energies' does not sum.*leave 'energies' out"
        ):
            open_.append([Record(good.atoms, off, good.key, 0)])
        near = dict(good.labels, energy=good.labels["energy"] + 2e-6)
        open_.append([Record(good.atoms, near, good.key, 0)])
        assert set(open_.labels(good.key)) == set(good.labels)


def test_any_nan_of_the_caller_is_a_missing_label(tmp_path):
    odd = np.full(2, np.nan, np.float64)
    odd.view(np.uint8)[0] = 7
    labels = dict(WRITTEN[0].labels, energies=odd, forces_spread=odd)
    with DatasetWriter(tmp_path, {}) as open_:
        open_.append([Record(WRITTEN[0].atoms, labels, "a" * 64, 0)])
    with h5py.File(next(tmp_path.glob("*.h5"))) as file:
        assert "energies" not in file
    assert set(next(Dataset(tmp_path).iterate()).labels) == {"energy", "forces", "stress"}


@pytest.mark.parametrize("schema", layout.LAYOUTS)
def test_a_schema_holds_each_column_once(schema):
    """A new property is a new schema: an old one must not change."""
    names = [name for table in layout.LAYOUTS[schema].values() for name in table.columns]
    new = {"forces_spread", "energies"} if schema < 3 else set()
    new |= {"initial_charges", "initial_magmoms"} if schema < 4 else set()
    assert sorted(names) == sorted({*COLUMNS, "checksum"} - new)
