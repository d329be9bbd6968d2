"""Print rows of results as a Markdown table: ``python benchmarks/markdown.py FILE.json ...``.

Of each file its ``rows``, or itself; columns are what is one word or number. ``--only`` names them.
"""

import argparse
import json
from pathlib import Path


def flat(row, prefix=""):
    """Numbers and words by dotted name; lists are left out."""
    found = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            found[prefix + key] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", nargs="+", help="columns, in this order")
    arguments = parser.parse_args()
    rows = []
    for file in arguments.files:
        report = json.loads(file.read_text())
        rows += [flat(row) for row in report.get("rows", [report])]
    names = arguments.only or list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(names) + " |")
    print("|" + " --- |" * len(names))
    for row in rows:
        print("| " + " | ".join(row.get(name, "") for name in names) + " |")


if __name__ == "__main__":
    main()
