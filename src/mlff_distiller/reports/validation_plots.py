"""The plots of a validation: those of its checks, and of every other block of columns.

Whatever is missing gives a panel without a figure, which the page calls "not measured".
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mlff_distiller import plotting
from mlff_distiller.plotting import Array, Panel
from mlff_distiller.reports.validation_tables import LONGEST_CELL
from mlff_distiller.reports.words import label, words
from mlff_distiller.validation.check import Tree
from mlff_distiller.validation.checks import CHECKS


def panels(measured: Tree, series: Tree) -> dict[str, list[Panel]]:
    """Every plot, by section of the page."""
    found: dict[str, list[Panel]] = {}
    for check in CHECKS:
        if check.section:
            found.setdefault(check.section, []).extend(check.panels(measured, series))
    return {**found, "others": others(measured)}


def others(measured: Tree) -> list[Panel]:
    """Every other block of equally long columns, over the first: new ones need no code here.

    A curve where the first column ascends, otherwise a cloud, as of two force fields' forces. The
    teacher's, ``teacher.X``, is drawn into the plot of ``X``.
    """
    blocks = dict(_blocks(measured, ""))
    panels = []
    for path, (first, *rest) in ((path, list(block)) for path, block in blocks.items()):
        if path.startswith("teacher.") and path.removeprefix("teacher.") in blocks:
            continue
        shown = [(label(name), blocks[path][first], blocks[path][name]) for name in rest]
        theirs = blocks.get(f"teacher.{path}", {})
        both = [name for name in rest if name in theirs and first in theirs]
        shown += [(f"teacher's {label(name)}", theirs[first], theirs[name]) for name in both]
        traces = []
        for number, (name, *columns) in enumerate(shown):
            x, y = plotting.finite(*columns)
            if (np.diff(x) > 0).all():
                traces.append(plotting.line(x, y, html.escape(name), *plotting.look(number)))
            else:
                look = (html.escape(name), plotting.look(number)[0], "circle")
                traces.append(plotting.markers(x, y, look))
        axes = [{"title": html.escape(label(name))} for name in (first, rest[0])]
        panels.append(Panel(words(path), plotting.figure(traces, *axes)))
    return panels


def _blocks(measured: Tree, above: str) -> Iterator[tuple[str, dict[str, Array]]]:
    """Two columns or more, equally long, by their path."""
    for key, block in measured.items():
        if not isinstance(block, Mapping):
            continue
        path = f"{above}.{key}" if above else key
        yield from _blocks(block, path)
        columns = {
            name: plotting.array(values) for name, values in block.items() if _is_column(values)
        }
        if len(columns) > 1 and len({len(values) for values in columns.values()}) == 1:
            yield path, columns


def _is_column(values: Any) -> bool:
    long = isinstance(values, list) and len(values) > LONGEST_CELL
    return long and all(value is None or isinstance(value, int | float) for value in values)
