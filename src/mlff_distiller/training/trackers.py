"""Where the metrics of a training go besides its log: TensorBoard, and by choice W&B or MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mlff_distiller.errors import TrainingError

Track = Callable[[Mapping[str, float], int], None]
"""Called with metrics and the number of updates done."""

_NO_METRICS = ("updates", "seconds")


class Trackers:
    """Any of ``tensorboard``, ``wandb`` and ``mlflow``, writing below ``folder``.

    W&B and MLflow follow their own settings (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``); MLflow's
    default here is a file below ``folder``. A tracker that is not installed is an error, but for
    TensorBoard, which is then left out.
    """

    def __init__(self, names: Sequence[str], folder: Path, about: Mapping[str, Any]) -> None:
        self._ends: list[Callable[[], Any]] = []
        self._tracks: list[Track] = []
        for name in names:
            getattr(self, f"_{name}")(folder, about)

    def __call__(self, row: Mapping[str, float]) -> None:
        """Send what ``row`` says."""
        metrics = {name: value for name, value in row.items() if name not in _NO_METRICS}
        for track in self._tracks:
            track(metrics, int(row["updates"]))

    def close(self) -> None:
        for end in self._ends:
            end()

    def _tensorboard(self, folder: Path, about: Mapping[str, Any]) -> None:
        try:
            module = import_module("torch.utils.tensorboard")
        except ImportError:
            return
        writer = module.SummaryWriter(str(folder / "tensorboard"))

        def track(metrics: Mapping[str, float], updates: int) -> None:
            for name, value in metrics.items():
                group, _, rest = name.partition("_")
                known = group in ("validation", "md")
                writer.add_scalar(f"{group}/{rest}" if known else name, value, updates)
            writer.flush()

        self._add(track, writer.close)

    def _wandb(self, folder: Path, about: Mapping[str, Any]) -> None:
        wandb = _imported("wandb")
        run = wandb.init(
            project="mlff-distiller", name=folder.name, dir=str(folder), config=dict(about)
        )
        self._add(lambda metrics, updates: run.log(dict(metrics), step=updates), run.finish)

    def _mlflow(self, folder: Path, about: Mapping[str, Any]) -> None:
        mlflow = _imported("mlflow")
        if not mlflow.is_tracking_uri_set():
            mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
        mlflow.set_experiment("mlff-distiller")
        mlflow.start_run(run_name=folder.name)
        self._add(
            lambda metrics, updates: mlflow.log_metrics(dict(metrics), step=updates), mlflow.end_run
        )

    def _add(self, track: Track, end: Callable[[], Any]) -> None:
        self._tracks.append(track)
        self._ends.append(end)


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise TrainingError(
            f"training.trackers names {name}, which is not installed",
            remedy=f"pip install {name}, or leave it out",
        ) from error
