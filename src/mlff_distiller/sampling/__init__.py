"""Sampling: structures worth labelling."""

from mlff_distiller.sampling.rattle import RattleSettings, grow

__all__ = ["RattleSettings", "grow"]
