"""Sampling: structures worth labelling."""

from mlff_distiller.sampling.rattle import RattleSettings, grow
from mlff_distiller.sampling.seeds import enlarge

__all__ = ["RattleSettings", "enlarge", "grow"]
