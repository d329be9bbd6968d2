"""Errors a user can act on: what is wrong, what was expected, what was found, what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
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

    exit_code: ClassVar[int] = 1
    """What a command ends with."""

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


class UntrustedError(DynamicsError):
    """A simulation met what its student does not know, by the student's own estimate."""

    exit_code: ClassVar[int] = 3
    step: int = 0
    """Where it did."""
    met: Sequence[Atoms] = ()
    """The systems concerned, at that step."""
    before: Sequence[Atoms] = ()
    """The same at the last look before."""


class ExportError(DistillerError, RuntimeError):
    """Another engine cannot be built, or does not run what was exported."""


class TrainingError(DistillerError, RuntimeError):
    """Training cannot start or continue."""


class ConfigError(DistillerError, ValueError):
    """A setting is unknown, of the wrong type or out of range; or inputs changed on resume."""


NO_SUCH_SETTING = "there is no such setting"
_SAID = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "dataclass_type": "is a section; name what is in it, as in SECTION.KEY=VALUE",
}
"""By pydantic's type of error."""


def setting_problems(error: ValidationError, *section: str) -> list[str]:
    """``error`` in our words: a line for each setting of ``section`` that is wrong."""
    lines = []
    for one in error.errors(include_url=False):
        where = ".".join(str(part) for part in (*section, *one["loc"]) if not isinstance(part, int))
        if one["type"] == "unexpected_keyword_argument":
            lines.append(f"{where}: {NO_SUCH_SETTING}")
        elif one["type"] != "too_short" or not one["input"]:  # else its parts are what is wrong
            said = _SAID.get(one["type"], one["msg"]).format_map(one.get("ctx", {}))
            lines.append(f"{where}: {said} (found {one['input']!r})")
    return lines


def from_pydantic(
    error: ValidationError, problem: str = "invalid settings", *, remedy: str = ""
) -> ConfigError:
    """A `ConfigError` with the `setting_problems` under ``problem``."""
    return ConfigError("\n    ".join([f"{problem}:", *setting_problems(error)]), remedy=remedy)
