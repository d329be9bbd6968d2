"""Records to store, and a dataset that several tests damage in copies of their own."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from mlff_distiller.dataset import DatasetWriter, Record


def make_record(number: int, n_atoms: int = 3, **changes) -> Record:
    rng = np.random.default_rng(number)
    atoms = Atoms(
        rng.integers(1, 119, n_atoms),
        rng.normal(size=(n_atoms, 3)),
        cell=5 * np.eye(3) + rng.normal(size=(3, 3)),
        pbc=True,
    )
    labels = {
        "energy": np.array(rng.normal()),
        "forces": rng.normal(size=(n_atoms, 3)),
        "stress": rng.normal(size=(3, 3)),
    }
    fields = {
        "atoms": atoms,
        "labels": labels,
        "key": hashlib.sha256(str(number).encode()).hexdigest(),
        "group": number % 3,
        "provenance": {"source": "test", "number": number},
    }
    return Record(**(fields | changes))


@pytest.fixture(scope="session")
def record():
    """Function: number, n_atoms=3, any field of Record -> Record."""
    return make_record


@pytest.fixture(scope="session")
def _stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "dataset"
    with DatasetWriter(folder, {"teacher": "none"}) as writer:
        writer.append([make_record(number, n_atoms=number % 4 + 1) for number in range(7)])
        writer.append([make_record(number) for number in range(7, 10)])
    return folder


@pytest.fixture
def stored(_stored, tmp_path) -> Path:
    """A folder of ten records, 0…9, in shards of 7 and 3."""
    shutil.copytree(_stored, tmp_path / "dataset")
    return tmp_path / "dataset"
