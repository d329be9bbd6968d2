"""``doctor``: what is broken fails, what is merely absent does not, and both say what to do."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mlff_distiller.cli.main import app
from mlff_distiller.cli.options import REFUSED
from mlff_distiller.errors import ConfigError
from mlff_distiller.measure import doctor, warp_probe
from mlff_distiller.measure.nvml import open_nvml


def run(*words):
    return CliRunner().invoke(app, ["doctor", *map(str, words)], catch_exceptions=False)


@pytest.fixture
def quick(monkeypatch):
    """Without the compiler."""
    monkeypatch.setattr(warp_probe, "run", lambda device: 0.0)


def by_name(checks):
    return {check.name: check for check in checks}


def test_this_machine_compiles_runs_and_compares(tmp_path):
    found = by_name(doctor.checks(tmp_path))
    assert found["kernels, cpu"].status == "ok"
    assert found["disk"].status == "ok"
    assert list(tmp_path.iterdir()) == []
    assert {"packages", "threads", "torch", "triton", "nvml", "teachers"} <= found.keys()


@pytest.mark.usefixtures("quick")
def test_json_and_exit_codes(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(doctor, "open_nvml", lambda *_: (None, "nothing"))
    fine = run("--json", "--disk", tmp_path)
    assert fine.exit_code == 0
    assert json.loads(fine.output)["ok"] is True
    assert run("--disk", tmp_path, "--require", "cuda").exit_code == REFUSED
    with pytest.raises(ConfigError, match="no check 'coffee'"):
        run("--disk", tmp_path, "--require", "coffee")


@pytest.mark.usefixtures("quick")
def test_a_kernel_that_runs_but_errs_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(warp_probe, "run", lambda device: 0.5)
    assert run("--disk", tmp_path).exit_code == REFUSED
    check = by_name(doctor.checks(tmp_path))["kernels, cpu"]
    assert (check.status, "wrong by 0.5" in check.found) == ("failed", True)


@pytest.mark.usefixtures("quick")
def test_a_broken_triton_is_worse_than_none(tmp_path, monkeypatch):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('libtriton.so: not found')")
    monkeypatch.delitem(__import__("sys").modules, "triton", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    check = by_name(doctor.checks(tmp_path))["triton"]
    assert check.status == "failed"
    assert "OSError: libtriton.so: not found" in check.found
    assert "--force-reinstall triton" in check.remedy


@pytest.mark.usefixtures("quick")
def test_without_any_teacher_it_says_how_to_get_one(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    libraries = ("sevenn", "chgnet", "orb_models", "mace", "torchani", "fennol")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in libraries else real(name)
    )
    check = by_name(doctor.checks(tmp_path))["teachers"]
    assert check.status == "absent"
    assert "pip install sevenn" in check.remedy
    assert run("--disk", tmp_path, "--require", "teachers").exit_code == REFUSED


@pytest.mark.usefixtures("quick")
def test_what_raises_is_a_failed_check(tmp_path):
    (tmp_path / "file").write_text("in the way")
    check = by_name(doctor.checks(tmp_path / "file" / "below"))["disk"]
    assert (check.status, "NotADirectoryError" in check.found) == ("failed", True)


class Library:
    """NVML as a GPU answers it, but for its clocks."""

    def __getattr__(self, name):
        answers = {
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=87),
            "nvmlDeviceGetPowerUsage": 350_000,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=2**30),
            "nvmlDeviceGetName": b"A GPU",
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x1,
        }

        def answer(*_):
            if "Clock" in name and "Throttle" not in name:
                raise RuntimeError("not supported")
            return answers.get(name)

        return answer


def test_nvml_tells_what_it_can():
    nvml, _ = open_nvml(0, Library())
    seen = nvml.read()
    assert (seen.utilisation_percent, seen.power_W, seen.memory_bytes) == (87.0, 350.0, 2**30)
    assert seen.sm_clock_MHz is None
    assert nvml.about()["name"] == "A GPU"
    assert nvml.about()["throttled_by"] == ["power cap"]


@pytest.mark.gpu
def test_a_gpu_is_in_order(tmp_path):
    found = by_name(doctor.checks(tmp_path))
    wrong = [check for check in found.values() if check.status == "failed"]
    assert not wrong
    assert {"cuda:0", "graphs, cuda:0", "kernels, cuda:0"} <= found.keys()
