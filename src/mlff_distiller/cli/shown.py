"""What commands show: two consoles, tables, facts and verdicts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from mlff_distiller.labeling import checks

_FINDINGS = 10
"""How many findings of each check are printed."""

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def table(headings: Sequence[str], left: Collection[str] = (), title: str | None = None) -> Table:
    """An empty table without lines; columns of numbers are aligned right, those in ``left`` left.

    ``title`` may hold markup.
    """
    made = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    for heading in headings:
        made.add_column(heading, justify="left" if heading in left else "right")
    return made


def print_facts(facts: Mapping[str, Any], as_json: bool = False) -> None:
    """Names and values in two columns, or JSON; None is shown as unknown."""
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    made = Table(box=None, padding=(0, 2), show_header=False)
    for key, value in facts.items():
        if isinstance(value, dict):
            value = [
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            ]
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        made.add_row(key, escape(str(shown)) if value is not None else "unknown")
    console.print(made)


def print_verdict(verdict: Mapping[str, Any], name: str = "") -> None:
    """The checks of a report's or certificate's ``verdict``, each with its limit.

    ``name`` says whose verdict it is.
    """
    colour = "green" if verdict["status"] == "approved" else "red"
    title = f"[bold {colour}]{verdict['status']}[/]" + (f": {escape(name)}" if name else "")
    made = table(("", "check", "measured", "limit"), left=("", "check"), title=title)
    for check in verdict["checks"]:
        mark = "[green]✓[/]" if check["passed"] else "[red]✗[/]"
        value = "not measured" if check["value"] is None else f"{check['value']:.4g}"
        made.add_row(mark, check["name"], value, f"{check['limit']:g}")
    console.print(made)


def print_next(goal: Mapping[str, Any] | None) -> None:
    """How a distillation ended, and what to do next where it was not approved."""
    if goal is None or not goal["advice"]:
        return
    console.print(escape(f"\nThe run ended: {goal['ended']}."), soft_wrap=True)
    for sentence in goal["advice"]:
        console.print(escape(f"  {sentence}"), soft_wrap=True)


def print_files(files: Mapping[str, Path]) -> None:
    """What was written: a name and a path on each line, never folded."""
    width = max(map(len, files))
    for name, path in files.items():
        console.print(f"{name:<{width}}  {escape(str(path))}", soft_wrap=True)


def warn(text: str) -> None:
    """Print ``text``, which may hold markup, as a warning on standard output."""
    console.print(f"[yellow]warning:[/] {text}", soft_wrap=True)


def print_findings(findings: Sequence[checks.Finding], out: Path) -> None:
    """What a check of labels found, and where the rest of it is."""
    for check in sorted({finding.check for finding in findings}):
        own = [finding for finding in findings if finding.check == check]
        warn(f"{check}: {len(own)} labels")
        for finding in own[:_FINDINGS]:
            console.print(f"  {escape(str(finding))}", soft_wrap=True)
        if len(own) > _FINDINGS:
            console.print(f"  and {len(own) - _FINDINGS} more in {out / 'findings.json'}")
