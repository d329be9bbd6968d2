"""A teacher's labels for structures that are there, checked: ``mlff-distiller label``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ase.calculators.calculator import BaseCalculator

from mlff_distiller import labeling
from mlff_distiller.errors import ConfigError
from mlff_distiller.labeling import Cluster, FilesOrAtoms, Finding, Outcome, Request
from mlff_distiller.workflows.train import OnProgress


@dataclass(frozen=True)
class Labels(Outcome):
    """What a labelling job came to."""

    n_repeated: int = 0
    """Exact repetitions among the structures, which were left out."""
    findings: list[Finding] = field(default_factory=list)
    """What is suspicious in the dataset, once it is whole."""


def label(
    structures: FilesOrAtoms,
    teacher: str | BaseCalculator,
    out: str | Path,
    *,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
    cluster: Cluster | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    teacher_python: str | None = None,
    allow_download: bool = False,
    teacher_timeout_s: float | None = None,
    retry_failed: bool = False,
    on_progress: OnProgress = lambda stage, done, total, news: None,
) -> Labels:
    """Label ``structures``, each once, in the dataset ``out``; the same call continues it.

    Suspicious labels are named in ``out/findings.json``, failures in ``out/quarantine.jsonl``.

    Parameters
    ----------
    structures
        Files that ASE reads (every frame in them), datasets, or ``Atoms``; or one of these.
    teacher
        A registered name, ``FAMILY:PATH``, ``ase:package.module:factory``, or an ASE calculator,
        which labels alone: one worker.
    shard
        (i, n): label every n-th structure from the i-th on, i from 1. The one that finds
        all parts done collects them.
    workers
        Teachers side by side, which share the CPU's cores.
    cluster
        Its jobs are the workers.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; with ``cuda`` workers take the GPUs in turn.
    batch_size
        Most atoms in one pass of the teacher.
    retry_failed
        Ask again for what failed before.

    Raises
    ------
    DatasetError
        ``out`` holds labels of other structures or by another teacher (the difference is shown),
        is written by another process, or the disk is full.
    ConfigError
        The job was begun with another number of shards, or a calculator is to label on many
        workers.
    TeacherError
        The teacher cannot be started.
    """
    out = Path(out)
    if isinstance(teacher, BaseCalculator) and (workers > 1 or cluster is not None):
        raise ConfigError(
            "a calculator object cannot label on several workers",
            expected="workers=1 without a cluster, or a SPEC that each worker starts for itself",
            found=type(teacher).__name__,
            remedy="write ase:package.module:factory",
        )
    request = Request(
        teacher, device, teacher_python, allow_download, batch_size, teacher_timeout_s
    )
    found = labeling.read_structures(structures)
    outcome = labeling.label(
        found,
        request,
        out,
        shard=shard,
        workers=workers,
        cluster=cluster,
        retry_failed=retry_failed,
        on_progress=lambda done, total, news: on_progress("label", done, total, news),
    )
    findings = labeling.write_findings(out) if outcome.collected else []
    return Labels(**asdict(outcome), n_repeated=found.n_repeated, findings=findings)
