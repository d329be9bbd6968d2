"""The trials of a search in Optuna's journal: killed at any time, they come out the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlff_distiller.errors import ConfigError
from mlff_distiller.reports.front import non_dominated

if TYPE_CHECKING:
    import optuna


def import_optuna() -> Any:
    """Only the search needs it; ``ConfigError`` with the remedy where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "the search needs Optuna, which cannot be imported",
            found=error,
            remedy="pip install optuna",
        ) from error
    return optuna


@contextmanager
def open_study(out: Path) -> Iterator[optuna.Study]:
    """The study in ``out``, whose lock the caller holds; trials that were killed are let go."""
    optuna = import_optuna()
    journal = out / "trials.jsonl"
    # The caller holds the lock: what is left here, half a line or a lock, is of a killed process.
    for left in out.glob(f"{journal.name}.*"):
        left.unlink()
    if journal.exists():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with journal.open("rb+") as stream:
                stream.truncate(whole)
    loudness = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name="tune",
            directions=["minimize", "minimize"],
            load_if_exists=True,
        )
        for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        yield study
    finally:
        optuna.logging.set_verbosity(loudness)


def ask(
    study: optuna.Study, number: int, presets: Sequence[Mapping[str, Any]], seed: int, trials: int
) -> optuna.Trial:
    """The ``number``-th trial: drawn from (seed, number) and the trials before, killed or not.

    So one that was interrupted comes out the same, and its checkpoint fits.
    """
    optuna = import_optuna()
    waiting = study.get_trials(states=(optuna.trial.TrialState.WAITING,))
    if number < len(presets) and not waiting:
        study.enqueue_trial(dict(presets[number]))
    study.sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]),
        n_startup_trials=min(10, max(len(presets) + 1, trials // 3)),
    )
    return study.ask()


def ended_trials(study: optuna.Study) -> list[dict[str, Any]]:
    """The trials that ended by themselves, in order, and which are on the front."""
    optuna = import_optuna()
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    rows = [trial.user_attrs["row"] for trial in study.get_trials(states=ended)]
    complete = [row for row in rows if row["status"] == "complete"]
    points = np.array([[row["forces_mae_meV_per_A"], row["ms_per_step"]] for row in complete])
    front = iter(non_dominated(points.reshape(-1, 2)).tolist())
    return [
        {"number": k, **row, "on_front": row["status"] == "complete" and next(front)}
        for k, row in enumerate(rows)
    ]
