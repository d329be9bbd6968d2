"""The settings of a whole run: the stages' own dataclasses, composed; strict YAML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from pydantic_core import PydanticCustomError

from mlff_distiller.batch import Batch
from mlff_distiller.errors import NO_SUCH_SETTING, ConfigError, StudentError, setting_problems
from mlff_distiller.labeling import Cluster
from mlff_distiller.sampling import (
    ApproachSettings,
    DynamicsSettings,
    RattleSettings,
    ScanSettings,
)
from mlff_distiller.sampling.active import ActiveSettings
from mlff_distiller.students import Student, set_repulsion
from mlff_distiller.students.registry import LADDER, architecture_of, architectures
from mlff_distiller.training import TrainingSettings
from mlff_distiller.validation.settings import EvaluationSettings
from mlff_distiller.workflows.goal import GoalSettings

Fraction = Annotated[float, Field(gt=0, lt=1)]
Pair = Annotated[str, Field(pattern=r"^[A-Z][a-z]?-[A-Z][a-z]?$")]
_STRICT = ConfigDict(extra="forbid")
_SECTIONS = "architectures"
_MOST_CHARACTERS, _MOST_NODES, _DEEPEST = 10**6, 10**5, 30
"""Limits of settings, beyond what is written by hand; aliases count each time."""
_SHOWN = 200


AUTO = "auto"
"""As a student's name: the fastest that reaches the goal."""


def _known(student: str) -> str:
    """The name of a student that there is, with sizes that its architecture takes."""
    if student == AUTO:
        return student
    try:
        own = architecture_of(student)
        own.named(own.settings(), student)
    except StudentError as error:
        why = f"{error.problem}; expected {error.expected}"
        if error.found != student:
            why += f"; found {error.found}"
    except ValidationError as error:
        why = "; ".join(setting_problems(error))
    else:
        return student
    raise PydanticCustomError("student", "{why}", {"why": why})


@validated(frozen=True, config=_STRICT)
class Config:
    """Everything ``distill`` depends on, besides the structures and the teacher.

    ``held_out``: which structures of the groups held out validate and test, those that motion at
    the temperatures sampled can reach (in_reach), or all.
    ``max_disagreement_eV_per_A``: where a committee's members differ by more on the force of some
    atom, their mean is not worth learning; such structures only test.
    ``repulsion_A``: where ZBL begins, Å by pair of elements such as ``O-O``; else the data decide.
    ``student`` auto: ``distill`` tries faster ones first, until one reaches the goal; others take
    the first. ``labels`` are those of the first turn; see ``goal`` for how far it goes.
    ``architectures``: settings of the students of each; in files a section by its name.
    """

    labels: Annotated[int, Field(ge=10)] = 300
    student: Annotated[str, AfterValidator(_known)] = AUTO
    device: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    test_fraction: Fraction = 0.1
    validation_fraction: Fraction = 0.1
    held_out: Literal["in_reach", "all"] = "in_reach"
    max_disagreement_eV_per_A: Annotated[float, Field(gt=0)] = 6.0
    repulsion_A: dict[Pair, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    sampling: RattleSettings = field(default_factory=RattleSettings)
    scan: ScanSettings = field(default_factory=lambda: ScanSettings(volumes=0, strains=0))
    approach: ApproachSettings = field(default_factory=ApproachSettings)
    dynamics: DynamicsSettings = field(default_factory=DynamicsSettings)
    active: ActiveSettings = field(default_factory=ActiveSettings)
    architectures: Mapping[str, Any] = field(
        default_factory=lambda: {name: own.settings() for name, own in architectures().items()}
    )
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    goal: GoalSettings = field(default_factory=GoalSettings)

    @property
    def ladder(self) -> tuple[str, ...]:
        """Students to try, the fastest first; the first is the one to begin with."""
        return LADDER if self.student == AUTO else (self.student,)

    def new_student(self, frames: Sequence[Batch]) -> Student:
        """The untrained student for ``frames``, on the CPU."""
        name = self.ladder[0]
        architecture = architecture_of(name)
        settings = architecture.named(self.architectures[architecture.name], name)
        student = architecture.build(frames, settings, self.seed)
        set_repulsion(student, self.repulsion_A)
        return student


class _Loader(yaml.SafeLoader):
    """Safe YAML (no tags that build objects) in which a repeated key is an error."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is given twice", node.start_mark
            )
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _plain_yaml(text: str) -> Any:
    """What ``text`` says; ``YAMLError`` or ``ValueError`` before it fills memory or the stack."""
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"more than {_MOST_CHARACTERS:,} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _count(node, 0, {})
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node | None, depth: int, known: dict[int, int]) -> int:
    """How many nodes ``node`` is once its aliases are written out."""
    if depth > _DEEPEST:
        raise ValueError(f"sections within sections, more than {_DEEPEST} deep")
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > 20:
        raise ValueError(f"an integer of {len(node.value):,} digits")
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        inner = [own for pair in node.value for own in (pair if type(pair) is tuple else [pair])]
        known[id(node)] = 1 + sum(_count(own, depth + 1, known) for own in inner)
        if known[id(node)] > _MOST_NODES:
            raise ValueError(f"aliases that stand for more than {_MOST_NODES:,} values")
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; tags, repeated keys and anything but a mapping are refused."""
    try:
        with path.open(encoding="utf-8") as stream:
            content = _plain_yaml(stream.read(_MOST_CHARACTERS + 1))
    except OSError as error:
        raise ConfigError(f"cannot read {path}", found=error.strerror) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not plain YAML", found=error) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} is not a mapping",
            expected="lines of 'key: value'",
            found=type(content).__name__,
        )
    return content


