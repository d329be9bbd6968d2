"""The right student for the speed you need: ``mlff-distiller train --tune``, ``--target-fidelity``.

``tune`` searches sizes, cutoffs and settings of the training for the front of accuracy against
speed; ``fastest`` goes through the presets, the fastest first, until one is accurate enough.
"""

from mlff_distiller.workflows.tune.front import tune
from mlff_distiller.workflows.tune.presets import fastest
from mlff_distiller.workflows.tune.trial import TuneSettings

__all__ = ["TuneSettings", "fastest", "tune"]
