"""The certificate as one HTML file that needs neither network nor program to be read.

The page is ``report.html.jinja``; this module turns numbers into words, hands the page the plots
and writes it. Whatever is missing reads "not measured": it is never left out, and never zero.
Text from data (names of teachers, systems, elements) is untrusted: Jinja escapes it in the page,
``figures`` in the plots, and JSON inside ``<script>`` holds no ``<``, ``>`` or ``&``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChainableUndefined, Environment
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from mlff_distiller.durable import write_text
from mlff_distiller.reports.distillation_plots import all_panels, column, rows
from mlff_distiller.reports.evidence import Evidence

MISSING = Markup('<span class="missing">not measured</span>')


def write_report(path: Path, report: dict[str, Any], evidence: Evidence) -> None:
    """Write ``report`` (the content of ``report.json``) and its plots as one HTML file.

    The file is about 5 MB, nearly all of it plotly's script, and loads nothing: a content
    security policy in its head forbids it to.
    """
    path = Path(path)
    write_text(path, _render(report, evidence, path.resolve().parent.name))


def _render(report: dict[str, Any], evidence: Evidence, run_name: str) -> str:
    panels = all_panels(report, evidence)
    drawn = {
        f"{section}-{number}": json.loads(panel.figure.to_json())
        for section, members in panels.items()
        for number, panel in enumerate(members)
        if panel.figure is not None
    }
    source = resources.files("mlff_distiller.reports.pages").joinpath("distillation.html.jinja")
    return page_of(
        source.read_text("utf-8"),
        drawn,
        report=report,
        panels=panels,
        speed_rows=rows(report),
        speedups=_extremes(column(rows(report), "speedup")),
        scalars=_scalars(report.get("observables")),
        raw=json.dumps(_plain(report), indent=2, ensure_ascii=False),
        student_path=json.dumps(f"{run_name}/student", ensure_ascii=False),
    )


def page_of(template: str, figures: Mapping[str, Any], **content: Any) -> str:
    """A page that loads nothing: ``template`` with the style, plotly's script and ``figures``.

    ``figures`` are plotly's, as JSON, by the id of the element that shows them.
    """
    page = Environment(
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters |= FILTERS
    style = resources.files("mlff_distiller.reports.pages").joinpath("style.css").read_text("utf-8")
    return page.from_string(template).render(
        style=Markup(style),
        figures=json_for_script(figures),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        **content,
    )


def _plain(content: Any) -> Any:
    """``content`` as JSON can hold it: NaN and infinity become null."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, np.ndarray):
        return _plain(content.tolist())
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if content is None or isinstance(content, bool | str):
        return content
    if isinstance(content, np.bool_):
        return bool(content)
    if isinstance(content, Integral):
        return int(content)
    if isinstance(content, Real):
        return float(content) if math.isfinite(content) else None
    return str(content)


