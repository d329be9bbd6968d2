"""Fixtures and hooks of all tests; what they import stands in `helpers.py`."""

import multiprocessing
import os
import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch loads; see cli.main. Workers side by side, and what they start, have a core each.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from tests.helpers import ROOT, begin

# A busy machine is slow, and a check of a pull request fails for what the pull request does.
settings.register_profile("tests", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tests")

# For the same reason a run without a seed draws the same one at each check: one for all that
# modules make when they are imported, and others in each test.
CHECK = "CI" in os.environ
if CHECK:
    secrets.randbits = lambda k: 1


@pytest.fixture(autouse=True)
def drawn_seeds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if CHECK:
        monkeypatch.setattr(secrets, "randbits", random.Random(request.node.nodeid).getrandbits)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Example data beside the checkout; tests that need them skip without."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no example data beside the checkout")
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., multiprocessing.Process]]:
    """``start(function, *arguments)`` in a process of its own, here, within milliseconds.

    It forks from one that has imported torch and the commands and has done nothing else, so that
    many can be started, and killed at work rather than while they import. None outlives its test.
    """
    context = multiprocessing.get_context("forkserver")
    started = []
    optimizers = "torch._dynamo"  # each makes torch import it, for seconds
    context.set_forkserver_preload(
        ["mlff_distiller.cli.main", "mlff_distiller.workflows.distill", optimizers]
    )

    def start(function: Callable, *arguments: Any) -> multiprocessing.Process:
        process = context.Process(target=begin, args=(function, *arguments), daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def pytest_collection_modifyitems(items):
    # Files that take long come first, so that workers side by side end together.
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
