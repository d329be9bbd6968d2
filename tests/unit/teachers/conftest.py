"""Teachers shared by tests, and a folder with the misbehaving calculators of `bad_teachers.py`."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlff_distiller.teachers import TeacherCalculator, load_teacher

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def need() -> Callable[[str], None]:
    """``need(package)`` skips without it."""

    def check(package: str) -> None:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")

    return check


@pytest.fixture(scope="session")
def teacher(need: Callable[[str], None]) -> Iterator[Callable[[str, str], TeacherCalculator]]:
    """``teacher(spec, package)``: one process a SPEC for all tests; skips without the package."""
    started: dict[str, TeacherCalculator] = {}

    def start(spec: str, package: str = "ase") -> TeacherCalculator:
        need(package)
        if spec not in started:
            started[spec] = load_teacher(spec, device="cpu")
        return started[spec]

    yield start
    for calculator in started.values():
        calculator.close()


@pytest.fixture
def bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., TeacherCalculator]]:
    """``bad(factory)``: a teacher of `bad_teachers.py`, found in the current folder."""
    shutil.copy(HERE / "bad_teachers.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    started = []

    def start(factory: str = "Moody", **options: object) -> TeacherCalculator:
        started.append(load_teacher(f"ase:bad_teachers:{factory}", **options))
        return started[-1]

    yield start
    for calculator in started:
        calculator.close()
