"""Structures worth a label, grown from a few seeds. Never imports teachers."""

from mlff_distiller.sampling.approach import ApproachSettings, approach
from mlff_distiller.sampling.dynamics import explore, walk
from mlff_distiller.sampling.probes import probes
from mlff_distiller.sampling.rattle import Labeler, RattleSettings, grow
from mlff_distiller.sampling.scans import ScanSettings, scan
from mlff_distiller.sampling.select import descriptors, select
from mlff_distiller.sampling.similar import find_similar, near_copies
from mlff_distiller.sampling.walkers import DynamicsSettings, Walker, walkers

__all__ = [
    "ApproachSettings",
    "DynamicsSettings",
    "Labeler",
    "RattleSettings",
    "ScanSettings",
    "Walker",
    "approach",
    "descriptors",
    "explore",
    "find_similar",
    "grow",
    "near_copies",
    "probes",
    "scan",
    "select",
    "walk",
    "walkers",
]
