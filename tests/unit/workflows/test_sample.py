"""``sample`` from Python: structures in memory, news, and what it returns."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from mlff_distiller.errors import ConfigError
from mlff_distiller.labeling import read_structures
from mlff_distiller.teachers import TeacherGaveUp
from mlff_distiller.workflows.sample import sample

EMT = "ase:ase.calculators.emt:EMT"


def test_what_is_returned_is_what_is_written(tmp_path):
    news = []
    made = sample(
        [bulk("Cu", cubic=True)],
        tmp_path / "new.xyz",
        "md",
        number=5,
        select=3,
        teacher=EMT,
        temperature_K=(300.0, 900.0),
        pressure_GPa=(1.0,),
        on_progress=lambda stage, done, total, text: news.append((stage, done, total)),
    )
    written = read(tmp_path / "new.xyz", ":")
    assert len(made) == len(written) == 3
    for atoms, again in zip(made, written, strict=True):
        assert len(atoms) >= 32
        assert np.allclose(atoms.get_forces(), again.get_forces(), atol=1e-6)
        assert (again.info["source"], again.info["pressure_GPa"]) == ("dynamics", 1.0)
    assert {stage: (done, total) for stage, done, total in news} == {
        "teacher": (1, 1),
        "sample": (5, 5),
        "describe": (5, 5),
        "select": (3, 3),
    }


def test_a_pool_may_be_in_memory(tmp_path):
    pool = [bulk("Cu"), bulk("Au"), bulk("Cu"), bulk("Al")]
    pool[0].info["charge"] = 1
    few = sample(pool, tmp_path / "few.xyz", "pool", select=3)
    assert [atoms.info["file"] for atoms in few] == ["Cu", "Au", "Al"]
    assert few[0].info["charge"] == 1
    assert len({structure.origin["seed"] for structure in read_structures(few).all}) == 3


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)unknown method.*tree, md.*found: +mds"):
        sample([bulk("Cu")], tmp_path / "new.xyz", "mds")


def test_a_teacher_that_gives_up_ends_it(tmp_path, monkeypatch):
    """Not one structure after the other, each with its own wait."""
    (tmp_path / "once.py").write_text(
        "from ase.calculators.emt import EMT\n"
        "class Once(EMT):\n"
        "    def calculate(self, *arguments, **options):\n"
        "        super().calculate(*arguments, **options)\n"
        "        if self.atoms.positions[0].any():\n"
        "            raise ValueError('only once')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlff_distiller.teachers.session._PATIENCE", 3)
    with pytest.raises(TeacherGaveUp, match=r"(?s)again and again.*only once"):
        sample([bulk("Cu", cubic=True)], tmp_path / "new.xyz", number=30, teacher="ase:once:Once")
    assert len(read(tmp_path / "new.xyz", ":")) == 1
