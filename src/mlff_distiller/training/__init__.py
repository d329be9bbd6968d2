"""Training: the loss and the loop."""

from mlff_distiller.training.loss import LossSettings, Spread, loss
from mlff_distiller.training.train import TrainingSettings, train

__all__ = ["LossSettings", "Spread", "TrainingSettings", "loss", "train"]
