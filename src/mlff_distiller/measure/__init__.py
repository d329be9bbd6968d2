"""What a step of molecular dynamics costs, why, and whether it got worse; and what works here."""

from mlff_distiller.measure.doctor import Check, examine

__all__ = ["Check", "examine"]
