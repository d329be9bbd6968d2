"""Training: the loss and the loop."""

from mlff_distiller.training.loss import LossSettings, Spread, loss
from mlff_distiller.training.metrics import Samples, validate
from mlff_distiller.training.settings import TrainingSettings
from mlff_distiller.training.trackers import Trackers
from mlff_distiller.training.train import train
from mlff_distiller.training.workers import ALONE, Workers, workers_of_torchrun

__all__ = [
    "ALONE",
    "LossSettings",
    "Samples",
    "Spread",
    "Trackers",
    "TrainingSettings",
    "Workers",
    "loss",
    "train",
    "validate",
    "workers_of_torchrun",
]
