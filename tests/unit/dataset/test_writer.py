import contextlib
import errno
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.helpers import running

from mlff_distiller.dataset import Dataset, DatasetWriter, manifest, verify, writer
from mlff_distiller.errors import DatasetError, StructureError


def test_what_is_appended_can_be_read_at_once(record, tmp_path):
    with DatasetWriter(tmp_path, {}) as out:
        out.append([record(0)])
        assert Dataset(tmp_path).keys == [record(0).key]
        out.append([record(1), record(2)])
        assert len(out) == len(Dataset(tmp_path)) == 3
        assert record(2).key in out
        assert record(3).key not in out
        assert 5 not in out


def test_labels_are_those_of_a_later_read(record, tmp_path):
    first = record(0, labels={"energy": 1 / 3, "forces": np.full((3, 3), 0.1)})
    with DatasetWriter(tmp_path, {}) as out:
        out.append([first])
        out.append([record(1)])
        fresh = [out.labels(record(n).key) for n in (0, 1)]
        with pytest.raises(KeyError):
            out.labels(record(2).key)
    with DatasetWriter(tmp_path, {}) as out:
        resumed = [out.labels(record(n).key) for n in (0, 1)]
    read = [dict(r.labels) for r in Dataset(tmp_path).records([0, 1])]
    for one, two, three in zip(fresh, resumed, read, strict=True):
        for name in one:
            assert one[name].tobytes() == two[name].tobytes() == three[name].tobytes()
        assert set(one) == set(two) == set(three)
    assert set(fresh[0]) == {"energy", "forces"}
    assert fresh[0]["forces"].dtype == np.float32
    assert fresh[0]["energy"] == 1 / 3


def test_a_key_is_stored_once(record, tmp_path):
    with DatasetWriter(tmp_path, {}) as out:
        out.append([record(0)])
        with pytest.raises(DatasetError, match=r"record 1 of the batch .* record 0 already"):
            out.append([record(1), record(0)])
        with pytest.raises(DatasetError, match="this batch already"):
            out.append([record(2), record(2)])
        assert len(out) == 1
    with DatasetWriter(tmp_path, {}) as out, pytest.raises(DatasetError, match="already"):
        out.append([record(0)])
    assert verify(tmp_path).n_records == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"forces": np.zeros((3, 3))}, "lacks labels.*energy"),
        ({"energy": 0.0}, "lacks labels.*forces"),
        ({"energy": np.nan, "forces": np.zeros((3, 3))}, "'energy' is not finite"),
        ({"energy": np.zeros(1), "forces": np.zeros((3, 3))}, "'energy' has the wrong shape"),
        ({"energy": 0.0, "forces": np.zeros((2, 3))}, "'forces' has the wrong shape"),
        ({"energy": 0.0, "forces": np.full((3, 3), np.nan)}, "'forces' is not finite"),
        ({"energy": 0.0, "forces": np.full((3, 3), 1e39)}, "'forces' is not finite"),
        ({"energy": "low", "forces": np.zeros((3, 3))}, "'energy' is not numeric"),
        ({"energy": 0.0, "forces": np.zeros((3, 3)), "hessian": 1}, "unknown labels"),
        (
            {"energy": 0.0, "forces": np.zeros((3, 3)), "stress": np.diag([1, 1, np.nan])},
            "'stress' is not finite",
        ),
        (
            {"energy": 0.0, "forces": np.zeros((3, 3)), "stress": np.full((3, 3), np.inf)},
            "'stress' is not finite",
        ),
        (
            {"energy": 0.0, "forces": np.zeros((3, 3)), "stress": np.zeros(6)},
            "'stress' has the wrong shape",
        ),
    ],
)
def test_wrong_labels_are_refused_and_the_batch_with_them(record, tmp_path, labels, message):
    with DatasetWriter(tmp_path, {}) as out:
        with pytest.raises(DatasetError, match=f"record 1 of the batch.*{message}"):
            out.append([record(0), record(1, labels=labels)])
        assert len(out) == 0
        out.append([record(0), record(1)])
        assert len(out) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "abc"}, "no valid key"),
        ({"key": "A" * 64}, "no valid key"),
        ({"key": b"a" * 64}, "no valid key"),
        ({"group": 1.0}, "no valid group"),
        ({"group": True}, "no valid group"),
        ({"group": 2**63}, "no valid group"),
        ({"provenance": {"x": float("nan")}}, "JSON"),
        ({"provenance": {"x": object()}}, "JSON"),
        ({"provenance": {"x": "\ud800"}}, "JSON"),
    ],
)
def test_wrong_identity_is_refused(record, tmp_path, changes, message):
    with DatasetWriter(tmp_path, {}) as out:
        with pytest.raises(DatasetError, match=message):
            out.append([record(0, **changes)])
        assert len(out) == 0


