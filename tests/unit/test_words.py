"""How errors are written, and what no message or page may say."""

import ast
import re

import pytest
from tests.helpers import ROOT

from mlff_distiller import errors

SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")]
ERRORS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.DistillerError)
}


def shown(node):
    """Text of a string or f-string, its values as ``X``; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (shown(part) if isinstance(part, ast.Constant) else "X" for part in node.values)
        return "".join(parts)
    return None


def problems():
    """``file:line`` and problem of every error that is made from a text written in place."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                text = shown(node.args[0])
                if name in ERRORS and text is not None:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def faults(problem):
    """What is wrong with the first line of an error."""
    first = problem.partition("\n")[0]
    found = ["a question: state the problem"] if "?" in first else []
    found += ["ends with a full stop"] if first.endswith(".") else []
    found += ["'is no' for 'is not a'"] if re.search(r"(?<!there )\b(is|are) no\b", first) else []
    found += ["an old-fashioned word"] if re.search(r"\b(anew|beside|whoever)\b", first) else []
    return found


def test_problems_are_statements_in_plain_words():
    rows = list(problems())
    assert len(rows) > 200  # the search finds them
    assert [(where, text, fault) for where, text in rows for fault in faults(text)] == []


@pytest.mark.parametrize("bad", ["how long?", "it is wrong.", "X is no student"])
def test_a_bad_problem_is_found(bad):
    assert faults(bad)


def test_an_error_shows_its_parts_in_one_order():
    error = errors.ConfigError("p", remedy="r", found="f", expected="e")
    assert str(error).splitlines() == ["p", "  expected: e", "  found:    f", "  remedy:   r"]


PER = r"step|atom|record|frame|label|structure|update|system|second|minute|hour|day|core|byte"
UNITS = r"ms|s|µs|us|ns|eV|meV|GB|MB|kB|bytes|labels?|evaluations?|launches|times"
WORN = {
    "a docstring that begins with a detached 'Of'": r'"""(?-i:Of)\b(?! \w+,)',
    "'is no' for 'is not a'": r"(?<!there )(?<!answer )\b(is|are) no\b(?! (more|longer)\b)",
    "'a step' for 'per step'": rf"\b({UNITS}) an? ({PER})\b(?! (has|is)\b)",
    "a word of another century": r"\b(anew|whoever|at wish|by and large|so many)\b",
}


@pytest.mark.parametrize("what", WORN)
def test_plain_words_are_used_everywhere(what):
    """In pages, docstrings, help and comments; names of tests are not looked at."""
    shown = [*SOURCES, *PAGES, *(ROOT / "src").rglob("*.jinja")]
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in shown
        if path.name != "CHANGELOG.md"  # says what was, in the words of its day
        for match in re.finditer(WORN[what], path.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert found == []


@pytest.mark.parametrize(
    "bad",
    ['"""Of all the worst."""', "X is no student", "0.3 ms a record", "eV an atom", "found anew"],
)
def test_worn_words_are_found(bad):
    assert any(re.search(pattern, bad, re.IGNORECASE) for pattern in WORN.values())


def test_no_message_or_page_names_a_package_that_is_not_published():
    wrong = re.compile(r"""pip install ['"]?mlff[-_]distiller|install=['"]*mlff[-_]distiller\[""")
    texts = {path: path.read_text(encoding="utf-8") for path in [*SOURCES, *PAGES]}
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if wrong.search(text)] == []
