"""Students as PyTorch runs them: padded, compiled or recorded, the results are the same."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from tests.helpers import random_nep, random_painn, rattled, structures

from mlff_distiller.deploy import StudentCalculator
from mlff_distiller.engines.loading import ready_student
from mlff_distiller.engines.torch import TorchEngine
from mlff_distiller.kernels.nep.reference import _harmonic_tables
from mlff_distiller.md import run_md

FRAMES = [rattled(structures()[name]) for name in ("small cell", "molecule", "slab")]
CELLS = np.stack([atoms.cell.array for atoms in FRAMES])
PBC = np.stack([atoms.pbc for atoms in FRAMES])
GPU = pytest.param("cuda", marks=pytest.mark.gpu)

# Tracing takes milliseconds for each of a student's operations, and fusing them longer.
one_layer = partial(random_painn, layers=1)
few_operations = partial(one_layer, max_moment=1)


def evaluated(engine: TorchEngine, positions, n=1):
    engine.positions.assign(positions)
    engine.rebuild(CELLS, PBC)
    for _ in range(n):
        engine.compute()
    return engine.forces.numpy().copy(), engine.totals.numpy().copy()


def of_all(device="cpu", make=random_painn, **options):
    student = ready_student(make(), device, "float64")
    return TorchEngine(student, **options).for_frames(FRAMES)


POSITIONS = np.concatenate([atoms.positions for atoms in FRAMES])


@pytest.mark.parametrize("make", [random_nep, random_painn])
def test_padding_changes_nothing(make):
    plain = evaluated(of_all(make=make), POSITIONS)
    padded = evaluated(of_all(make=make, padded=True), POSITIONS, 4)
    assert np.abs(padded[0] - plain[0]).max() < 1e-12
    assert np.abs(padded[1] - plain[1]).max() < 1e-12


def test_more_pairs_than_there_was_room_for():
    engine = of_all(padded=True)
    evaluated(engine, POSITIONS)
    before, closer = len(engine._edges.i), POSITIONS.copy()
    molecule = slice(len(FRAMES[0]), len(FRAMES[0]) + len(FRAMES[1]))
    engine._n_edges = 256  # as if there had been few
    closer[molecule] *= 0.97
    found = evaluated(engine, closer, 4)
    assert len(engine._edges.i) >= before
    wanted = evaluated(of_all(), closer)
    assert np.abs(found[0] - wanted[0]).max() < 1e-12
    assert np.abs(found[0] - evaluated(of_all(), POSITIONS)[0]).max() > 1e-3


@pytest.mark.parametrize("make", [random_nep, few_operations])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_an_atom_with_more_neighbours_than_any_had(make, device, monkeypatch):
    monkeypatch.setattr("torch.compile", lambda graph, **_: graph)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)

    def clusters(size):  # apart from each other; 96 atoms in all, others alone
        n = 96 // size if size < 36 else 1
        balls = [0.9 * grid[:size] + [30.0 * k, 0, 0] for k in range(n)]
        alone = [[-20.0 * k, 50.0, 0] for k in range(96 - n * size)]
        return np.concatenate([*balls, np.reshape(alone, (-1, 3))])

    atoms = Atoms("O96", clusters(16))
    box = np.zeros((1, 3, 3)), np.zeros((1, 3), dtype=bool)
    found = []
    for options in ({"compile": device == "cpu", "padded": True}, {}):
        here = device if options else "cpu"
        engine = TorchEngine(ready_student(make(), here, "float64"), **options)
        engine.for_frames([atoms])
        for positions in (clusters(16), clusters(36)):
            engine.positions.assign(positions)
            engine.rebuild(*box)
            edges, slots = len(engine._edges.i), engine.neighbors.capacity
            for _ in range(5):
                engine.compute()
            found.append((engine.forces.numpy().copy(), edges, slots))
    assert found[0][1] == found[1][1]
    assert found[0][2] < found[1][2]
    assert np.abs(found[1][0] - found[3][0]).max() < 1e-9 * np.abs(found[3][0]).max()


def test_fewer_pairs_leave_no_old_ones():
    engine = of_all(padded=True)
    evaluated(engine, POSITIONS)
    apart = POSITIONS.copy()
    molecule = slice(len(FRAMES[0]), len(FRAMES[0]) + len(FRAMES[1]))
    apart[molecule] *= 10.0
    found, wanted = evaluated(engine, apart), evaluated(of_all(), apart)
    assert np.abs(found[0] - wanted[0]).max() < 1e-12


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_compiled(device):
    make = few_operations if device == "cpu" else one_layer
    engine = of_all(device, make, compile=True)
    found, wanted = evaluated(engine, POSITIONS, 2), evaluated(of_all(make=make), POSITIONS)
    assert engine.compile  # nothing went wrong that was only warned of
    assert np.abs(found[0] - wanted[0]).max() < 1e-10
    assert np.abs(found[1] - wanted[1]).max() < 1e-10


@pytest.mark.gpu
@pytest.mark.parametrize("make", [random_nep, random_painn])
def test_recorded(make):
    engine = of_all("cuda", make)
    for scale in (1.0, 1.01):  # again: positions are read anew
        moved = evaluated(engine, scale * POSITIONS, 5)
        assert engine._launch.__name__ == "replay"
        wanted = evaluated(of_all(make=make), scale * POSITIONS)
        assert np.abs(moved[0] - wanted[0]).max() < 1e-9
        assert np.abs(moved[1] - wanted[1]).max() < 1e-9


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_as_a_calculator(device, monkeypatch):
    """One calculator, other atoms, boxes and elements."""
    monkeypatch.setattr("torch.compile", lambda graph, **_: graph)  # traced; fusing takes long
    student = few_operations()
    exact = {"dtype": "float64", "backend": "torch"}
    one = StudentCalculator(student, device=device, compile=device == "cpu", **exact)
    plain = StudentCalculator(few_operations(), device="cpu", **exact)
    rng = np.random.default_rng(0)
    for atoms in (FRAMES[0], FRAMES[2], FRAMES[1], FRAMES[0]):
        atoms = atoms.copy()
        for step in range(6):
            atoms.positions += rng.normal(scale=0.03 + 0.2 * (step == 3), size=(len(atoms), 3))
            if step == 4 and atoms.pbc.all():
                atoms.set_cell(1.02 * atoms.cell.array, scale_atoms=True)
            if step == 5:
                atoms.numbers = rng.permutation(atoms.numbers)
            for name in ("energy", "energies", "forces", *["stress"] * int(atoms.cell.rank == 3)):
                a, b = (calculator.get_property(name, atoms) for calculator in (one, plain))
                assert np.abs(a - b).max() < 1e-9, (name, step)


def test_constants_that_a_student_keeps_are_not_compiled(monkeypatch):
    """They are made on the CPU, where a graph for a GPU cannot read them."""
    graphs = []
    monkeypatch.setattr("torch.compile", lambda graph, **_: graphs.append(graph) or graph)
    _harmonic_tables.cache_clear()
    atoms: Atoms = FRAMES[0].copy()
    calculator = StudentCalculator(random_nep(), device="cpu", backend="torch", compile=True)
    calculator.get_forces(atoms)
    (graph,) = graphs
    assert "aten.zeros." not in graph.code


def test_results_are_the_callers(monkeypatch):
    monkeypatch.setattr("torch.compile", lambda graph, **_: graph)
    calculator = StudentCalculator(few_operations(), device="cpu", backend="torch", compile=True)
    atoms: Atoms = FRAMES[0].copy()
    first = calculator.get_forces(atoms)
    kept = first.copy()
    atoms.rattle(0.1)
    calculator.get_forces(atoms)
    assert np.array_equal(first, kept)


def test_where_nothing_compiles_it_says_so_and_runs(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler here")

    wanted = evaluated(of_all(), POSITIONS)
    monkeypatch.setattr("torch.compile", fail)
    with pytest.warns(UserWarning, match="uncompiled, slower: no compiler here"):
        found = evaluated(of_all(compile=True), POSITIONS)
    assert np.abs(found[0] - wanted[0]).max() < 1e-12


def test_long_runs_are_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.compile", lambda graph, **_: compiled.append(graph) or graph)
    monkeypatch.setattr("mlff_distiller.engines.painn.PainnEngine.measured_on", ())
    n = len(FRAMES[0])
    monkeypatch.setattr("mlff_distiller.engines.torch._LONG_ON_CPU", 20 * n)
    settings = {"time_step_fs": 0.02, "device": "cpu", "temperature_K": 50.0}
    short = run_md(FRAMES[0], few_operations(), n_steps=19, **settings)
    assert not compiled
    run_md(FRAMES[0], few_operations(), n_steps=20, compile=False, **settings)
    assert not compiled
    long = run_md(FRAMES[0], few_operations(), n_steps=20, **settings)
    assert len(compiled) == 1
    assert long.n_steps == short.n_steps + 1
    assert np.abs(long.atoms[0].positions - short.atoms[0].positions).max() < 0.02


def test_lack_of_memory_names_the_atoms(monkeypatch):
    from mlff_distiller.errors import DeviceMemoryError

    engine = of_all()
    evaluated(engine, POSITIONS)

    def fail(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to")

    engine._launch = fail
    with pytest.raises(DeviceMemoryError, match="atoms do not fit into the memory of cpu"):
        engine.compute()


FORKED = """
import multiprocessing, torch
from ase.build import bulk
from tests.helpers import random_painn
from mlff_distiller import StudentCalculator

torch.set_num_threads(2)
calculator = StudentCalculator(random_painn(["Si"], layers=1, max_moment=1), device="cpu")

def energy(n):
    return calculator.get_potential_energy(bulk("Si", cubic=True) * n)

before = [energy(n) for n in (2, 3)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    after = pool.map_async(energy, [2, 3]).get(timeout=60)
assert max(abs(a - b) for a, b in zip(before, after)) < 1e-3, (before, after)
"""


def test_a_forked_pool_answers_as_its_parent_does():
    """PyTorch's own threads do not survive a fork: a caller that waits for them waits for ever."""
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", FORKED], env=environment, check=True, timeout=120)
