import shutil

import pytest

from mlff_distiller.dataset import DatasetWriter, verify


def test_a_sound_dataset(stored):
    report = verify(stored)
    assert report.ok
    assert (report.n_records, report.n_damaged) == (10, 0)
    assert report.problems == report.notes == []


def test_a_single_shard(stored):
    assert [verify(path).n_records for path in sorted(stored.glob("*.h5"))] == [7, 3]
    assert verify(str(min(stored.glob("*.h5")))).ok
    assert verify(stored / "manifest.json").ok


def test_leftovers_are_noted_but_lose_nothing(stored):
    (stored / "000007-0123456789abcdef.h5").write_bytes(b"half")
    (stored / ".manifest.json.1.partial").write_text("{")
    (stored / "mine.h5").write_bytes(b"")
    report = verify(stored)
    assert report.ok
    assert report.n_records == 10
    assert len(report.notes) == 3
    assert "orphaned shard 000007-0123456789abcdef.h5" in report.notes[0]
    assert "orphaned shard mine.h5" in report.notes[1]
    assert ".manifest.json.1.partial" in report.notes[2]


def test_duplicate_keys_are_named(stored, monkeypatch, record):
    monkeypatch.setattr(DatasetWriter, "_refuse_duplicates", lambda *_: None)
    with DatasetWriter(stored, {"teacher": "none"}) as out:
        out.append([record(3, group=5)])
    report = verify(stored)
    assert len(report.problems) == 1
    assert f"duplicate key {record(3).key}" in report.problems[0]
    assert "record 3 and 000002-" in report.problems[0]


def test_bytes_that_belong_to_no_record(stored, tmp_path):
    path = min(stored.glob("*.h5"))
    with path.open("ab") as stream:
        stream.write(b"\0")
    assert "SHA-256 mismatch" in verify(stored).problems[0]
    assert "SHA-256 mismatch" in verify(path).problems[0]
    renamed = shutil.copy(path, tmp_path / "renamed.h5")
    assert verify(renamed).n_records == 7


def test_shards_exchanged(stored):
    one, other = sorted(stored.glob("*.h5"))
    one.rename(stored / "between")
    other.rename(one)
    (stored / "between").rename(other)
    problems = verify(stored).problems
    assert len(problems) == 2
    assert all("is not the one the manifest lists" in problem for problem in problems)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89HDF\r\n\x1a\n", bytes(10**5)])
def test_garbage(tmp_path, content):
    (tmp_path / "x.h5").write_bytes(content)
    report = verify(tmp_path / "x.h5")
    assert (report.ok, report.n_records) == (False, 0)
    assert "x.h5" in report.problems[0]
    assert not verify(tmp_path).ok


def test_nothing_there(tmp_path):
    report = verify(tmp_path / "absent")
    assert report.problems == ["missing shard absent (0 records)"]
