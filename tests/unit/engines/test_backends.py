"""Compiled kernels and PyTorch give the same; without the former there is a warning."""

import sys
import warnings

import numpy as np
import pytest
import warp as wp
from tests.helpers import random_nep, rattled, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.errors import KernelError, StudentError
from mlff_distiller.kernels import compiling


@pytest.mark.parametrize("box", ["small cell", "molecule", "slab"])
def test_backends_agree(box):
    atoms = rattled(structures()[box])
    compiled, plain = (
        StudentCalculator(random_nep(), device="cpu", dtype="float64", backend=backend)
        for backend in ("warp", "torch")
    )
    for name in ("energy", "energies", "forces", *(["stress"] if atoms.cell.rank == 3 else [])):
        a, b = (calculator.get_property(name, atoms) for calculator in (compiled, plain))
        assert np.abs(a - b).max() < 1e-9


def test_unknown_backend():
    with pytest.raises(StudentError, match=r"unknown backend[\s\S]*auto, warp or torch"):
        StudentCalculator(random_nep(), device="cpu", backend="cuda")


def break_loading(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(wp, "load_module", fail)


def hide_warp(monkeypatch):
    monkeypatch.delitem(sys.modules, "mlff_distiller.engines.nep", raising=False)
    monkeypatch.setitem(sys.modules, "warp", None)
    for module in ("compiling", "neighbors", "neighbors.verlet", "nep.warp"):
        monkeypatch.delitem(sys.modules, f"mlff_distiller.kernels.{module}", raising=False)


@pytest.mark.parametrize(
    ("obstacle", "message"),
    [(break_loading, "no compiler here"), (hide_warp, "cannot be imported")],
)
def test_without_kernels_pytorch_runs_and_says_so(monkeypatch, obstacle, message):
    atoms = rattled(structures()["small cell"])
    expected = StudentCalculator(random_nep(), device="cpu", backend="torch").get_forces(atoms)
    obstacle(monkeypatch)
    calculator = StudentCalculator(random_nep(), device="cpu")
    with pytest.warns(UserWarning, match=message):
        assert np.array_equal(calculator.get_forces(atoms), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        calculator.get_forces(atoms)
    demanded = StudentCalculator(random_nep(), device="cpu", backend="warp")
    with pytest.raises(KernelError, match=message):
        demanded.get_forces(atoms)


def test_warp_stays_as_the_user_has_it(monkeypatch):
    names = ("log_level", "kernel_cache_dir", "enable_backward", "cpu_compiler_flags")
    wp.init()
    before = [getattr(wp.config, name) for name in names]
    calculator = StudentCalculator(random_nep(), device="cpu", backend="warp")
    calculator.get_forces(structures()["molecule"])
    assert before == [getattr(wp.config, name) for name in names]


def test_kernels_are_kept_where_nobody_else_can_write(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compiling.cache_folder.__wrapped__()
    assert folder == tmp_path / "mlff-distiller" / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("spoil", ["writable", "link", "file"])
def test_a_cache_that_others_could_have_written_is_not_used(tmp_path, monkeypatch, spoil):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "mlff-distiller" / "kernels"
    folder.parent.mkdir()
    if spoil == "writable":
        folder.mkdir()
        folder.chmod(0o777)
    elif spoil == "link":
        folder.symlink_to(tmp_path, target_is_directory=True)
    else:
        folder.touch()
    elsewhere = compiling.cache_folder.__wrapped__()
    assert elsewhere.parent != folder.parent
    assert elsewhere.stat().st_mode & 0o777 == 0o700
