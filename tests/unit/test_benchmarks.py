"""The scripts of ``benchmarks/`` begin, and its README lists them and their results."""

import importlib.util
import re
import sys

import pytest
from tests.helpers import ROOT

from mlff_distiller import training

FOLDER = ROOT / "benchmarks"
SCRIPTS = [
    path for path in sorted(FOLDER.rglob("*.py")) if "argparse.ArgumentParser(" in path.read_text()
]
FOREIGN = {"calorine", "graph_pes", "pytorch_lightning"}  # imported by scripts; not ours to require


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_a_script_tells_its_options(path, monkeypatch, capsys):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    spec = importlib.util.spec_from_file_location("script", path)
    script = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(script)
        with pytest.raises(SystemExit) as end:
            script.main()
    except ModuleNotFoundError as error:
        if error.name not in FOREIGN:
            raise
        pytest.skip(f"needs {error.name}")
    finally:
        for name in set(sys.modules) - before:  # `students`, say: of this script alone
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
                del sys.modules[name]
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_an_update_is_timed_within_one_training(monkeypatch):
    """The difference of two short trainings was negative in the noise."""
    monkeypatch.syspath_prepend(FOLDER)
    two_versions = importlib.import_module("two_versions")
    seconds, trainings = (9.0, 9.06, 9.14, 9.2, 19.2), []

    def train(*given, **_):
        trainings.append(given)
        return [{"updates": 6 * k, "seconds": own} for k, own in enumerate(seconds, 1)]

    monkeypatch.setattr(training, "train", train)
    assert two_versions.update("nep", "cpu", 6) == {"update_ms_nep": pytest.approx(70 / 6)}
    ((_, _, _, settings),) = trainings
    assert settings.updates == 6 * settings.validations


def test_the_readme_lists_every_script_and_every_result():
    """And results are of scripts that are there, or of a commit that had them."""
    text = (FOLDER / "README.md").read_text()
    named = set(re.findall(r"([a-z0-9_]+\.(?:py|json|sh))", text))
    there = {path.name for kind in ("py", "json", "sh") for path in FOLDER.rglob(f"*.{kind}")}
    aside = {path.name for name in ("baselines", "silicon") for path in (FOLDER / name).rglob("*")}
    assert there - named - aside == set()
    gone = set(re.findall(r"`([a-z0-9_]+\.py)` of commit [0-9a-f]{7}", text))
    assert named - there == gone
