"""Sphinx settings. The API pages come from docstrings, the command reference from the program."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
import yaml

import mlff_distiller
from mlff_distiller import cli, testing
from mlff_distiller.students.registry import architectures
from mlff_distiller.validation.criteria import CRITERIA, SHARE, YES_NO
from mlff_distiller.validation.settings import ValidationSettings
from mlff_distiller.workflows.config import Config, to_plain

project = "MLFF Distiller"
author = "MLFF Distiller contributors"
copyright = f"2026, {author}"
release = importlib.metadata.version("mlff-distiller")
version = release

extensions = [
    "myst_nb",  # pages of Markdown, and the tutorials, which are run
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "generated/*.md"]
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_merge_streams = True
nb_output_stderr = "remove"
# The tutorials call the program by its name.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.update(NO_COLOR="1", COLUMNS="96")
# Pygments does not know that a shell command in a notebook may have several lines.
suppress_warnings = ["misc.highlighting_failure"]

# Formulas are drawn without a network: MathJax as one file, which this package brings.
mathjax_path = "tex-svg.js"
_MATHJAX = importlib.metadata.files("sphinx-mathjax-offline") or ()
html_static_path = [next(str(file.locate()) for file in _MATHJAX if file.name == mathjax_path)]

html_theme = "furo"
html_title = f"{project} {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
# Libraries of teachers and engines are never needed to read about them, nor is Triton, which CPUs
# do without.
_LIBRARIES = (
    "chgnet",
    "fennol",
    "ipi",
    "jax",
    "mace",
    "openmm",
    "openmmml",
    "orb_models",
    "phonopy",
    "sevenn",
    "torch_sim",
    "torchani",
    "triton",
)
autodoc_mock_imports = list(_LIBRARIES)
napoleon_google_docstring = False
napoleon_use_ivar = True


def _command_pages(command: Any, name: str) -> list[str]:
    """Markdown of one command of the command line and of those below it."""
    commands = getattr(command, "commands", None)
    if commands:
        pages = [_command_pages(below, f"{name} {key}") for key, below in commands.items()]
        own = _command_page(command, name) if command.invoke_without_command else []
        return [*own, *(line for page in pages for line in page)]
    return _command_page(command, name)


def _command_page(command: Any, name: str) -> list[str]:
    arguments, options = _shown(command, "argument"), _shown(command, "option")
    usage = [name, *(_metavar(argument) for argument in arguments), "[OPTIONS]"]
    about = "\n\n".join(text.strip() for text in (command.help, command.epilog) if text)
    lines = [f"## `{name}`", "", "```text", " ".join(usage), "", about, "```"]
    for parameter in [*arguments, *options]:
        flags = [_metavar(parameter)] if parameter in arguments else parameter.opts
        given = "" if parameter in arguments else parameter.metavar or ""
        flags = [f"`{flag} {given}`".replace(" `", "`") for flag in flags]
        text = " ".join((getattr(parameter, "help", None) or parameter.name).split())
        if isinstance(parameter.show_default, str):
            text += f" Default: {parameter.show_default}."
        elif parameter.default not in (None, False, ..., (), []):
            text += f" Default: `{parameter.default}`."
        lines += ["", ", ".join(flags), f": {text}"]
    return [*lines, ""]


def _metavar(argument: Any) -> str:
    return argument.name.upper() + ("..." if argument.nargs == -1 else "")


def _shown(command: Any, kind: str) -> list[Any]:
    return [
        parameter
        for parameter in command.params
        if parameter.param_type_name == kind and not getattr(parameter, "hidden", False)
    ]


def _public(title: str, names: Iterable[str], home: str) -> list[str]:
    """A section with the docstrings of ``names`` of the module ``home``."""
    lines = [f"## {title}", "", "```{eval-rst}"]
    for name in names:
        public = getattr(import_module(home), name)
        if not callable(public):
            continue
        kind = "class" if isinstance(public, type) else "function"
        lines += [f".. auto{kind}:: {home}.{name}"]
        lines += ["   :members:", "   :show-inheritance:"] if kind == "class" else []
        lines += [""]
    return [*lines, "```", ""]


def _api_page() -> list[str]:
    """The public names, the sections of settings, and the conformance kit."""
    lines = _public("Functions and classes", mlff_distiller.__all__, "mlff_distiller")
    sections = [type(getattr(Config(), field.name)) for field in fields(Config)]
    sections += [architecture.settings for architecture in architectures().values()]
    for own in [Config, *(own for own in sections if is_dataclass(own)), ValidationSettings]:
        lines += _public(own.__name__, [own.__name__], own.__module__)
    kit = [name for name in testing.__all__ if name.startswith("assert")]
    lines += _public("For your own teachers and students", kit, "mlff_distiller.testing")
    lines += _public("An architecture", ["Architecture"], "mlff_distiller.students.architecture")
    return lines


def _write_generated_pages() -> None:
    """What api, cli, configuration and validation include, taken from the program itself."""
    folder = Path(__file__).parent / "generated"
    folder.mkdir(exist_ok=True)
    commands = _command_pages(typer.main.get_command(cli.app), "mlff-distiller")
    (folder / "commands.md").write_text("\n".join(commands) + "\n", encoding="utf-8")
    (folder / "api.md").write_text("\n".join(_api_page()) + "\n", encoding="utf-8")
    settings = yaml.safe_dump(to_plain(Config()), sort_keys=False)
    (folder / "settings.yaml").write_text(settings, encoding="utf-8")
    rows = ["| Check | Limit | A failure means | Why this limit |", "|---|---|---|---|"]
    for check in CRITERIA.values():
        unit = "" if check.unit == SHARE else check.unit
        limit = f"{'≤' if check.at_most else '≥'} {check.limit:g} {unit}".rstrip()
        limit = "yes" if check.unit == YES_NO else limit
        name = f"{check.title} (`{check.name}`)"
        rows.append(f"| {name} | {limit} | {check.failure} | {check.why} |")
    (folder / "criteria.md").write_text("\n".join(rows) + "\n", encoding="utf-8")
    validation = yaml.safe_dump(
        json.loads(json.dumps(asdict(ValidationSettings()))), sort_keys=False
    )
    (folder / "validation.yaml").write_text(validation, encoding="utf-8")


_write_generated_pages()
