"""``durable.Lock``: one writer a file or folder, however the others ended."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from mlff_distiller.durable import Lock
from mlff_distiller.errors import ConfigError, DynamicsError


def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path):
    for path in (tmp_path, tmp_path / "md.extxyz"):
        with Lock(path), pytest.raises(ConfigError, match=f"process {os.getpid()} on .* since 2"):
            Lock(path)
        Lock(path, "it").release()
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_link_to_a_file_is_the_file(tmp_path):
    (tmp_path / "link.h5").symlink_to(tmp_path / "md.h5")
    with Lock(tmp_path / "md.h5"), pytest.raises(DynamicsError):
        Lock(tmp_path / "link.h5", in_use=DynamicsError)


def test_a_dead_process_holds_nothing(tmp_path):
    code = "import os, sys, pathlib; from mlff_distiller.durable import Lock; "
    code += "held = Lock(pathlib.Path(sys.argv[1])); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    Lock(tmp_path).release()


def test_whoever_waited_for_a_file_that_is_gone_takes_a_new_one(tmp_path, monkeypatch):
    """Opened before its holder removed it, locked after: two would hold a lock each."""
    first, flock = Lock(tmp_path), fcntl.flock

    def late(descriptor, how):
        first.release()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with Lock(tmp_path), pytest.raises(ConfigError):
        Lock(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_disk_refuses_is_said(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number), "here")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DynamicsError, match=r"(?s)here\).*remedy"):
        Lock(tmp_path, refused=DynamicsError)


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="without locks"):
        Lock(tmp_path).release()


def test_a_forked_child_does_not_share_it(tmp_path):
    lock = Lock(tmp_path)
    child = os.fork()
    if not child:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ConfigError):
        Lock(tmp_path)
    lock.release()
