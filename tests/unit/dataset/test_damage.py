"""Damaged, foreign and malicious files: an error that names them, never a wrong number."""

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from mlff_distiller.dataset import Dataset, DatasetWriter, layout, verify
from mlff_distiller.dataset.shard import Shard
from mlff_distiller.errors import DatasetError


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.h5"))


def contents(folder: Path) -> tuple:
    """Everything a reader can ask for."""
    dataset = Dataset(folder)
    records = [
        (r.atoms.todict(), dict(r.labels), r.key, r.group, r.provenance)
        for r in dataset.records(range(len(dataset)))
    ]
    identity = dataset.keys, dataset.groups.tolist(), dataset.n_atoms.tolist(), dataset.metadata
    return pickle.dumps([records, identity])


@pytest.mark.parametrize("part", range(6))
def test_a_flipped_bit_is_found_and_never_believed(stored, part):
    """Half of them anywhere, half in HDF5's own metadata."""
    expected, path = contents(stored), first_shard(stored)
    good, numbers = path.read_bytes(), random.Random(part)
    refused = 0
    for where in [len(good) * 8] * 20 + [4000 * 8] * 20:
        bit = numbers.randrange(where)
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        report = verify(stored)
        assert not report.ok
        assert path.name in "".join(report.problems)
        assert not verify(path).ok
        refusal = ""
        try:
            assert contents(stored) == expected
        except DatasetError as error:
            refusal = str(error)
        assert not refusal or path.name in refusal
        refused += bool(refusal)
    assert refused > 20
    path.write_bytes(good)
    assert verify(stored).ok
    assert contents(stored) == expected


def test_the_damaged_record_is_named_and_the_others_stay_readable(stored):
    path = first_shard(stored)
    with h5py.File(path, "r") as file:
        atoms = file["atoms"]
        row = atoms.dtype.itemsize * int(file["offsets"][2])
        place = atoms.id.get_offset() + row + atoms.dtype.fields["forces"][1]
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(b"\x17")
    with pytest.raises(DatasetError, match=f"(?s){path.name}: record 2 is damaged.*remedy"):
        Dataset(stored).read(range(10))
    others = [number for number in range(10) if number != 2]
    assert Dataset(stored).read(others).n_systems == 9
    report = verify(stored)
    assert report.problems == [f"shard {path.name}: record 2: damaged (checksum mismatch)"]
    assert (report.n_records, report.n_damaged) == (9, 1)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("energy forces\n" * 1000)


def zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def an_endless_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def another_hdf5(path):
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        file["x"] = np.arange(3)


def another_shard(path):
    shutil.copy(max(path.parent.glob("*.h5")), path)


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        cut_in_half,
        emptied,
        text,
        zeros,
        a_folder,
        a_pipe,
        an_endless_device,
        another_hdf5,
        another_shard,
    ],
)
def test_files_that_are_not_the_shard(stored, damage):
    path = first_shard(stored)
    damage(path)
    with pytest.raises(DatasetError, match=f"(?s){path.name}.*remedy"):
        Dataset(stored).read([0])
    with pytest.raises(DatasetError, match=f"(?s){path.name}.*remedy"):
        DatasetWriter(stored, {"teacher": "none"})
    assert Dataset(stored).read([7, 8, 9]).n_systems == 3
    report = verify(stored)
    assert not report.ok
    assert path.name in "".join(report.problems)
    assert report.n_records >= 3


@pytest.mark.parametrize("damage", [a_folder, a_pipe, an_endless_device])
def test_what_is_no_regular_file_is_not_read(stored, damage):
    damage(first_shard(stored))
    with pytest.raises(DatasetError, match="not a regular file"):
        Dataset(stored).read([0])


def test_a_missing_shard_is_named(stored):
    path = first_shard(stored)
    path.unlink()
    with pytest.raises(DatasetError, match=f"(?s){path.name} is missing.*remedy"):
        Dataset(stored).read([0])
    report = verify(stored)
    assert report.problems == [f"missing shard {path.name} (7 records)"]
    assert (report.n_records, report.n_damaged) == (3, 7)


def test_a_shard_cut_short_while_open(stored):
    dataset, path = Dataset(stored), first_shard(stored)
    dataset.read([6])
    os.truncate(path, 3000)
    with pytest.raises(DatasetError, match=f"{path.name} was cut short"):
        dataset.read([6])


@pytest.fixture
def forged(stored, tmp_path):
    """Function: change(file) -> path of a shard so changed, whatever checksums it has."""

    def forge(change) -> Path:
        path = tmp_path / "forged.h5"
        shutil.copy(first_shard(stored), path)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return forge