def read_cluster(path: Path) -> Cluster:
    """A batch scheduler whose jobs label: YAML with ``scheduler``, ``workers``, ``options``."""
    content = read_yaml(path)
    unknown = content.keys() - {"scheduler", "workers", "options"}
    options = content.get("options") or {}
    if unknown or "scheduler" not in content or not isinstance(options, dict):
        raise ConfigError(
            f"{path} does not describe a cluster",
            expected="scheduler, workers and options (those of dask-jobqueue)",
            found=", ".join(content) or "nothing",
        )
    return Cluster(str(content["scheduler"]), content.get("workers", 1), options)


def load_config(file: Path | None, overrides: Sequence[str] = (), **direct: Any) -> Config:
    """Defaults, then ``file``, then ``direct`` dotted keys, then ``KEY=VALUE`` overrides.

    A key of ``direct`` uses ``__`` for the dot; its value None means "not given".
    """
    content = read_yaml(file) if file is not None else {}
    for name, value in direct.items():
        if value is not None:
            _set(content, name.replace("__", "."), value)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"cannot read the setting {override!r}",
                expected="KEY=VALUE, for example training.learning_rate=0.002",
            )
        try:
            _set(content, key, _plain_yaml(text))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            found = text if len(text) <= _SHOWN else error
            raise ConfigError(f"cannot read the value of {key}", found=found) from error
    return config_of(content)


def config_of(content: Mapping[str, Any]) -> Config:
    """What nested keys say, in the layout of files; `ConfigError` names everything wrong."""
    rest, sections = dict(content), {}
    problems = [f"{place}: {value} is not finite" for place, value in _infinite(content)]
    if rest.pop(_SECTIONS, None) is not None:
        problems.append(f"{_SECTIONS}: {NO_SUCH_SETTING}")
    for name, own in architectures().items():
        try:
            sections[name] = TypeAdapter(own.settings).validate_python(rest.pop(name, {}))
        except ValidationError as error:
            problems += setting_problems(error, name)
    try:
        config = TypeAdapter(Config).validate_python({**rest, _SECTIONS: sections})
    except ValidationError as error:
        problems += setting_problems(error)
    if problems:
        raise ConfigError(
            "invalid settings:\n    " + "\n    ".join(map(_with_the_nearest, problems)),
            remedy="`mlff-distiller settings` lists every setting with its default",
        )
    return config


def _with_the_nearest(problem: str) -> str:
    """What may have been meant, where there is no such setting."""
    name, _, why = problem.partition(": ")
    if why != NO_SUCH_SETTING:
        return problem
    near = meant(name, [*sections(), *(key for key, _ in leaves())])
    return problem + (f"; did you mean {' or '.join(near)}?" if near else "")


def meant(name: str, names: Sequence[str]) -> list[str]:
    """Which of the dotted ``names`` may have been meant by ``name``: spelt alike, or their ends."""
    near = get_close_matches(name, names, n=1, cutoff=0.75)
    if near:
        return near
    ends = {own.rpartition(".")[2] for own in names}
    end = get_close_matches(name.rpartition(".")[2], ends, n=1, cutoff=0.75)
    return [own for own in names if [own.rpartition(".")[2]] == end]


def leaves(content: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting's dotted name and default."""
    for key, value in (to_plain(Config()) if content is None else content).items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def sections() -> dict[str, type]:
    """Every section of settings by its dotted name, and the class whose docstring explains it."""
    found: dict[str, type] = {}

    def add(settings: Any, name: str) -> None:
        found[name] = type(settings)
        for one in fields(settings):
            own = getattr(settings, one.name)
            if is_dataclass(own):
                add(own, f"{name}.{one.name}")

    config = Config()
    for name, own in [*vars(config).items(), *config.architectures.items()]:
        if is_dataclass(own):
            add(own, name)
    return found


def _infinite(content: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(content, float) and not math.isfinite(content):
        yield place, content
    parts = content.items() if isinstance(content, Mapping) else ()
    for key, own in enumerate(content) if isinstance(content, list | tuple) else parts:
        yield from _infinite(own, f"{place}.{key}".lstrip("."))


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """``config`` with dotted keys changed, as KEY=VALUE of the command line does."""
    content = to_plain(config)
    for dotted, value in settings.items():
        _set(content, dotted, value)
    return config_of(content)


def _set(content: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{parent} in {dotted} is a value, not a section")
    content[last] = value


def to_plain(config: Config) -> dict[str, Any]:
    """As nested dicts and lists that YAML and JSON can hold, in the layout of files."""
    content: dict[str, Any] = {}
    for key, value in asdict(config).items():
        content |= _plain(value if key == _SECTIONS else {key: value})
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every leaf of two nested mappings that is not the same."""
    lines = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