def json_for_script(content: Any) -> Markup:
    """JSON that nothing inside can end: no ``<``, ``>`` or ``&``."""
    text = json.dumps(_plain(content), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _extremes(values: np.ndarray[Any, Any]) -> tuple[float, float] | None:
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else None


def _scalars(tree: Any, above: str = "") -> list[tuple[str, Any]]:
    """The single numbers of the observables, each with its path; curves are plotted instead."""
    if isinstance(tree, Mapping):
        return [leaf for k, v in tree.items() for leaf in _scalars(v, f"{above} {k}".strip())]
    return [(above, tree)] if above and (tree is None or _measured(tree)) else []


# Numbers in words


def _measured(value: Any) -> bool:
    return isinstance(value, Real | np.bool_) and math.isfinite(value)


def _significant(value: float, digits: int = 3) -> str:
    """``value`` to so many digits; thousands separated, no trailing zeros on an exact number."""
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    if exponent < -4:
        mantissa = f"{value / 10.0**exponent:.{digits - 1}f} × 10"
        return (mantissa + str(exponent).translate(SUPERSCRIPT)).replace("-", "−")
    return _decimal(value, max(0, digits - 1 - exponent))


def _decimal(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    if "." in text and math.isclose(float(text.replace(",", "")), value, rel_tol=1e-12):
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−")


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _shown(value: Any, text: str, unit: str = "") -> Markup:
    """``text`` for the eye, the exact number for machines and in the tooltip."""
    exact = repr(_plain(value))
    spaced = Markup("" if unit == "°" else "&nbsp;") + unit if unit else ""
    return Markup('<data value="{}" title="{}">{}{}</data>').format(exact, exact, text, spaced)


def _number(value: Any, unit: str = "", digits: int = 3) -> Markup:
    if not _measured(value):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return escape("yes" if value else "no")
    whole = isinstance(value, Integral) or (float(value).is_integer() and abs(value) >= 10**digits)
    text = f"{int(value):,}".replace("-", "−") if whole else _significant(float(value), digits)
    return _shown(value, text, unit)


def _few(value: Any) -> Markup:
    """A number that a small sample may not allow."""
    return _number(value) if _measured(value) else Markup("–")


def _percent(value: Any) -> Markup:
    """A share; digits grow near 100 %, where the remainder is what counts."""
    if not _measured(value):
        return MISSING
    remainder = abs(1.0 - value)
    decimals = 1 if remainder >= 0.01 else 2 if remainder >= 0.001 else 3
    return _shown(value, _decimal(100.0 * value, decimals), "%")


def _times(value: Any) -> Markup:
    return _shown(value, _significant(float(value)), "×") if _measured(value) else MISSING


def _duration(seconds: Any) -> Markup:
    if not _measured(seconds):
        return MISSING
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return _shown(seconds, _significant(seconds / size), unit)
    return _shown(seconds, _significant(float(seconds)), "s")


def _text(value: Any) -> Markup:
    """Text or a list of texts from data, escaped."""
    items = [value] if isinstance(value, str) or not isinstance(value, Sequence) else value
    texts = [str(item) for item in items if isinstance(item, str | Integral) and item != ""]
    if not texts:
        return Markup('<span class="missing">not recorded</span>')
    return escape(", ".join(texts))


# Names in words

CHECKS = {
    "test_forces_fidelity": "Force fidelity on held-out test frames",
    "student_md_forces_fidelity": "Force fidelity on frames of the student's own MD",
    "nve_completed": "Constant-energy MD ran to its end",
    "nve_drift_meV_per_atom_per_ps": "Energy drift in constant-energy MD",
    "speedup": "Speed-up over the teacher",
    "nvt_completed": "MD with a thermostat ran to its end",
    "npt_completed": "MD at constant pressure ran to its end",
    "npt_pressure_deviation_GPa": "Pressure off the barostat's",
    "memory_growth_kB_per_step": "Growth of memory",
    "incidents": "Clashes, lost atoms, broken bonds, explosions",
    "nve_fluctuation_ratio": "Fluctuation of the energy, whole over half time step",
    "momentum_change": "Change of the total momentum, of the mean momentum",
    "temperature_deviation_percent": "Temperature off the thermostat's",
    "kinetic_energy_p_value": "p-value of canonical kinetic energies",
    "element_temperature_deviation_percent": "Temperature of one element off the thermostat's",
    "force_derivative_error": "Forces against differences of the energy",
    "stress_derivative_error": "Stress against differences of the energy",
    "scan_jump_meV": "Largest jump along a straight line",
    "translation_meV_per_atom": "Change of the energy by a translation",
    "energy_noise_meV": "Lost digits of a large system's energy",
    "dimer_drop_eV": "Hole between two atoms at short distance",
    "compression_drop_eV_per_atom": "Hole in compressed matter",
    "leaked_fraction": "Test structures that were trained on",
    "rdf_difference_percent": "Radial distribution off the teacher's",
    "angle_difference_percent": "Bond angles off the teacher's",
    "spectrum_difference_percent": "Vibrational spectrum off the teacher's",
    "diffusion_difference_percent": "Diffusion off the teacher's",
    "density_difference_percent": "Density off the teacher's",
    "volume_difference_percent": "Volume off the teacher's",
    "elastic_difference_percent": "Elastic constants off the teacher's",
    "bulk_modulus_difference_percent": "Bulk modulus off the teacher's",
    "frequency_difference_percent": "Frequencies off the teacher's",
    "imaginary_frequency_per_cm": "Imaginary frequency below the teacher's lowest",
}
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
AT_LEAST = ("fidelity", "r2", "speed", "steps", "frames", "labels", "completed", "overlap")
"""Words in the name of a check whose limit is the least allowed; all others have a most."""


def _split_unit(name: str) -> tuple[str, str]:
    for suffix, unit in UNITS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), unit
    return name, ""


def _words(name: Any) -> str:
    """A key as a phrase: ``forces_mae_meV_per_A`` as "Forces mean absolute error"."""
    if not isinstance(name, str):
        return _text(None)
    if name in CHECKS:
        return CHECKS[name]
    bare = re.split(r"[\s._]+", _split_unit(name)[0])
    text = " ".join(WORDS.get(word, word) for word in bare).strip()
    return text[:1].upper() + text[1:]


def _quantity(value: Any, name: Any) -> Markup:
    """A value in the unit that its name says."""
    key = str(name).lower()
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, list | tuple):
        return Markup(" to ").join(_quantity(item, name) for item in value)
    if key.endswith("completed") and value in (0, 1):
        return _number(bool(value))
    if "fidelity" in key:
        return _percent(value)
    if re.search(r"speed.?up", key):
        return _times(value)
    return _number(value, _split_unit(str(name))[1])


def _limit(value: Any, name: Any) -> Markup:
    shown = _quantity(value, name)
    if not _measured(value):
        return shown if isinstance(value, str | list | tuple) else Markup("–")
    if "<data" not in shown:
        return shown
    least = any(word in str(name).lower() for word in AT_LEAST)
    return Markup("{} {}").format("at least" if least else "at most", shown)


FILTERS: dict[str, Callable[..., Any]] = {
    "number": _number,
    "few": _few,
    "percent": _percent,
    "times": _times,
    "duration": _duration,
    "text": _text,
    "words": _words,
    "quantity": _quantity,
    "limit": _limit,
}