def replace(file, name, **options):
    data = file[name][()]
    del file[name]
    file.create_dataset(name, data=data, **options)


def retyped(file, table, column, dtype):
    """The same numbers, but for one column of another type."""
    rows = file[table][()]
    fields = [(name, dtype if name == column else rows.dtype[name]) for name in rows.dtype.names]
    replaced = np.empty(rows.shape, fields)
    for name in rows.dtype.names:
        replaced[name] = rows[name]
    del file[table]
    file[table] = replaced


def soft_link(file):
    del file["atoms"]
    file["atoms"] = h5py.SoftLink("/systems")


def soft_link_cycle(file):
    del file["atoms"]
    file["atoms"] = h5py.SoftLink("/atoms")


def external_link(file):
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        file.copy("atoms", other)
    del file["atoms"]
    file["atoms"] = h5py.ExternalLink("other.h5", "/atoms")


def external_storage(file):
    data = file["systems"][()]
    outside = Path(file.filename).with_name("outside.bin")
    outside.write_bytes(data.tobytes())
    del file["systems"]
    files = [(outside, 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("systems", data.shape, data.dtype, external=files)


def virtual(file):
    data = file["systems"][()]
    del file["systems"]
    sources = h5py.VirtualLayout(data.shape, data.dtype)
    sources[:] = h5py.VirtualSource("other.h5", "systems", data.shape, data.dtype)
    file.create_virtual_dataset("systems", sources)


def chunked(file):
    replace(file, "atoms", chunks=(2,))


def compressed(file):
    replace(file, "atoms", compression="gzip")


def a_bomb(file):
    """A gigabyte of zeros in a few kilobytes."""
    del file["info"]
    file.create_dataset("info", (2**30,), "u1", chunks=(2**20,), compression="gzip", fillvalue=0)
    file["info"][: 2**21] = 0


def big_endian(file):
    retyped(file, "systems", "energy", ">f8")


def half_precision(file):
    retyped(file, "systems", "energy", "<f4")


def another_column(file):
    rows = file["systems"][()]
    names = [{"energy": "enthalpy"}.get(name, name) for name in rows.dtype.names]
    rows.dtype.names = names
    del file["systems"]
    file["systems"] = rows


def variable_length(file):
    retyped(file, "identity", "key", h5py.string_dtype())


def objects(file):
    del file["info"]
    file.create_dataset("info", data=[file["systems"].ref] * 9, dtype=h5py.ref_dtype)


def another_rank(file):
    data = file["systems"][()]
    del file["systems"]
    file["systems"] = data[:, None]


def a_scalar(file):
    del file["offsets"]
    file["offsets"] = np.int64(5)


def a_group(file):
    del file["systems"]
    file.create_group("systems")


def one_missing(file):
    del file["systems"]


def one_more(file):
    file["extra"] = np.arange(3)


def one_under_another_name(file):
    file.move("systems", "structures")


def absurd_size(file):
    del file["info"]
    space, plan = h5py.h5s.create_simple((2**50,)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    h5py.h5d.create(file.id, b"info", h5py.h5t.STD_U8LE, space, plan)


def pickled_attribute(file):
    file.attrs["metadata"] = np.void(pickle.dumps(os.getcwd))


def attribute_of_references(file):
    file.attrs["link"] = file["systems"].ref


def attribute_of_variable_text(file):
    file.attrs["note"] = "text"


def attribute_of_a_dataset(file):
    file["systems"].attrs["unit"] = 1


def offsets_that_descend(file):
    file["offsets"][2:4] = file["offsets"][()][2:4][::-1]


def offsets_beyond_the_atoms(file):
    file["offsets"][-1] += 1


def negative_offsets(file):
    file["info_offsets"][0] = -8


def offsets_that_ascend_otherwise(file):
    file["offsets"][1] += 1


def another_group(file):
    rows = file["identity"][()]
    rows["group"][0] += 1
    file["identity"][...] = rows


def no_format(file):
    del file.attrs["format"]


def schema_in_words(file):
    del file.attrs["schema"]
    file.attrs["schema"] = np.bytes_("one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (soft_link, "soft or external link"),
        (soft_link_cycle, "soft or external link"),
        (external_link, "soft or external link"),
        (external_storage, "stored elsewhere"),
        (virtual, "virtual"),
        (chunked, "chunked"),
        (compressed, "filtered"),
        (a_bomb, "filtered"),
        (big_endian, "wrong type"),
        (half_precision, "wrong type"),
        (another_column, "wrong type"),
        (variable_length, "wrong type"),
        (objects, "wrong type"),
        (another_rank, "wrong shape"),
        (a_scalar, "offsets are empty"),
        (a_group, "not a dataset"),
        (one_missing, "unexpected contents"),
        (one_more, "unexpected contents"),
        (one_under_another_name, "'systems' is missing"),
        (absurd_size, "beyond the end"),
        (pickled_attribute, "attribute b'metadata' is refused"),
        (attribute_of_references, "attribute b'link' is refused"),
        (attribute_of_variable_text, "attribute b'note' is refused"),
        (attribute_of_a_dataset, "has attributes"),
        (offsets_that_descend, "offsets do not ascend"),
        (offsets_beyond_the_atoms, "offsets do not ascend"),
        (negative_offsets, "info_offsets do not ascend"),
        (offsets_that_ascend_otherwise, "index of records is damaged"),
        (another_group, "index of records is damaged"),
        (no_format, "not a shard"),
        (schema_in_words, "not a shard"),
    ],
)
def test_what_a_shard_must_not_hold(forged, change, message):
    path = forged(change)
    with pytest.raises(DatasetError, match=f"(?s)forged.h5: .*{message}"):
        Shard(path)
    report = verify(path)
    assert not report.ok
    assert "forged.h5" in report.problems[0]


@pytest.mark.parametrize("schema", [0, 5, -(2**63)])
def test_a_shard_of_another_schema(forged, schema):
    def change(file):
        file.attrs["schema"] = np.int64(schema)

    with pytest.raises(DatasetError, match=f"expected: schema {layout.SCHEMA}\n.*schema {schema}"):
        Shard(forged(change))


def test_an_hdf5_file_of_the_oldest_format_is_refused(tmp_path):
    """Its metadata has no checksums; no shard was ever written so."""
    with h5py.File(tmp_path / "old.h5", "w", libver="earliest") as file:
        file.attrs["format"] = np.bytes_("mlff-distiller shard")
    with pytest.raises(DatasetError, match="does not start like one"):
        Shard(tmp_path / "old.h5")


def rewrite(folder: Path, change) -> None:
    """Change the manifest as someone would who knows its checksum."""
    body = json.loads((folder / "manifest.json").read_text())
    del body["sha256"]
    change(body)
    body["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(body))


def test_an_unchanged_rewritten_manifest_is_accepted(stored):
    rewrite(stored, lambda body: None)
    assert verify(stored).ok


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body["shards"][0].update(name="../../etc/passwd"),
        lambda body: body["shards"][0].update(name="/etc/passwd"),
        lambda body: body["shards"][0].update(name=5),
        lambda body: body["shards"][0].update(n_records=-1),
        lambda body: body["shards"][0].update(n_records=10**30),
        lambda body: body["shards"][0].update(n_atoms=1.5),
        lambda body: body["shards"][0].update(sha256=None),
        lambda body: body["shards"][0].pop("sha256"),
        lambda body: body["shards"][0].update(more=1),
        lambda body: body.update(shards=3),
        lambda body: body.pop("shards"),
        lambda body: body.update(metadata=[1]),
        lambda body: body.update(format="another"),
        lambda body: body.update(schema="1"),
        lambda body: body.pop("schema"),
    ],
)
def test_a_manifest_that_is_wrong(stored, change):
    rewrite(stored, change)
    before = sorted(stored.iterdir())
    for use in (Dataset, lambda path: DatasetWriter(path, {"teacher": "none"})):
        with pytest.raises(DatasetError, match=r"(?s)manifest\.json is damaged.*remedy"):
            use(stored)
    assert sorted(stored.iterdir()) == before
    assert "manifest.json is damaged" in verify(stored).problems[0]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 10**5, b'{"format": 1}', bytes(50)]
)
def test_a_manifest_that_is_garbage(stored, content):
    (stored / "manifest.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"manifest\.json is damaged"):
        Dataset(stored)
    report = verify(stored)
    assert not report.ok
    assert report.n_records == 10
    assert not verify(stored / "manifest.json").ok


def test_every_flipped_letter_of_the_manifest_is_harmless_or_found(stored):
    expected, path = contents(stored), stored / "manifest.json"
    good, numbers = path.read_bytes(), random.Random(0)
    found = 0
    for _ in range(100):
        bad = bytearray(good)
        bad[numbers.randrange(len(bad))] ^= 1 << numbers.randrange(7)
        path.write_bytes(bad)
        if verify(stored).ok:
            assert contents(stored) == expected
        else:
            found += 1
            with pytest.raises(DatasetError, match=r"manifest\.json"):
                Dataset(stored)
    assert found > 60


def test_a_folder_without_a_dataset(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DatasetError, match=r"(?s)holds no dataset.*remedy"):
            Dataset(folder)
        assert not verify(folder).ok
