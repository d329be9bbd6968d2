"""A labelling job: each structure labelled once, by one worker or many, killed and resumed.

What is labelled together, and appended together, is cut from the list of structures (of a shard,
its share of it) and the size of a batch alone: so the labels do not depend on who made them, or on
how often the job was killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlff_distiller.dataset import Dataset, DatasetWriter
from mlff_distiller.dataset.manifest import (
    MANIFEST,
    plain_metadata,
    read_manifest,
    refuse_other_metadata,
)
from mlff_distiller.durable import EventLog, read_json, write_json
from mlff_distiller.errors import (
    ConfigError,
    DatasetError,
    DatasetInUseError,
    DistillerError,
    TeacherError,
)
from mlff_distiller.labeling.labeler import LabelStore, metadata_of_labels, open_labels
from mlff_distiller.labeling.structures import Structure, Structures, batches, share
from mlff_distiller.labeling.workers import (
    Cluster,
    Request,
    answer,
    cluster_workers,
    identify,
    local_workers,
)
from mlff_distiller.teachers import Labelled, TeacherIdentity

PARTS = "parts"
_OUTCOME = "outcome.json"
_COUNTS = {
    "n_structures": 0, "n_labelled": 0, "n_failed": 0, "teacher_seconds": None, "collected": True,
}  # fmt: skip
_AHEAD = 2  # batches asked for, by worker: one in work and one waiting
_TERMINATED_WITHIN_S = 5.0
"""What is in work then is given up: batch schedulers kill some 30 s after their SIGTERM."""
_COLLECTED_AT_ONCE = 1024

OnProgress = Callable[[int, int, str], None]
"""Called with structures done, structures in all, and a few words of news."""


@dataclass(frozen=True)
class Outcome:
    """What a job, or its share of one, came to."""

    n_structures: int
    n_labelled: int
    n_failed: int
    teacher_seconds: float
    """Made by this call; time of the teacher alone, summed over workers."""
    collected: bool = True
    """Whether the dataset is whole: of a job in shards, all are done."""


def label(
    structures: Structures,
    request: Request,
    out: Path,
    *,
    shard: tuple[int, int] | None = None,
    workers: int = 1,
    cluster: Cluster | None = None,
    retry_failed: bool = False,
    on_progress: OnProgress = lambda done, total, news: None,
) -> Outcome:
    """Label ``structures`` in the dataset ``out``; the same call continues an interrupted one.

    ``shard`` (i, n) labels every n-th structure from the i-th in ``out/parts``; who finds all parts
    done collects them in ``out``. With a ``cluster`` its jobs are the workers.

    Raises
    ------
    DatasetError
        ``out`` holds labels of other structures or by another teacher (the difference is shown),
        is written by another process, or the disk is full.
    ConfigError
        The job was begun with another number of shards.
    TeacherError
        The teacher cannot be started.
    """
    if (out / _OUTCOME).exists():  # all parts are in it: one who collected them may have died
        shutil.rmtree(out / PARTS, ignore_errors=True)
        shard = None
    _refuse_other_shards(out, shard)
    folder = out if shard is None else out / PARTS / f"{shard[0]:05d}-of-{shard[1]:05d}"
    inputs = {
        "inputs": {"n_structures": len(structures.all), "structures_sha256": structures.digest}
    }
    with _workers(workers, cluster, request, out) as (pool, n_pool):
        on_progress(0, len(structures.all), "waiting for a worker")
        teacher, most_atoms = pool.submit(identify, request).result()
        if shard is not None:
            _refuse_other_parts(out, teacher, inputs)
        with open_labels(folder, teacher, inputs) as writer:
            if retry_failed:
                EventLog(folder / "quarantine.jsonl").path.unlink(missing_ok=True)
            store = LabelStore(writer, teacher)
            todo = structures.all if shard is None else share(structures.all, shard)
            own = batches(todo, most_atoms)
            seconds = _run(own, store, pool, n_pool, request, on_progress)
            outcome = Outcome(len(todo), len(todo) - len(store.failed), len(store.failed), seconds)
            write_json(folder / _OUTCOME, asdict(outcome))
    return outcome if shard is None else _collect(out, shard[1], teacher, inputs, outcome)


@contextmanager
def _workers(
    workers: int, cluster: Cluster | None, request: Request, out: Path
) -> Iterator[tuple[Executor, int]]:
    if cluster is None:
        with local_workers(workers, request.device) as pool:
            yield pool, workers
    else:
        with cluster_workers(cluster, out / "cluster") as pool:
            yield pool, cluster.workers


def _run(
    todo: Sequence[list[Structure]],
    store: LabelStore,
    pool: Executor,
    n_workers: int,
    request: Request,
    on_progress: OnProgress,
) -> float:
    """Ask for what is unknown, keep what comes; on an interrupt, first what is in work.

    SIGTERM waits for that a few seconds, ctrl-C for as long as it takes, or until the next.
    """
    total = sum(map(len, todo))
    done, seconds = 0, 0.0
    waiting: dict[Future[list[Labelled]], tuple[list[str], list[Structure]]] = {}

    def keep(finished: Future[list[Labelled]]) -> None:
        nonlocal done, seconds
        keys, asked = waiting.pop(finished)
        origins = [structure.origin for structure in asked]
        try:
            answers = store.add_answers(keys, finished.result, origins)
        except DistillerError:
            raise
        except Exception as error:
            raise TeacherError(
                f"the worker that labelled {asked[0].name} failed repeatedly",
                found=f"{type(error).__name__}: {error}",
                remedy="see the workers' logs; the same command continues",
            ) from error
        done += len(asked)
        seconds += sum(own.seconds for own in answers)
        on_progress(done, total, store.news)

    on_progress(0, total, "")
    try:
        for batch in todo:
            keys = store.keys([structure.atoms for structure in batch])
            new = store.unknown(keys)
            done += len(batch) - len(new)
            if not new:
                continue
            asked = [batch[k] for k in new]
            future = pool.submit(answer, request, [structure.atoms for structure in asked])
            waiting[future] = [keys[k] for k in new], asked
            while len(waiting) >= _AHEAD * n_workers:
                for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
                    keep(finished)
        while waiting:
            for finished in wait(waiting, return_when=FIRST_COMPLETED).done:
                keep(finished)
    except (KeyboardInterrupt, SystemExit) as end:
        patience = None if isinstance(end, KeyboardInterrupt) else _TERMINATED_WITHIN_S
        words = "finishing" if patience else "finishing; ctrl-C again ends at once"
        _keep_what_is_in_work(waiting, keep, patience, lambda: on_progress(done, total, words))
        raise
    on_progress(total, total, store.news)
    return seconds


def _keep_what_is_in_work(
    waiting: Mapping[Future[list[Labelled]], Any],
    keep: Callable[[Future[list[Labelled]]], None],
    patience: float | None,
    on_wait: Callable[[], None],
) -> None:
    running = [future for future in list(waiting) if not future.cancel()]
    on_wait()
    for future in wait(running, patience).done:
        keep(future)


def _refuse_other_shards(out: Path, shard: tuple[int, int] | None) -> None:
    begun = {path.name.partition("-of-")[2] for path in out.glob(f"{PARTS}/*-of-*")}
    ours = set() if shard is None else {f"{shard[1]:05d}"}
    if begun - ours:
        raise ConfigError(
            f"{out} was begun in shards",
            expected=f"--shard i/{int(min(begun))}",
            found="no --shard" if shard is None else f"--shard {shard[0]}/{shard[1]}",
            remedy="give the same number of shards, or another --out",
        )
    if shard is not None and (out / "manifest.json").exists() and not begun:
        raise ConfigError(
            f"{out} was begun without shards",
            found=f"--shard {shard[0]}/{shard[1]}",
            remedy="leave --shard out, or give another --out",
        )


def _refuse_other_parts(out: Path, teacher: TeacherIdentity, inputs: Mapping[str, Any]) -> None:
    """`DatasetError` if any part was begun by another teacher, or from other structures."""
    ours = plain_metadata(metadata_of_labels(teacher, inputs))
    for manifest in sorted(out.glob(f"{PARTS}/*-of-*/{MANIFEST}")):
        refuse_other_metadata(manifest.parent, ours, read_manifest(manifest.parent).metadata)


def _collect(
    out: Path, n_shards: int, teacher: TeacherIdentity, inputs: Mapping[str, Any], own: Outcome
) -> Outcome:
    """Copy all parts into ``out``, if all are done and no one else copies; then remove them."""
    pending = Outcome(**{**asdict(own), "collected": False})
    if len(_outcomes(out)) < n_shards:
        return pending
    try:
        writer = open_labels(out, teacher, inputs)
    except DatasetInUseError:
        return pending
    with writer:
        finished = _outcomes(out)
        if len(finished) < n_shards:  # another was quicker, and has removed them
            return pending
        _refuse_other_parts(out, teacher, inputs)
        failures = EventLog(out / "quarantine.jsonl")
        known = {row["key"] for row in failures.rows("label_failed", "key")}
        for part in finished:
            _copy(Dataset(part), writer)
            for row in EventLog(part / "quarantine.jsonl").rows("label_failed", "key"):
                if row["key"] not in known:
                    failures.write(**{name: row[name] for name in row if name != "time"})
        rows = finished.values()
        whole = Outcome(
            sum(row.n_structures for row in rows),
            sum(row.n_labelled for row in rows),
            sum(row.n_failed for row in rows),
            sum(row.teacher_seconds for row in rows),
        )
        complete = whole.n_structures == inputs["inputs"]["n_structures"]
        if len(writer) != whole.n_labelled or not complete:  # never remove what has not arrived
            raise DatasetError(
                f"{out}: labels of the parts are missing in what was collected",
                expected=f"{whole.n_labelled} of {inputs['inputs']['n_structures']} structures",
                found=f"{len(writer)} of {whole.n_structures}",
                remedy="keep the folder, and report this",
            )
        write_json(out / _OUTCOME, asdict(whole))
        shutil.rmtree(out / PARTS)
    return whole


def _outcomes(out: Path) -> dict[Path, Outcome]:
    """Outcome of each finished part."""
    paths = sorted(out.glob(f"{PARTS}/*-of-*/{_OUTCOME}"))
    remedy = "remove it, and label that part again: nothing is asked for twice"
    return {path.parent: Outcome(**read_json(path, _COUNTS, remedy=remedy)) for path in paths}


def _copy(part: Dataset, writer: DatasetWriter) -> None:
    for start in range(0, len(part), _COLLECTED_AT_ONCE):
        wanted = range(start, min(start + _COLLECTED_AT_ONCE, len(part)))
        new = [record for record in part.records(wanted) if record.key not in writer]
        writer.append(new)
