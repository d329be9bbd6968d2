"""What ``run_md`` is asked for, and how hot is too hot."""

import numpy as np
import pytest
from scipy.stats import chi2
from tests.helpers import random_nep
from tests.unit.md.test_md import BRIEF, water_like

from mlff_distiller import run_md
from mlff_distiller.errors import ConfigError, StudentError
from mlff_distiller.md.ensemble import Ensemble
from mlff_distiller.students.nep_file import read_nep, write_nep

WRONG = {
    "n_steps": (-1, 1.5, float("nan"), float("inf"), "10"),
    "time_ps": (-1, float("nan"), float("inf"), "1"),
    "frames_every": (0, 2.5),
    "log_every": (0.5, None),
    "log_format": ("xml",),
    "checkpoint_every_s": (float("nan"), -1.0),
    "temperature_K": (float("inf"), float("nan"), []),
    "pressure_GPa": (float("nan"),),
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_wrong_settings_are_named(name, value):
    words = ({"n_steps": 1} if name != "time_ps" else {}) | BRIEF | {name: value}
    with pytest.raises(ConfigError, match=name.removesuffix("_format") if "log" in name else name):
        run_md(water_like(2), random_nep(), **words)


def test_numbers_of_every_kind_are_taken():
    words = BRIEF | {"n_steps": 1e1, "frames_every": np.int64(5), "log_every": 5.0}
    pair = {"temperature_K": np.linspace(10, 20, 2), "pressure_GPa": np.zeros(2)}
    result = run_md([water_like(2)] * 2, random_nep(), **words, **pair)
    assert result.n_steps == 10
    assert len(result.log) == 6
    assert Ensemble(temperature_K=np.float32(5.0)).temperature_K == (5.0,)


def test_few_atoms_may_be_hot_by_chance():
    ensemble = Ensemble(ensemble="nvt", temperature_K=300.0)
    degrees = np.array([3.0, 6.0, 30.0, 3000.0])
    limits = ensemble.explodes_at_K(300.0, degrees)
    assert (chi2.sf(limits / 300.0 * degrees, degrees) < 1e-17).all()
    assert limits[0] > 20 * 300.0
    assert limits[-1] == 3000.0
    chosen = Ensemble(max_temperature_K=400.0).explodes_at_K(300.0, degrees)
    assert chosen.tolist() == [400.0] * 4


@pytest.mark.parametrize("flags", ["4 1 1", "4 1 1 0 0 0", "4 2 1 0", "4 1 1 0 0 0 0"])
def test_flags_of_new_nep_files_that_mean_no_more(tmp_path, flags):
    write_nep(random_nep(), tmp_path / "nep.txt", max_neighbors=(100, 100))
    text = (tmp_path / "nep.txt").read_text()
    assert "l_max 4 2 1\n" in text
    (tmp_path / "new.txt").write_text(text.replace("l_max 4 2 1\n", f"l_max {flags}\n"))
    old, new = read_nep(tmp_path / "nep.txt"), read_nep(tmp_path / "new.txt")
    assert new.config() == old.config()
    (tmp_path / "new.txt").write_text(text.replace("l_max 4 2 1\n", "l_max 4 1 1 0 1\n"))
    with pytest.raises(StudentError, match="not supported"):
        read_nep(tmp_path / "new.txt")
