"""One plot of each series of the evidence.

Text that comes from data reaches plotly HTML-escaped, because plotly reads a subset of HTML in
names and hover labels.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from ase import units

from mlff_distiller import plotting
from mlff_distiller.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, Panel
from mlff_distiller.reports.evidence import (
    Array,
    Curve,
    Evidence,
    ParitySet,
    Sampling,
    Trajectory,
)
from mlff_distiller.reports.turns import turn_panels
from mlff_distiller.validation.checks import error_estimates

SETS = {
    "test": ("Held-out test frames", BLUE, "circle"),
    "student_md": ("Student's own MD", ORANGE, "diamond"),
}
ROUND_QUARTILES = ("error_lower_quartile", "error_median", "error_upper_quartile")
SHORT = {"test": "test", "student_md": "own MD"}
SPLITS = {
    "train": ("training", BLUE, "circle"),
    "validation": ("validation", ORANGE, "diamond"),
    "test": ("test", GREEN, "square"),
}


def all_panels(report: Mapping[str, Any], evidence: Evidence) -> dict[str, list[Panel]]:
    """Every plot of the report, by section."""
    return {
        "turns": turn_panels(report.get("goal")),
        "parity": [_parity(evidence.parity, quantity) for quantity in PARITY],
        "errors": [_error_against_force(evidence.parity), _error_by_element(evidence.parity)],
        "estimates": error_estimates.CHECK.panels(report, {}),
        "learning": [_learning(evidence.learning, *what) for what in LEARNING],
        "stability": [_energy(evidence.trajectory), _temperature(evidence.trajectory)],
        "speed": [_step_times(rows(report)), _speedups(rows(report))],
        "sampling": [
            _coverage(evidence.sampling),
            _generations(evidence.sampling),
            *([_rounds(evidence.rounds)] if evidence.rounds else []),
        ],
        "observables": [_rdf(evidence.rdf), _msd(evidence.msd)],
    }


def rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of the benchmark, smallest system first."""
    found = [row for row in report.get("speed") or [] if isinstance(row, Mapping)]
    return sorted(found, key=lambda row: float(np.nan_to_num(column([row], "n_atoms")[0])))


def column(table: Sequence[Mapping[str, Any]], key: str) -> Array:
    """One number per row; NaN where it is missing or not a number."""
    values = [row.get(key) for row in table]
    numbers = (int, float, np.number)
    return np.array([float(v) if isinstance(v, numbers) else np.nan for v in values], float)


PARITY = {
    "energy": ("Energy", "energy (meV/atom)", 1000.0),
    "forces": ("Forces", "force component (eV/Å)", 1.0),
    "stress": ("Stress", "stress component (GPa)", 1.0 / units.GPa),
}


def _parity(sets: Mapping[str, ParitySet], quantity: str) -> Panel:
    title, label, scale = PARITY[quantity]
    traces, counts, extent = [], {}, []
    for key, look in SETS.items():
        found = sets.get(key, ParitySet())
        pair = (getattr(found, f"{quantity}_teacher"), getattr(found, f"{quantity}_student"))
        teacher, student = (scale * values for values in plotting.finite(*pair))
        if teacher.size:
            keep = plotting.thinned(teacher.size, student - teacher)
            traces.append(plotting.markers(teacher[keep], student[keep], look))
            counts[SHORT[key]] = teacher.size
            extent += [v[keep].min() for v in (teacher, student)]
            extent += [v[keep].max() for v in (teacher, student)]
    if not traces:
        return Panel(title, None)
    pad = 0.04 * (max(extent) - min(extent)) or 1.0
    ends = np.array([min(extent) - pad, max(extent) + pad])
    diagonal = plotting.line(ends, ends, "", GREY, "dash", showlegend=False, hoverinfo="skip")
    shared = {"range": list(ends), "nticks": 6}
    x = {"title": f"teacher's {label}"} | shared
    y = {"title": f"student's {label}"} | shared
    return Panel(
        title,
        plotting.figure([diagonal, *traces], x, y, showlegend=True),
        plotting.thinning_note(counts, with_worst=True),
    )


