"""Numbers and names in words, as every page shows them.

What is missing reads "not measured": it is never left out, and never zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from mlff_distiller.validation.criteria import CRITERIA, SHARE, TIMES, YES_NO

MISSING = Markup('<span class="missing">not measured</span>')

# Numbers


def measured(value: Any) -> bool:
    """Whether ``value`` is a finite number."""
    return isinstance(value, Real | np.bool_) and math.isfinite(value)


def _significant(value: float, digits: int = 3) -> str:
    """``value`` to ``digits`` digits; thousands separated, no trailing zeros on an exact number."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    if exponent < -4:
        mantissa = f"{value / 10.0**exponent:.{digits - 1}f} × 10"
        return (mantissa + str(exponent).translate(_SUPERSCRIPT)).replace("-", "−")
    return _decimal(value, max(0, digits - 1 - exponent))


def _decimal(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    if "." in text and math.isclose(float(text.replace(",", "")), value, rel_tol=1e-12):
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def powers(sentence: str) -> str:
    """``2.8e-05`` as 2.8 × 10⁻⁵, wherever it stands."""

    def power(found: re.Match[str]) -> str:
        return f"{found[1]} × 10{str(int(found[2])).translate(_SUPERSCRIPT)}"

    return re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]?\d+)\b", power, sentence)


def _shown(value: Any, text: str, unit: str = "") -> Markup:
    """``text`` for the eye, the exact number for machines and in the tooltip."""
    exact = repr(value.item() if isinstance(value, np.generic) else value)
    spaced = Markup("" if unit == "°" else "&nbsp;") + unit if unit else ""
    return Markup('<data value="{}" title="{}">{}{}</data>').format(exact, exact, text, spaced)


def number(value: Any, unit: str = "", digits: int = 3) -> Markup:
    """A number to ``digits`` digits; yes or no for a truth value."""
    if not measured(value):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return escape("yes" if value else "no")
    whole = isinstance(value, Integral) or (float(value).is_integer() and abs(value) >= 10**digits)
    text = f"{int(value):,}".replace("-", "−") if whole else _significant(float(value), digits)
    return _shown(value, text, unit)


def few(value: Any) -> Markup:
    """A number that a small sample may not allow."""
    return number(value) if measured(value) else Markup("–")


def percent(value: Any) -> Markup:
    """A share; digits grow near 100 %, where the remainder is what counts."""
    if not measured(value):
        return MISSING
    remainder = abs(1.0 - value)
    decimals = 1 if remainder >= 0.01 else 2 if remainder >= 0.001 else 3
    return _shown(value, _decimal(100.0 * value, decimals), "%")


def times(value: Any) -> Markup:
    """A ratio."""
    return _shown(value, _significant(float(value)), "×") if measured(value) else MISSING


def duration(seconds: Any) -> Markup:
    """Seconds, in the largest unit of which there are at least two."""
    if not measured(seconds):
        return MISSING
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return _shown(seconds, _significant(seconds / size), unit)
    return _shown(seconds, _significant(float(seconds)), "s")


def text(value: Any) -> Markup:
    """Text or a list of texts from data, escaped."""
    items = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    texts = [str(item) for item in items if isinstance(item, str | Integral) and item != ""]
    if not texts:
        return Markup('<span class="missing">not recorded</span>')
    return escape(", ".join(texts))


# Names

UNITS = {
    "_meV_per_atom_per_ps": "meV/atom/ps",
    "_meV_per_atom": "meV/atom",
    "_meV_per_A": "meV/Å",
    "_meV": "meV",
    "_eV_per_atom": "eV/atom",
    "_eV_per_A": "eV/Å",
    "_eV": "eV",
    "_A3_per_atom": "Å³/atom",
    "_A": "Å",
    "_per_cm": "cm⁻¹",
    "_percent": "%",
    "_MiB": "MiB",
    "_MB": "MB",
    "_g_per_cm3": "g/cm³",
    "_kB_per_step": "kB/step",
    "_ms_per_step": "ms/step",
    "_seconds": "s",
    "_GPa": "GPa",
    "_deg": "°",
    "_fs": "fs",
    "_ps": "ps",
    "_K": "K",
}
"""Units by the end of a name; a longer end comes before a shorter one that it ends in."""
WORDS = {
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "r2": "R²",
    "nve": "NVE",
    "md": "MD",
    "rdf": "RDF",
    "msd": "MSD",
    "n": "number of",
}


def _split_unit(name: str) -> tuple[str, str]:
    for suffix, unit in UNITS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), unit
    return name, ""


def words(name: Any) -> str:
    """A check's title, or a key as a phrase: ``energy_mae_eV`` as "Energy mean absolute error"."""
    if not isinstance(name, str):
        return text(None)
    if name in CRITERIA:
        return CRITERIA[name].title
    bare = re.split(r"[\s._]+", _split_unit(name)[0])
    phrase = " ".join(WORDS.get(word, word) for word in bare).strip()
    return phrase[:1].upper() + phrase[1:]


def label(key: str, table: str = "") -> str:
    """A key in words, with the unit that it ends in, or else the name of its ``table`` does."""
    unit = _split_unit(key)[1]
    if not unit and key in ("value", "student", "teacher"):
        unit = _split_unit(table)[1]
    return f"{words(key)} ({unit})" if unit else words(key)


def _unit_of(name: str) -> str:
    """A check's unit, or else what the name says."""
    if name in CRITERIA:
        return CRITERIA[name].unit
    if name.lower().endswith("completed"):
        return YES_NO
    if "fidelity" in name.lower():
        return SHARE
    return TIMES if re.search(r"speed.?up", name.lower()) else _split_unit(name)[1]


def quantity(value: Any, name: Any) -> Markup:
    """A value in the unit of its check or name; lists as "a to b"."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list | tuple):
        return Markup(" to ").join(quantity(item, name) for item in value)
    unit = _unit_of(str(name))
    if unit == SHARE:
        return percent(value)
    if unit == TIMES:
        return times(value)
    if unit == YES_NO:
        return number(bool(value) if value in (0, 1) else value)
    return number(value, unit)


def limit(value: Any, name: Any) -> Markup:
    """The limit of a check; "at most" or "at least" if the check is known and not yes or no."""
    if not measured(value):
        return quantity(value, name) if isinstance(value, str | list | tuple) else Markup("–")
    criterion = CRITERIA.get(name) if isinstance(name, str) else None
    if criterion is None or criterion.unit == YES_NO:
        return quantity(value, name)
    order = "at most" if criterion.at_most else "at least"
    return Markup("{} {}").format(order, quantity(value, name))


FILTERS: dict[str, Callable[..., Any]] = {
    own.__name__: own
    for own in (number, few, percent, times, duration, text, words, label, quantity, limit)
}
"""The filters of every page."""
