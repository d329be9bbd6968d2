"""Errors a user can act on: what is wrong, what was expected, what was found, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class DistillerError(Exception):
    """Base of every error this package raises on purpose.

    Parameters
    ----------
    problem
        Names the thing that is wrong.
    expected, found, remedy
        Shown on lines of their own when given.
    """

    def __init__(
        self, problem: str, *, expected: object = None, found: object = None, remedy: str = ""
    ) -> None:
        self.problem, self.expected, self.found, self.remedy = problem, expected, found, remedy
        lines = [problem]
        lines += [f"  expected: {expected}"] if expected is not None else []
        lines += [f"  found:    {found}"] if found is not None else []
        lines += [f"  remedy:   {remedy}"] if remedy else []
        super().__init__("\n".join(lines))


class StructureError(DistillerError, ValueError):
    """A structure that no model can evaluate: empty, NaN, singular cell, ..."""


class UnknownElementError(StructureError):
    """A structure holds an element the model was not made for."""


class TeacherError(DistillerError, RuntimeError):
    """A teacher could not be loaded, failed on a structure, or answered nonsense."""


class DatasetError(DistillerError, RuntimeError):
    """A dataset is damaged, locked, of another schema, or not one of ours."""


class DatasetInUseError(DatasetError):
    """Another process writes the dataset."""


class StudentError(DistillerError, RuntimeError):
    """A student's files are missing, damaged or of another schema; or it gave NaN."""


class KernelError(DistillerError, RuntimeError):
    """Compiled kernels cannot be had on this machine."""


class DeviceMemoryError(DistillerError, MemoryError):
    """A system does not fit into a device's memory; the next smaller one may."""


class DynamicsError(DistillerError, RuntimeError):
    """A simulation cannot start or continue, or has blown up."""


class TrainingError(DistillerError, RuntimeError):
    """Training cannot start or continue."""


class ConfigError(DistillerError, ValueError):
    """A setting is unknown, of the wrong type or out of range; or inputs changed on resume."""


def from_pydantic(
    error: ValidationError, problem: str = "invalid settings", *, remedy: str = ""
) -> ConfigError:
    """``error`` in our words: under ``problem``, one line per setting that is wrong."""
    lines = [f"{problem}:"]
    for one in error.errors(include_url=False):
        where = ".".join(map(str, one["loc"]))
        if one["type"] == "unexpected_keyword_argument":
            lines.append(f"{where}: there is no such setting")
        else:
            lines.append(f"{where}: {one['msg']} (found {one['input']!r})")
    return ConfigError("\n    ".join(lines), remedy=remedy)
