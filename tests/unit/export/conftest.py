"""Students for engines: small, but with forces that dynamics can follow."""

from pathlib import Path

import pytest
import torch
from tests.helpers import random_nep, random_painn

from mlff_distiller.students import save_student

MAKERS = {"nep": random_nep, "painn": random_painn}


def save(folder: Path, name: str = "nep", elements: tuple[str, ...] = ("H", "O")) -> Path:
    """A student of ``elements`` whose forces at rest are small; returns its folder."""
    student = MAKERS[name](elements)
    with torch.no_grad():
        (student.w1 if name == "nep" else student.scale).mul_(0.1)
    save_student(student, folder, about={}, card="", frames=())
    return folder


# A check writes its table into the student's folder: each test has a folder of its own.


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("export") / "student")


@pytest.fixture
def silicon(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("export") / "silicon", elements=("Si",))
