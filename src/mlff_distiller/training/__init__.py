"""Training: the loss and the loop."""

from mlff_distiller.training.loss import LossSettings, Spread, loss
from mlff_distiller.training.metrics import batches_of, validate
from mlff_distiller.training.settings import TrainingSettings
from mlff_distiller.training.trackers import Trackers
from mlff_distiller.training.train import train
from mlff_distiller.training.workers import ALONE, Workers, workers_of_torchrun

__all__ = [
    "ALONE",
    "LossSettings",
    "Spread",
    "Trackers",
    "TrainingSettings",
    "Workers",
    "batches_of",
    "loss",
    "train",
    "validate",
    "workers_of_torchrun",
]
