"""The page "Use it with ASE" runs as it stands."""

import re
from importlib.util import find_spec

import pytest
import torch
from tests.helpers import ROOT, random_nep

from mlff_distiller.students import save_student

TEXT = (ROOT / "docs" / "use_it.md").read_text(encoding="utf-8")
FIRST, *BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def run(tmp_path_factory, monkeypatch):
    """A folder with a small student of silicon in RUN."""
    folder = tmp_path_factory.mktemp("use_it")
    student = random_nep(("Si",))
    with torch.no_grad():
        student.w1.mul_(0.1)
    (folder / "RUN").mkdir()
    save_student(student, folder / "RUN" / "student", about={}, card="", frames=())
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"import (\w+)", block)[-1])
def test_a_part_of_the_page_after_the_first(block, run, capsys):
    packages = re.findall(r"^(?:from|import) (\w+)", block, re.MULTILINE)
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} not installed")
    names = {"__name__": "__main__"}
    exec(FIRST, names)
    assert capsys.readouterr().out.strip()
    exec(block, names)
    said = capsys.readouterr().out
    assert said.strip()
    assert "nan" not in said
