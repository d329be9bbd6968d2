"""One page: a template with its numbers and plots as one HTML file that loads nothing.

Every page extends ``base.html.jinja``, whose content security policy forbids it to load anything.
Text from data (names of teachers, systems, elements) is untrusted: Jinja escapes it in the page,
the builders of panels escape it in the plots, and JSON inside ``<script>`` holds no ``<``, ``>``
or ``&``.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mlff_distiller.durable import write_text
from mlff_distiller.measure.machine import command_line, cpu_name, today
from mlff_distiller.plotting import Panel
from mlff_distiller.reports.words import FILTERS

_LIST = re.compile(r"\[\n[^\[\]{}\"]*\]")
"""A list of numbers in indented JSON, which has one number per line."""


def write(
    path: str | Path, template: str, panels: Mapping[str, Sequence[Panel]], **content: Any
) -> None:
    """Write the page of ``template``; about 2 MB, nearly all of it plotly's script, packed."""
    write_text(Path(path), render(template, panels, **content))


def render(
    template: str,
    panels: Mapping[str, Sequence[Panel]],
    made: Mapping[str, str] | None = None,
    **content: Any,
) -> str:
    """The page of ``template``, a file in ``pages/``, with ``panels`` by section.

    ``made`` says when, where and by what; otherwise it is this process.

    The macro ``plots`` shows a section; the figure of its n-th panel is drawn into the element
    with the id ``section-n``.
    """
    figures = {
        f"{section}-{n}": json.loads(panel.figure.to_json())
        for section, members in panels.items()
        for n, panel in enumerate(members)
        if panel.figure is not None
    }
    pages = Environment(
        loader=PackageLoader("mlff_distiller.reports", "pages"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= FILTERS | {"as_json": _as_json, "for_script": _for_script}
    return pages.get_template(template).render(
        figures=figures, panels=panels, plotly=_plotly(), made=made or made_by(), **content
    )


@cache
def _plotly() -> str:
    """Plotly's script, which the page unpacks: base64 of gzip."""
    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii")


def made_by() -> dict[str, str]:
    """When, where and by what command a page is made."""
    cores = len(os.sched_getaffinity(0))
    return {
        "date": today(),
        "machine": f"{cpu_name()}, {cores} cores",
        "command": command_line(),
        "version": version("mlff-distiller"),
    }


def measured_by(about: Mapping[str, Any]) -> dict[str, str]:
    """The same of a measurement: its page may be made again later, and elsewhere."""
    device, cpu, known = about["device"], f"{about['cpu']}, {about['cores']} cores", made_by()
    made = {
        "machine": cpu if device == about["cpu"] else f"{device} with {cpu}",
        "version": about["versions"].get("mlff-distiller", known["version"]),
    }
    return known | {name: about.get(name, "") for name in ("date", "command")} | made


def flat(tree: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of ``tree``, each with its path, in words."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flat(value, f"{above} {key}".strip().replace("_", " "))
    elif isinstance(tree, list | tuple) and any(isinstance(item, Mapping) for item in tree):
        for item in tree:
            yield above, ", ".join(f"{key} {value}" for key, value in item.items())
    else:
        yield above, ", ".join(map(str, tree)) if isinstance(tree, list | tuple) else str(tree)


def _as_json(content: Any) -> str:
    """Indented JSON for readers, lists of numbers in one line."""
    text = json.dumps(_plain(content), indent=1, ensure_ascii=False)
    return _LIST.sub(lambda found: " ".join(found[0].split()), text)


def _for_script(content: Any) -> Markup:
    """JSON that nothing inside can end: no ``<``, ``>`` or ``&``."""
    text = json.dumps(_plain(content), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _plain(content: Any) -> Any:
    """``content`` as JSON can hold it: NaN and infinity become null."""
    return json.loads(json.dumps(content, default=_of_numpy), parse_constant=lambda _: None)


def _of_numpy(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)
