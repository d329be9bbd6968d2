"""Memory over a run: what leaks, what fills a cache once, what is clean."""

import gc
import mmap

import numpy as np
import pytest
import torch
from ase.build import bulk
from tests.helpers import ROOT
from tests.unit.validation.faults import Hoarder, Pairs, argon
from tests.unit.validation.short import SHORT, failed

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.md import Ensemble
from mlff_distiller.md.record import ForceField
from mlff_distiller.validation.checks.memory import _heap, memory_growth
from mlff_distiller.validation.validate import validate

COLD = Ensemble(ensemble="nvt", temperature_K=40, time_step_fs=5.0)


HEAP = _heap() is not None
needs_heap = pytest.mark.skipif(not HEAP, reason="the C library does not tell its heap")


def pages(n_bytes: int) -> mmap.mmap:
    """Memory in use that comes from the system: an array may get what was freed before."""
    memory = mmap.mmap(-1, n_bytes)
    memory.write(b"x" * n_bytes)
    return memory


@needs_heap
def test_a_leak_is_seen_and_a_sound_run_is_clean():
    leak = memory_growth(ForceField("it", Hoarder()), argon(), COLD, 1000)["heap"]
    assert leak["grows"]
    assert leak["growth_bytes_per_step"] == pytest.approx(4096, rel=0.2)
    assert leak["step"][0] == 100
    assert len(leak["MB"]) == len(leak["step"]) == 91
    for one in memory_growth(ForceField("it", Pairs()), argon(), COLD, 1000).values():
        assert not one["grows"]


@needs_heap
def test_a_leak_does_not_hide_in_memory_that_was_freed_before():
    scattered = [np.ones(512) for _ in range(4000)]
    kept = scattered[::3]
    del scattered
    found = memory_growth(ForceField("it", Hoarder()), argon(), COLD, 600)
    assert found["heap"]["grows"]
    assert len(kept) == 1334


def test_resident_memory_grows_with_a_large_leak():
    class Greedy(Hoarder):
        def spoil(self, atoms):
            self.kept.append(pages(409_600))

    found = memory_growth(ForceField("it", Greedy()), argon(), COLD, 500)["host"]
    assert found["growth_bytes_per_step"] == pytest.approx(409_600, rel=0.1)


def test_a_cache_that_fills_once_is_no_leak():
    class Caching(Pairs):
        calls = 0

        def spoil(self, atoms):
            self.calls += 1
            if self.calls == 500:
                self.kept = pages(4_000_000)

    found = memory_growth(ForceField("it", Caching()), argon(), COLD, 1000)["host"]
    assert max(found["MB"]) - min(found["MB"]) > 3
    assert not found["grows"]


def test_a_student_on_its_own_integrator_is_clean():
    student = StudentCalculator(ROOT / "benchmarks" / "silicon" / "nep", device="cpu")
    found = memory_growth(ForceField("it", student), bulk("Si", cubic=True), COLD, 1000)
    assert set(found) <= {"host", "heap"}
    assert not any(one["grows"] for one in found.values())


def test_garbage_that_python_frees_later_is_no_leak():
    class Littering(Pairs):
        def spoil(self, atoms):
            circle = [np.ones(512)]
            circle.append(circle)

    gc.disable()  # as if it waited for ever
    try:
        found = memory_growth(ForceField("it", Littering()), argon(), COLD, 600)
    finally:
        gc.enable()
    assert not any(one["grows"] for one in found.values())


@pytest.mark.gpu
def test_memory_of_the_gpu_is_watched():
    student = StudentCalculator(ROOT / "benchmarks" / "silicon" / "nep", device="cuda")
    kept = []

    def hoard(done: int, total: int) -> None:
        kept.append(torch.zeros(50_000, device="cuda"))

    atoms = argon(1)
    atoms.symbols[:] = "Si"
    field = ForceField("it", student)
    assert not memory_growth(field, atoms, COLD, 1000)["gpu"]["grows"]
    leak = memory_growth(field, atoms, COLD, 1000, hoard)["gpu"]
    assert leak["grows"]
    assert leak["growth_bytes_per_step"] == pytest.approx(2e4, rel=0.1)  # 200 kB in 10 steps


@needs_heap
def test_a_force_field_that_hoards_is_rejected():
    report = validate(ForceField("it", Hoarder()), argon(), SHORT)
    assert failed(report) == {"memory_growth_kB_per_step"}
    assert any("memory grows" in reason for reason in report["verdict"]["reasons"])
    assert report["measurements"]["memory"]["heap"]["grows"]
