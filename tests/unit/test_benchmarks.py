"""The scripts of ``benchmarks/`` begin: what they import is there, and they tell their options."""

import importlib.util
import sys

import pytest
from tests.helpers import ROOT

SCRIPTS = [
    path
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if "argparse.ArgumentParser(" in path.read_text()
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
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "benchmarks")):
                del sys.modules[name]
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out
