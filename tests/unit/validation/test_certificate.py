"""The certificate and the command that writes and verifies it."""

import json
from pathlib import Path

import pytest
from ase.io import write
from tests.helpers import ROOT, command, rattled
from tests.unit.validation.faults import argon

from mlff_distiller.cli.options import REFUSED
from mlff_distiller.errors import ConfigError
from mlff_distiller.validation.certificate import verify_certificate, write_certificate


def test_a_certificate_holds_until_something_changes(tmp_path):
    weights = tmp_path / "student" / "weights.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"abc")
    path = tmp_path / "proof" / "certificate.json"
    write_certificate(path, {"verdict": {"status": "rejected"}, "x": 0.1}, {"weights": weights})
    assert verify_certificate(path) == []
    content = json.loads(path.read_text())
    assert content["files"]["weights"]["path"] == "../student/weights.bin"

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "proof").rename(moved / "proof")
    (tmp_path / "student").rename(moved / "student")
    path, weights = moved / "proof" / "certificate.json", moved / "student" / "weights.bin"
    assert verify_certificate(path) == []

    weights.write_bytes(b"abd")
    assert verify_certificate(path) == ["weights was changed: ../student/weights.bin"]
    weights.unlink()
    assert verify_certificate(path) == ["weights is missing: ../student/weights.bin"]
    weights.write_bytes(b"abc")
    path.write_text(path.read_text().replace("rejected", "approved"))
    assert verify_certificate(path) == ["the certificate itself was changed after it was written"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"content_sha256": "", "files": {"a": 1}}'])
def test_what_is_no_certificate_is_said_to_be_none(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match="is not a certificate"):
        verify_certificate(tmp_path / "c.json")


FACTORY = """
import sys
sys.path.insert(0, {root!r})
from tests.unit.validation.faults import FlippedStress, Pairs
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "argon_fields.py").write_text(FACTORY.format(root=str(ROOT)))
    write(tmp_path / "argon.extxyz", argon())
    settings = "{time_step_fs: 8.0, equilibration_ps: 0.6, friction_per_ps: 20, record_every: 1"
    (tmp_path / "short.yaml").write_text(settings + ", large_atoms: 32, memory_steps: 600}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHORT = ("--config", "short.yaml", "--temperature", 40, "--time-ps", 1.2)


def test_the_command_approves_any_calculator_and_verifies(folder):
    done = command(
        *("validate", "argon.extxyz", "--calculator", "ase:argon_fields:Pairs"),
        *("--out", "proof", "--limit", "incidents=3", *SHORT),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "approved" in done.stdout
    content = json.loads((folder / "proof" / "certificate.json").read_text())
    assert content["verdict"]["status"] == "approved"
    assert content["settings"]["temperature_K"] == [40.0]
    assert content["settings"]["limits"] == {"incidents": 3.0}
    assert content["calculator"]["family"] == "ase"
    assert set(content["files"]) == {"structure", "calculator", "report", "series"}
    assert "series" not in content
    assert (folder / "proof" / "certificate.json").stat().st_size < 100_000
    assert content["measurements"]["speed"]["ms_per_step"] > 0
    done = command("validate", "--verify", "proof/certificate.json")
    assert done.returncode == 0
    assert "every hash is right" in done.stdout
    report = folder / "proof" / "report.html"
    text = report.read_text("utf-8")
    assert "✓ Approved" in text
    report.write_text(text.replace("✓ Approved", "✓ approved"), "utf-8")
    done = command("validate", "--verify", "proof/certificate.json")
    assert done.returncode == REFUSED
    assert "report was changed: report.html" in done.stderr
    report.write_text(text, "utf-8")
    (folder / "argon_fields.py").write_text("changed = 1\n")
    done = command("validate", "--verify", "proof/certificate.json")
    assert done.returncode == REFUSED
    assert "calculator was changed: ../argon_fields.py" in done.stderr


def test_the_command_rejects_with_its_reason(folder):
    write(folder / "frames.extxyz", [rattled(argon(), 0.1, seed) for seed in range(3)])
    done = command(
        *("validate", "argon.extxyz", "--calculator", "ase:argon_fields:FlippedStress"),
        *("--training", "frames.extxyz", "--test", "frames.extxyz", "--out", "proof", *SHORT),
    )
    assert done.returncode == REFUSED
    assert "stress is not the derivative of the energy" in done.stdout
    assert "test structures are in the training set" in done.stdout
    content = json.loads((folder / "proof" / "certificate.json").read_text())
    failed = {check["name"] for check in content["verdict"]["checks"] if not check["passed"]}
    assert failed == {"stress_derivative_error", "leaked_fraction"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("argon.extxyz", "--out", "proof"), "either students or a calculator"),
        (("argon.extxyz", "--calculator", "ase:a:b", "--out", "p", "--limit", "x"), "CHECK=VALUE"),
        (
            ("argon.extxyz", "--calculator", "ase:a:b", "--out", "p", "--time-ps", -1),
            "greater than 0",
        ),
        (("--verify", "missing.json"), "is not a certificate"),
    ],
)
def test_errors_say_what_to_do(folder, words, message):
    done = command("validate", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (folder / "proof").exists()


def test_a_student_with_its_own_integrator(folder):
    student = ROOT / "benchmarks" / "silicon" / "nep"
    done = command(
        *("validate", ROOT / "examples" / "silicon.extxyz", "--student", student),
        *("--time-ps", 0.3, "--out", "proof", "--device", "cpu", "--config", "silicon.yaml"),
    )
    assert "cannot read silicon.yaml" in done.stderr
    (folder / "silicon.yaml").write_text(
        "{equilibration_ps: 0.3, large_atoms: 32, memory_steps: 10}\n"
    )
    done = command(
        *("validate", ROOT / "examples" / "silicon.extxyz", "--student", student),
        *("--time-ps", 0.3, "--out", "proof", "--device", "cpu", "--config", "silicon.yaml"),
    )
    content = json.loads((folder / "proof" / "certificate.json").read_text())
    laws = content["measurements"]["laws"]
    assert laws["force_derivative_error"] < 2e-3
    assert laws["energy_noise_meV"] < 0.02
    assert {"student/config.json", "student/weights.safetensors"} <= set(content["files"])
    assert verify_certificate(folder / "proof" / "certificate.json") == []