def _error_against_force(sets: Mapping[str, ParitySet]) -> Panel:
    title, traces, sizes, errors = (
        "Error against the size of the force",
        [],
        [np.empty(0)],
        [np.empty(0)],
    )
    for key, (_, color, _) in SETS.items():
        found = sets.get(key, ParitySet())
        teacher = np.asarray(found.forces_teacher, float).reshape(-1, 3)
        error = np.asarray(found.forces_student, float).reshape(-1, 3) - teacher
        size, length = plotting.finite(*(np.linalg.norm(v, axis=1) for v in (teacher, error)))
        bins = np.array_split(np.argsort(size), min(24, size.size // 20)) if size.size >= 20 else []
        bins = [b for b in bins if np.median(size[b]) > 0 and np.median(length[b]) > 0]
        if not bins:
            continue
        x = np.array([np.median(size[b]) for b in bins])
        for share, words, dash in ((50, "median", "solid"), (90, "90 %", "dot")):
            y = 1000 * np.array([np.percentile(length[b], share) for b in bins])
            traces.append(plotting.line(x, y, f"{SHORT[key]}: {words}", color, dash))
            sizes.append(x)
            errors.append(y)
    if not traces:
        return Panel(title, None)
    x_axis = plotting.log_axis(
        "size of the teacher's force on an atom (eV/Å)", np.concatenate(sizes)
    )
    y_axis = plotting.log_axis("size of the error (meV/Å)", np.concatenate(errors))
    look = {"showlegend": True, "legend_entrywidth": 0.45, "legend_entrywidthmode": "fraction"}
    note = "Atoms are binned by force, equally many in each bin."
    return Panel(title, plotting.figure(traces, x_axis, y_axis, top=60, **look), note)


def _error_by_element(sets: Mapping[str, ParitySet]) -> Panel:
    title, traces = "Force error by element", []
    for key, (name, color, _) in SETS.items():
        found = sets.get(key, ParitySet())
        difference = np.asarray(found.forces_student) - np.asarray(found.forces_teacher)
        error = 1000 * np.abs(difference.reshape(-1, 3)).mean(axis=1)
        symbols = np.asarray(found.symbols, str)
        if not error.size or symbols.size != error.size:
            continue
        elements = sorted(set(symbols.tolist()))
        means = [float(np.nanmean(error[symbols == element])) for element in elements]
        pattern = {
            "shape": "/" if key == "student_md" else "",
            "fillmode": "overlay",
            "fgcolor": "#FFFFFF",
        }
        bar = {"color": color, "pattern": pattern | {"solidity": 0.15}}
        labels = [html.escape(element) for element in elements]
        text = [f"{mean:.3g}" for mean in means]
        traces.append(
            go.Bar(
                x=labels,
                y=means,
                name=name,
                marker=bar,
                text=text,
                textposition="outside",
                cliponaxis=False,
            )
        )
    x = {"title": "element", "type": "category", "showgrid": False}
    y = {"title": "mean absolute force error (meV/Å)", "rangemode": "tozero"}
    figure = plotting.figure(traces, x, y, bargap=0.45, bargroupgap=0.08)
    return Panel(title, figure.update_layout(showlegend=True) if traces else None)


LEARNING = (
    ("Validation: forces", "validation_forces_mae_meV_per_A", "force error (meV/Å)", BLUE),
    ("Validation: energy", "validation_energy_mae_meV_per_atom", "energy error (meV/atom)", BLUE),
    ("Training loss", "train_loss", "loss", GREEN),
)


def _learning(log: Sequence[Mapping[str, Any]], title: str, key: str, y: str, color: str) -> Panel:
    epoch = column(log, "epoch")
    # A second round of active learning counts its epochs from the start again.
    restarts = np.r_[0.0, np.where(np.diff(epoch) <= 0, epoch[:-1], 0.0)] if epoch.size else epoch
    extra = [column(log, name) for name in ("validation_forces_fidelity", "learning_rate")]
    values = column(log, key)
    shown = np.isfinite(values) & np.isfinite(epoch) & (values > 0)
    if not shown.any():
        return Panel(title, None)
    x, values = (epoch + np.cumsum(restarts))[shown], values[shown]
    hover = "epoch %{x}: %{y:.4~g}<br>force fidelity %{customdata[0]:.2%}"
    hover += "<br>learning rate %{customdata[1]:.2~g}<extra></extra>"
    more: dict[str, Any] = {"customdata": np.column_stack(extra)[shown], "hovertemplate": hover}
    traces = [plotting.line(x, values, "", color, **more)]
    best = int(np.argmin(values))
    unit = f" {y[:-1].split('(')[1]}" if "(" in y else ""
    star = {"symbol": "star", "size": 12, "color": ORANGE}
    point = {"x": x[[best]], "y": values[[best]], "marker": star, "hoverinfo": "skip"}
    traces.append(go.Scatter(mode="markers", showlegend=False, **point))
    figure = plotting.figure(traces, {"title": "epoch"}, plotting.log_axis(y, values), top=16)
    return Panel(
        title, figure, f"Lowest, at the star: {values[best]:.3g}{unit} in epoch {x[best]:,.0f}."
    )


def _energy(run: Trajectory | None) -> Panel:
    title = "Total energy in a constant-energy run"
    if run is None:
        return Panel(title, None)
    time, energy = plotting.finite(run.time_ps, run.total_energy_meV_per_atom)
    if not time.size:
        return Panel(title, None)
    keep = plotting.thinned(time.size)
    traces = [plotting.line(time[keep], energy[keep], "total energy", BLUE)]
    slope = run.drift_meV_per_atom_per_ps
    if slope is not None and np.isfinite(slope):
        ends = time[[0, -1]]
        fitted = energy.mean() + slope * (ends - time.mean())
        traces.append(plotting.line(ends, fitted, "drift (fitted line)", ORANGE, "dash"))
    y = {"title": "change of energy (meV/atom)"}
    note = plotting.thinning_note({"time steps": time.size})
    return Panel(title, plotting.figure(traces, {"title": "time (ps)"}, y), note)


def _temperature(run: Trajectory | None) -> Panel:
    title = "Temperature in the same run"
    if run is None or not np.size(run.temperature_K):
        return Panel(title, None)
    time, kelvin = plotting.finite(run.time_ps, run.temperature_K)
    keep = plotting.thinned(time.size)
    figure = plotting.figure(
        [plotting.line(time[keep], kelvin[keep], "temperature", PURPLE)],
        {"title": "time (ps)"},
        {"title": "temperature (K)"},
    )
    return Panel(
        title, figure if time.size else None, plotting.thinning_note({"time steps": time.size})
    )


def _step_times(table: Sequence[Mapping[str, Any]]) -> Panel:
    title, traces, times, sizes = "Time of one MD step", [], [np.empty(0)], [np.empty(0)]
    devices = list(dict.fromkeys(str(row.get("device")) for row in table))
    for number, device in enumerate(devices):
        mine = [row for row in table if str(row.get("device")) == device]
        systems = [html.escape(str(row.get("system"))) for row in mine]
        for who, color, symbol in (("teacher", GREY, "square"), ("student", BLUE, "circle")):
            n_atoms, time = column(mine, "n_atoms"), column(mine, f"{who}_ms_per_step")
            shown = np.isfinite(n_atoms) & np.isfinite(time) & (n_atoms > 0) & (time > 0)
            if not shown.any():
                continue
            name = who if len(devices) == 1 else f"{who}, {html.escape(device)}"
            hover = "%{text}, %{x:,} atoms: %{y:.3~g} ms<extra>" + name + "</extra>"
            trace = plotting.line(
                n_atoms[shown], time[shown], name, color, ("solid", "dot")[number % 2]
            )
            trace.update(mode="lines+markers", hovertemplate=hover)
            trace.update(text=[s for s, keep in zip(systems, shown, strict=True) if keep])
            trace.update(marker={"symbol": symbol, "size": 9})
            traces.append(trace)
            sizes.append(n_atoms[shown])
            times.append(time[shown])
    if not traces:
        return Panel(title, None)
    x = plotting.log_axis("atoms", np.concatenate(sizes))
    y = plotting.log_axis("milliseconds per step", np.concatenate(times))
    top = 40 if len(traces) < 3 else 30 + 20 * len(traces)
    return Panel(title, plotting.figure(traces, x, y, top=top))


def _speedups(table: Sequence[Mapping[str, Any]]) -> Panel:
    title, speedup = "How many times faster", column(table, "speedup")
    shown = [(row, s) for row, s in zip(table, speedup, strict=True) if np.isfinite(s)]
    if not shown:
        return Panel(title, None)
    devices = {str(row.get("device")) for row, _ in shown}
    labels = [_system(row, with_device=len(devices) > 1) for row, _ in shown]
    values = [s for _, s in shown]
    text = [f"{s:,.3g} ×" for s in values]
    bars = go.Bar(y=labels, x=values, orientation="h", text=text, marker={"color": BLUE})
    bars.update(textposition="outside", cliponaxis=False, hoverinfo="skip")
    x = {"title": "teacher's time / student's time", "range": [0, 1.2 * max(values)]}
    return Panel(title, plotting.figure([bars], x, plotting.CATEGORIES, top=16, bargap=0.4))


def _system(row: Mapping[str, Any], *, with_device: bool) -> str:
    parts = [str(row.get("system"))]
    size = column([row], "n_atoms")[0]
    parts += [f"{size:,.0f} atoms"] if np.isfinite(size) else []
    parts += [str(row.get("device"))] if with_device else []
    return "<br>".join(html.escape(part) for part in parts)


LOWEST = (1.0, 1e-3)
"""Energy (meV/atom) and force (eV/Å) below which a logarithmic axis would stretch for nothing."""


def _coverage(labels: Sampling | None) -> Panel:
    title = "What the teacher was asked"
    if labels is None or not np.size(labels.energy_meV_per_atom):
        return Panel(title, None)
    energy = np.maximum(np.asarray(labels.energy_meV_per_atom, float), LOWEST[0])
    force = np.maximum(np.asarray(labels.max_force, float), LOWEST[1])
    generation = [f"{g:.0f}" if np.isfinite(g) else "none" for g in labels.generation]
    words = zip(labels.source, labels.branch, generation, strict=True)
    hover = np.array([[html.escape(str(word)) for word in row] for row in words])
    traces, counts, split = [], {}, np.asarray(labels.split, str)
    for key in [*SPLITS, *sorted(set(split.tolist()) - SPLITS.keys())]:
        look = SPLITS.get(key, (html.escape(key), PURPLE, "x"))
        mine = np.flatnonzero((split == key) & np.isfinite(energy) & np.isfinite(force))
        if mine.size:
            keep = mine[plotting.thinned(mine.size)]
            traces.append(plotting.markers(energy[keep], force[keep], look, customdata=hover[keep]))
            counts[html.unescape(look[0])] = mine.size
    if not traces:
        return Panel(title, None)
    text = "%{x:.4~g} meV/atom, %{y:.3~g} eV/Å<br>source %{customdata[0]}, "
    text += "branch %{customdata[1]}, generation %{customdata[2]}"
    x_axis = plotting.log_axis("energy above the lowest (meV/atom)", energy[np.isfinite(energy)])
    y_axis = plotting.log_axis("largest force in the structure (eV/Å)", force[np.isfinite(force)])
    figure = plotting.figure(traces, x_axis, y_axis)
    figure.update_traces(hovertemplate=text)
    edges = "Smaller values are drawn at {:g} meV/atom and {:g} eV/Å.".format(*LOWEST)
    return Panel(title, figure, f"{plotting.thinning_note(counts)} {edges}".strip())


def _generations(labels: Sampling | None) -> Panel:
    title = "Labels by generation and source"
    if labels is None or not np.size(labels.generation):
        return Panel(title, None)
    generation, source = np.asarray(labels.generation, float), np.asarray(labels.source, str)
    steps = sorted({int(g) for g in generation[np.isfinite(generation)]})
    some_without = bool(np.isnan(generation).any())
    places = [str(step) for step in steps] + (["none"] if some_without else [])
    traces = []
    for number, name in enumerate(sorted(set(source.tolist()))):
        mine = generation[source == name]
        counts = [int((mine == step).sum()) for step in steps]
        counts += [int(np.isnan(mine).sum())] if some_without else []
        pattern = {
            "shape": ("", "/", "x", ".", "\\")[number % 5],
            "fillmode": "overlay",
            "fgcolor": "#FFFFFF",
        }
        color = (BLUE, ORANGE, GREEN, PURPLE, GREY)[number % 5]
        marker = {"color": color, "pattern": pattern | {"solidity": 0.15}}
        bars = {"x": places, "y": counts, "marker": marker}
        traces.append(go.Bar(name=html.escape(name), **bars))
    x = {"title": "generation: steps away from a given structure", "type": "category"}
    figure = plotting.figure(
        traces,
        x | {"showgrid": False},
        {"title": "labels"},
        barmode="stack",
        top=40 + 20 * (len(traces) // 4),
    )
    return Panel(title, figure)


def _rounds(log: Sequence[Mapping[str, Any]]) -> Panel:
    title = "Error met by the student's dynamics, round by round"
    low, middle, high = (100 * column(log, name) for name in ROUND_QUARTILES)
    labels = np.cumsum(column(log, "n_labels"))
    shown = np.isfinite(low + middle + high + labels)
    if not shown.any():
        return Panel(title, None)
    spread = {"array": (high - middle)[shown], "arrayminus": (middle - low)[shown]}
    hover = "%{y:.3g} % after %{x} labels<extra></extra>"
    trace = plotting.line(labels[shown], middle[shown], "", BLUE, hovertemplate=hover)
    trace.update(mode="lines+markers", error_y={"type": "data", "thickness": 1, **spread})
    figure = plotting.figure(
        [trace],
        {"title": "labels got by active learning"},
        {"title": "force error (%)", "rangemode": "tozero"},
        top=16,
    )
    note = "Relative force error where the teacher was asked: median and quartiles. "
    note += "It may rise while the walkers' strides grow."
    return Panel(title, figure, note)


def _curve(title: str, curve: Curve | None, x: str, y: str) -> Panel:
    if curve is None or not np.isfinite(curve.student).any():
        return Panel(title, None)
    traces = [plotting.line(curve.x, curve.student, "student", BLUE)]
    if curve.teacher is not None and np.isfinite(curve.teacher).any():
        traces.append(plotting.line(curve.x, curve.teacher, "teacher", ORANGE, "dash"))
    figure = plotting.figure(
        traces, {"title": x}, {"title": y, "rangemode": "tozero"}, showlegend=True
    )
    return Panel(title, figure)


def _rdf(curve: Curve | None) -> Panel:
    return _curve("Radial distribution function", curve, "distance (Å)", "g(r)")


def _msd(curve: Curve | None) -> Panel:
    return _curve("Mean squared displacement", curve, "time (ps)", "displacement² (Å²)")
