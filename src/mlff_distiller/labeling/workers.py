"""Where labels are made: threads with a teacher's process each, or a cluster's jobs.

Both are executors as ``concurrent.futures`` has them; what they run is ``identify`` and ``answer``.
A teacher already has a process of its own, so local workers need no further engine: a thread waits
for each. On a cluster dask.distributed keeps workers in the scheduler's jobs and gives what a lost
one was at to another; its messages are pickles, hence between our own processes and under TLS only.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from mlff_distiller.errors import ConfigError
from mlff_distiller.teachers import Labelled, TeacherCalculator, TeacherIdentity, load_teacher

_SCHEDULERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "htcondor": "HTCondorCluster",
}
_LOST_BEFORE_GIVING_UP = 5
"""Workers that died on one batch; a fault of the batch is caught by the teacher's process."""


@dataclass(frozen=True)
class Request:
    """Which teacher is to answer, and how."""

    spec: str | BaseCalculator
    """A calculator answers one worker, in this process."""
    device: str = "auto"
    python: str | None = None
    allow_download: bool = False
    batch_size: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True)
class Cluster:
    """A cluster's jobs: one worker each, submitted by dask-jobqueue with ``options``."""

    scheduler: str
    workers: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = ["local", *_SCHEDULERS]
        if self.scheduler not in known:
            raise ConfigError(
                "there is no such scheduler", expected=", ".join(known), found=self.scheduler
            )
        if not isinstance(self.workers, int) or self.workers < 1:
            raise ConfigError("a cluster needs workers", expected=">= 1", found=self.workers)


_own = threading.local()


def _teacher(request: Request) -> TeacherCalculator:
    """The teacher of the calling thread, started when it is first asked for."""
    if getattr(_own, "request", None) != request:
        device = getattr(_own, "device", request.device)
        _own.teacher = load_teacher(
            request.spec,
            device=device,
            python=request.python,
            allow_download=request.allow_download,
            timeout_s=request.timeout_s,
            threads=getattr(_own, "threads", None),
        )
        _own.request = request
        getattr(_own, "started", []).append(_own.teacher)
    teacher: TeacherCalculator = _own.teacher
    return teacher


def identify(request: Request) -> tuple[TeacherIdentity, int]:
    """Who will answer, and how many atoms it takes in one pass; 0 if it knows no batches."""
    teacher = _teacher(request)
    return teacher.identity, teacher.batch_atoms(request.batch_size)


def answer(request: Request, frames: Sequence[Atoms]) -> list[Labelled]:
    """Labels of ``frames``, in one pass of the teacher where it can."""
    return _teacher(request).label(frames, batch_size=request.batch_size)


@contextmanager
def local_workers(n_workers: int, device: str) -> Iterator[Executor]:
    """Threads of this process; ``cuda`` gives each a device, in turn.

    Several teachers share the cores, unless OMP_NUM_THREADS says how many each takes. Left by an
    exception, it ends the teachers at once.
    """
    started: list[TeacherCalculator] = []
    devices = itertools.cycle(_devices(device))
    lock = threading.Lock()
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // n_workers) if n_workers > 1 else None

    def settle() -> None:
        with lock:
            _own.device, _own.threads, _own.started = next(devices), threads, started

    pool = ThreadPoolExecutor(n_workers, "label", settle)
    try:
        yield pool
    except BaseException:
        for teacher in started:
            teacher.abort()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _devices(device: str) -> list[str]:
    if device not in ("auto", "cuda"):
        return [device]
    import torch

    count = torch.cuda.device_count()
    return [f"cuda:{k}" for k in range(count)] if count > 1 else [device]


@contextmanager
def cluster_workers(cluster: Cluster, folder: Path) -> Iterator[Executor]:
    """Workers in jobs of their own; their certificates and logs are in ``folder``.

    ``ConfigError`` if an option is unknown or the packages are missing.
    """
    try:
        import dask
        from distributed import Client, LocalCluster, Security
    except ImportError as error:
        raise ConfigError(
            "a cluster needs dask",
            found=error,
            remedy="pip install cryptography dask-jobqueue distributed",
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.absolute()  # jobs start elsewhere
    security = Security.temporary()
    common: dict[str, Any] = {"security": security, "protocol": "tls://"}
    quiet = {
        "distributed.scheduler.allowed-failures": _LOST_BEFORE_GIVING_UP,
        "distributed.worker.daemon": False,  # a teacher is a child of its worker
        "distributed.admin.low-level-log-length": 0,
    }
    with dask.config.set(quiet):
        if cluster.scheduler == "local":
            jobs = LocalCluster(
                n_workers=cluster.workers,
                threads_per_worker=1,
                dashboard_address=None,
                **common,
                **cluster.options,
            )
        else:
            jobs = _jobs(cluster, folder, common)
        try:
            with jobs, Client(jobs, security=security) as client:
                yield client.get_executor(retries=1, pure=False)
        finally:
            jobs.close()


def _jobs(cluster: Cluster, folder: Path, common: Mapping[str, Any]) -> Any:
    """Workers under a batch scheduler, which is asked for more when their time is over."""
    import dask_jobqueue

    usual: dict[str, Any] = {"cores": 1, "processes": 1, "nanny": False}
    usual |= {"shared_temp_directory": str(folder), "log_directory": str(folder)}
    try:
        jobs = getattr(dask_jobqueue, _SCHEDULERS[cluster.scheduler])(
            **{**usual, **common, **cluster.options}
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the cluster's options are not {cluster.scheduler}'s",
            expected=f"those of dask_jobqueue.{_SCHEDULERS[cluster.scheduler]}",
            found=error,
        ) from error
    jobs.adapt(minimum=cluster.workers, maximum=cluster.workers)
    return jobs
