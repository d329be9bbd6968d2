"""Teachers: slow, accurate force fields, each run in a process of its own.

Importing this imports neither PyTorch nor any teacher's library.
"""

from mlff_distiller.teachers.base import (
    FeNNolTeacherCalculator,
    Labelled,
    OrbTeacherCalculator,
    TeacherCalculator,
    load_teacher,
)
from mlff_distiller.teachers.registry import RegisteredTeacher, registered_teachers
from mlff_distiller.teachers.session import TeacherGaveUp, TeacherIdentity

__all__ = [
    "FeNNolTeacherCalculator",
    "Labelled",
    "OrbTeacherCalculator",
    "RegisteredTeacher",
    "TeacherCalculator",
    "TeacherGaveUp",
    "TeacherIdentity",
    "load_teacher",
    "registered_teachers",
]
