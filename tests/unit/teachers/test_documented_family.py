"""The family that docs/teachers.md shows, copied out of the page, is installed and tested."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlff_distiller.errors import TeacherError
from mlff_distiller.teachers import load_teacher, registered_teachers

PAGE = Path(__file__).resolve().parents[3] / "docs" / "teachers.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    files = dict(blocks)
    for name in ("lj_teacher.py", "test_lj_teacher.py"):
        (tmp_path / name).write_text(files[name])
    [group, entry] = re.findall(r'"(\S+)"\]\n(.*)', files["pyproject.toml"])[0]
    info = tmp_path / "lj_teacher-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lj-teacher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_it_is_registered_and_answers(installed):
    assert {"lj-argon", "lj:EPSILON,SIGMA"} <= {row.name for row in registered_teachers()}
    with load_teacher("lj:0.0104,3.4") as teacher:
        assert teacher.identity.name == "lj:0.0104,3.4"
        assert teacher.elements == {18}
    with pytest.raises(TeacherError, match="lj:EPSILON,SIGMA"):
        load_teacher("lj:soft")


def test_its_own_test_passes(installed):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_lj_teacher.py"]
    done = subprocess.run(command, cwd=installed, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout
