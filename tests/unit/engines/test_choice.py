"""Compiled kernels and PyTorch give the same; without the former there is a warning."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import warp as wp
from tests.helpers import random_nep, random_painn, rattled, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.choice import choose_engine
from mlff_distiller.engines.painn import PainnEngine
from mlff_distiller.engines.torch import TorchEngine
from mlff_distiller.errors import DynamicsError, KernelError, StudentError
from mlff_distiller.kernels import compiling
from mlff_distiller.students import PaiNN


@pytest.mark.parametrize(("make", "tolerance"), [(random_nep, 1e-9), (random_painn, 1e-6)])
@pytest.mark.parametrize("box", ["small cell", "molecule", "slab"])
def test_backends_agree(box, make, tolerance):
    atoms = rattled(structures()[box])
    compiled, plain = (
        StudentCalculator(make(), device="cpu", dtype="float64", backend=backend)
        for backend in ("warp", "torch")
    )
    for name in ("energy", "energies", "forces", *(["stress"] if atoms.cell.rank == 3 else [])):
        a, b = (calculator.get_property(name, atoms) for calculator in (compiled, plain))
        assert np.abs(a - b).max() < tolerance


def test_unknown_backend():
    with pytest.raises(StudentError, match=r"unknown backend[\s\S]*auto, warp or torch"):
        StudentCalculator(random_nep(), device="cpu", backend="cuda")


class Derived(PaiNN):
    """A student of somebody else, whose energies kernels of ours know nothing of."""


def derived() -> Derived:
    student = random_painn()
    student.__class__ = Derived
    return student


def test_no_kernels_for_a_student():
    with pytest.raises(StudentError, match=r"no compiled kernels[\s\S]*with kernels[\s\S]*painn"):
        StudentCalculator(derived(), device="cpu", backend="warp")


def test_who_runs_a_painn(monkeypatch):
    assert isinstance(choose_engine(random_painn()), PainnEngine)
    assert isinstance(choose_engine(random_painn(), backend="torch"), TorchEngine)
    assert isinstance(choose_engine(derived()), TorchEngine)
    # Where they were not measured they are there for who asks.
    monkeypatch.setattr(PainnEngine, "measured_on", ())
    assert isinstance(choose_engine(random_painn()), TorchEngine)
    assert isinstance(choose_engine(random_painn(), backend="warp"), PainnEngine)


@pytest.mark.parametrize("settings", [{"backend": "auto"}, {"backend": "torch", "compile": True}])
def test_without_kernels_pytorch_runs_and_says_so(monkeypatch, settings):
    def fail(*args, **kwargs):
        raise RuntimeError(message)

    message = "no compiler here"
    atoms = rattled(structures()["small cell"])
    expected = StudentCalculator(random_nep(), device="cpu", backend="torch").get_forces(atoms)
    monkeypatch.setattr(wp, "load_module", fail)
    calculator = StudentCalculator(random_nep(), device="cpu", **settings)
    with pytest.warns(UserWarning, match=message):
        assert np.array_equal(calculator.get_forces(atoms), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.01)
        calculator.get_forces(atoms)
    demanded = StudentCalculator(random_nep(), device="cpu", backend="warp")
    with pytest.raises(KernelError, match=message):
        demanded.get_forces(atoms)


@pytest.mark.parametrize("settings", [{"backend": "auto"}, {"backend": "torch", "compile": True}])
def test_copies_of_an_engine_start_without_atoms(monkeypatch, settings):
    monkeypatch.setattr("torch.compile", lambda graph, **_: graph)
    calculator = StudentCalculator(random_nep(), device="cpu", dtype="float64", **settings)
    atoms = rattled(structures()["small cell"])
    forces, engine = calculator.get_forces(atoms), calculator._engine
    for other in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert not hasattr(other, "positions")
        assert other.student is not engine.student
        given = atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc
        assert np.array_equal(other.evaluate(*given).forces, forces)
    both = copy.deepcopy(calculator)
    assert both._engine.student is both.student


@pytest.mark.parametrize("settings", [{"backend": "auto"}, {"backend": "torch", "compile": True}])
def test_an_evaluation_that_is_broken_off_leaves_nothing_half_done(monkeypatch, settings):
    monkeypatch.setattr("torch.compile", lambda graph, **_: graph)
    calculator = StudentCalculator(random_nep(), device="cpu", dtype="float64", **settings)
    atoms = rattled(structures()["small cell"])
    denser = atoms.copy()
    denser.set_cell(0.8 * atoms.cell.array, scale_atoms=True)  # needs larger tables
    wanted = calculator.get_forces(denser)

    def interrupted(*_):
        raise KeyboardInterrupt

    calculator = StudentCalculator(random_nep(), device="cpu", dtype="float64", **settings)
    calculator.get_forces(atoms)
    after_search = "_record" if settings["backend"] == "auto" else "_set_edges"
    with monkeypatch.context() as patch:
        patch.setattr(type(calculator._engine), after_search, interrupted)
        with pytest.raises(KeyboardInterrupt):
            calculator.get_forces(denser)
    assert np.abs(calculator.get_forces(denser) - wanted).max() < 1e-9


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


@pytest.mark.parametrize("skin", [0.0, -1.0, 1000.0, float("nan")])
def test_a_skin_that_no_list_pays_for_is_refused(skin):
    with pytest.raises(DynamicsError, match=r"(?s)skin.*at most 10 Å"):
        choose_engine(random_nep(), skin=skin)