def test_an_impossible_structure_is_refused(record, tmp_path):
    broken = record(0)
    broken.atoms.positions[1, 1] = np.inf
    with DatasetWriter(tmp_path, {}) as out, pytest.raises(StructureError, match="record 0 of"):
        out.append([broken])


def test_other_metadata_are_refused_field_by_field(record, tmp_path):
    metadata = {"teacher": {"name": "a", "sha256": "1"}, "seeds": (1, 2), "size": np.int64(3)}
    with DatasetWriter(tmp_path, metadata) as out:
        out.append([record(0)])
    changed = metadata | {"teacher": {"name": "a", "sha256": "2"}, "extra": None}
    with pytest.raises(DatasetError) as caught:
        DatasetWriter(tmp_path, changed)
    message = str(caught.value)
    assert "teacher.sha256: '2' != '1'" in message
    assert "extra: None != (absent)" in message
    assert "teacher.name" not in message
    assert "seeds" not in message
    with DatasetWriter(tmp_path, metadata) as out:
        assert len(out) == 1


def test_metadata_that_are_no_json(tmp_path):
    with pytest.raises(DatasetError, match="metadata cannot be written as JSON"):
        DatasetWriter(tmp_path, {"x": float("inf")})
    assert not (tmp_path / "manifest.json").exists()


def test_a_second_writer_is_refused_at_once(tmp_path):
    with DatasetWriter(tmp_path, {}):
        with pytest.raises(DatasetError, match=f"(?s)being written.*process {os.getpid()} "):
            DatasetWriter(tmp_path, {})
        assert len(Dataset(tmp_path)) == 0
    DatasetWriter(tmp_path, {}).close()


