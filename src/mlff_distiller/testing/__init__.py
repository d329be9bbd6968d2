"""Published conformance kit, for force fields and teachers of ours or of a third party.

Each function raises ``AssertionError`` with what was expected and found.
"""

from mlff_distiller.structure import random_rotation
from mlff_distiller.testing.laws import (
    LAWS,
    assert_ase_conventions,
    assert_extensive,
    assert_forces_are_gradients,
    assert_images_are_equal,
    assert_laws,
    assert_order_does_not_matter,
    assert_smooth_at_cutoff,
    assert_stress_is_strain_derivative,
    assert_turns_with_the_system,
)
from mlff_distiller.testing.teacher import TOLERANCES, Tolerance, assert_teacher

__all__ = [
    "LAWS",
    "TOLERANCES",
    "Tolerance",
    "assert_ase_conventions",
    "assert_extensive",
    "assert_forces_are_gradients",
    "assert_images_are_equal",
    "assert_laws",
    "assert_order_does_not_matter",
    "assert_smooth_at_cutoff",
    "assert_stress_is_strain_derivative",
    "assert_teacher",
    "assert_turns_with_the_system",
    "random_rotation",
]