def test_a_writer_in_another_process_is_named(tmp_path):
    code = (
        "import sys; from mlff_distiller.dataset import DatasetWriter\n"
        "with DatasetWriter(sys.argv[1], {}): print('ready', flush=True); sys.stdin.read()"
    )
    program = (sys.executable, "-c", code, tmp_path)
    with running(*program, stdin=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(DatasetError, match=f"process {holder.pid} on "):
            DatasetWriter(tmp_path, {})
    DatasetWriter(tmp_path, {}).close()


def test_a_closed_writer_says_so(record, tmp_path):
    out = DatasetWriter(tmp_path, {})
    out.close()
    out.close()
    for use in (lambda: out.append([record(0)]), lambda: len(out), lambda: out.labels("x")):
        with pytest.raises(DatasetError, match="closed"):
            use()


def test_a_writer_cannot_be_pickled(tmp_path):
    with DatasetWriter(tmp_path, {}) as out, pytest.raises(TypeError, match="another process"):
        pickle.dumps(out)


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(stored):
    orphan = stored / "000077-0123456789abcdef.h5"
    partial = stored / ".000078-0123456789abcdef.h5.123.partial"
    foreign = stored / "mine.h5"
    for path in (orphan, partial, foreign):
        path.write_bytes(b"half")
    DatasetWriter(stored, {"teacher": "none"}).close()
    assert not orphan.exists()
    assert not partial.exists()
    assert foreign.exists()
    assert len(Dataset(stored)) == 10


def test_without_its_manifest_nothing_is_removed(stored):
    (stored / "manifest.json").unlink()
    before = sorted(stored.iterdir())
    with pytest.raises(DatasetError, match=r"lost its manifest\.json"):
        DatasetWriter(stored, {"teacher": "none"})
    assert sorted(stored.iterdir()) == before


def test_a_missing_shard_stops_the_writer_before_it_removes_anything(stored):
    shards = sorted(stored.glob("*.h5"))
    orphan = stored / "000077-0123456789abcdef.h5"
    shards[0].rename(orphan)
    with pytest.raises(DatasetError, match=f"(?s){shards[0].name}.*restore"):
        DatasetWriter(stored, {"teacher": "none"})
    assert orphan.exists()


def test_merging_keeps_order_and_few_files(record, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MERGED_AT_ONCE", 4)
    records = [record(number, number % 5 + 1) for number in range(100)]
    with DatasetWriter(tmp_path, {}) as out:
        for one in records:
            out.append([one])
            assert len(list(tmp_path.glob("*.h5"))) <= 4 * 4
        energies = [float(out.labels(one.key)["energy"]) for one in records]
    assert energies == [float(one.labels["energy"]) for one in records]
    dataset = Dataset(tmp_path)
    assert dataset.keys == [one.key for one in records]
    batch = dataset.read(range(100))
    assert np.array_equal(
        batch.positions.numpy(), np.concatenate([one.atoms.positions for one in records])
    )
    report = verify(tmp_path)
    assert (report.ok, report.n_records, report.notes) == (True, 100, [])


@pytest.mark.parametrize(("largest", "files"), [(5_000, 20), (8_000, 8)])
def test_merging_stops_at_a_size(record, tmp_path, monkeypatch, largest, files):
    """A shard of one record has 2.6 kB: two are too large, or three just fit."""
    monkeypatch.setattr(writer, "MERGED_AT_ONCE", 4)
    monkeypatch.setattr(writer, "LARGEST_MERGED", largest)
    with DatasetWriter(tmp_path, {}) as out:
        for number in range(20):
            out.append([record(number)])
    sizes = [path.stat().st_size for path in tmp_path.glob("*.h5")]
    assert len(sizes) == files
    assert max(sizes) <= largest
    assert Dataset(tmp_path).keys == [record(number).key for number in range(20)]


def test_a_reader_survives_merges_and_sees_what_it_saw(record, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MERGED_AT_ONCE", 4)
    with DatasetWriter(tmp_path, {}) as out:
        for number in range(3):
            out.append([record(number)])
        unread, half_read = Dataset(tmp_path), Dataset(tmp_path)
        half_read.read([1])
        for number in range(3, 40):
            out.append([record(number)])
        for dataset in (unread, half_read):
            assert len(dataset) == 3
            assert dataset.keys == [record(number).key for number in range(3)]
            assert dataset.groups.tolist() == [0, 1, 2]
            assert len(dataset.n_atoms) == 3
            expected = [float(record(number).labels["energy"]) for number in (2, 1, 0)]
            assert dataset.read([2, 1, 0]).labels["energy"].tolist() == expected
            with pytest.raises(IndexError):
                dataset.read([3])


def test_a_reader_notices_another_dataset_in_its_place(record, stored):
    dataset = Dataset(stored)
    for path in stored.iterdir():
        path.unlink()
    with DatasetWriter(stored, {"teacher": "another"}) as out:
        out.append([record(number) for number in range(20)])
    with pytest.raises(DatasetError, match="replaced by another"):
        dataset.read([0])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["write_bytes", "replace"])
@pytest.mark.parametrize("file", ["shard", "manifest"])
def test_what_the_disk_refuses_changes_nothing(record, stored, monkeypatch, code, call, file):
    real = getattr(Path, call)

    def refuse(path, argument):
        if ("manifest" in path.name) != (file == "manifest"):
            return real(path, argument)
        if call == "write_bytes":
            real(path, argument[: len(argument) // 2])
        raise OSError(code, os.strerror(code), str(path))

    before = everything_in(stored)
    with DatasetWriter(stored, {"teacher": "none"}) as out:
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, refuse)
            with pytest.raises(DatasetError, match=f"(?s){os.strerror(code)}.*remedy") as caught:
                out.append([record(10)])
        assert str(stored) in str(caught.value)
        assert everything_in(stored) == before
        assert record(10).key not in out
        out.append([record(10)])
    assert verify(stored).n_records == 11


def test_a_disk_that_also_refuses_to_tidy_up(record, stored, monkeypatch):
    """Then the state is taken from the disk at the next use."""

    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with DatasetWriter(stored, {"teacher": "none"}) as out:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            patch.setattr(Path, "unlink", refuse)
            with pytest.raises(DatasetError, match="Read-only"):
                out.append([record(10)])
        assert len(verify(stored).notes) == 1
        assert record(10).key not in out
        assert verify(stored).notes == []
        out.append([record(10)])
    assert verify(stored).n_records == 11


def test_a_file_that_the_system_cuts_short(record, stored):
    """The kernel itself stops the write, as a full disk does: nothing is patched here."""
    before, limits = everything_in(stored), resource.getrlimit(resource.RLIMIT_FSIZE)
    with DatasetWriter(stored, {"teacher": "none"}) as out:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(DatasetError, match="File too large"):
                out.append([record(10)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert everything_in(stored) == before
        out.append([record(10)])
    assert verify(stored).n_records == 11


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_each_system_call_may_fail_once(record, tmp_path, monkeypatch):
    """Whatever fails and when, what is on the disk is what the writer says it is."""
    monkeypatch.setattr(writer, "MERGED_AT_ONCE", 4)
    real = {"fsync": lambda descriptor: None, "replace": os.replace, "unlink": os.unlink}
    failing_call, calls = 0, 0

    def failing(name):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == failing_call:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real[name](*arguments, **options)

        return call

    for name in real:
        monkeypatch.setattr(os, name, failing(name))
    keys = [record(number).key for number in range(5)]
    while calls >= failing_call:
        failing_call, calls = failing_call + 1, 0
        folder = tmp_path / str(failing_call)
        with contextlib.suppress(DatasetError):
            DatasetWriter(folder, {}).close()
        with DatasetWriter(folder, {}) as out:
            for number, key in enumerate(keys):
                with contextlib.suppress(DatasetError):
                    out.append([record(number)])
                assert (key in out) == (key in Dataset(folder).keys)
                if key not in out:
                    out.append([record(number)])
        DatasetWriter(folder, {}).close()
        report = verify(folder)
        assert Dataset(folder).keys == keys
        assert (report.ok, report.n_records, report.notes) == (True, 5, [])
    assert failing_call > 40


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    real = os.open

    def refuse(path, flags, *rest, **options):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DatasetError, match=r"(?s)Read-only file system.*choose another folder"):
        DatasetWriter(tmp_path, {})


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match="a file is in the way"):
        DatasetWriter(tmp_path / "file", {})


@pytest.mark.parametrize(("schema", "remedy"), [(2, "upgrade"), (0, "older version")])
def test_a_manifest_of_another_schema(stored, monkeypatch, schema, remedy):
    monkeypatch.setattr(manifest, "SCHEMA", schema)
    folder = stored.parent / "other"
    DatasetWriter(folder, {}).close()
    monkeypatch.undo()
    for use in (Dataset, lambda path: DatasetWriter(path, {})):
        with pytest.raises(
            DatasetError, match=f"(?s)expected: schema {manifest.SCHEMA}.*schema {schema}.*{remedy}"
        ):
            use(folder)
    assert any("schema" in problem for problem in verify(folder).problems)
