"""What a Chrome trace of PyTorch's profiler says: kernels, launches, copies, gaps, memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mlff_distiller.measure.meters import thinned

STEP = "md step"
"""Name of the range around each step."""

_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_CALLS = ("cuda_runtime", "cuda_driver")
_ROWS = 30

Event = Mapping[str, Any]


def analyse(events: Sequence[Event], n: int) -> dict[str, Any]:
    """Per step, in µs: what ranges called ``STEP`` span, which hold ``n`` steps in all.

    ``gpu`` is None without work on a GPU.
    """
    steps = [e for e in events if e.get("name") == STEP and e.get("cat") == "user_annotation"]
    begin = min((e["ts"] for e in steps), default=0.0)
    end = max((e["ts"] + e["dur"] for e in steps), default=0.0)
    inside = [e for e in events if "dur" in e and begin <= e["ts"] <= end]
    return {
        "n_steps": n if steps else 0,
        "window_us": (end - begin) / n,
        "gpu": _gpu(inside, begin, end, n),
        "operators": _operators(inside, n),
        "allocations": _allocations(events, begin, end, n),
    }


def _gpu(events: Iterable[Event], begin: float, end: float, n: int) -> dict[str, Any] | None:
    work = [e for e in events if e.get("cat") in _ON_GPU]
    if not work:
        return None
    busy = union([(e["ts"], min(e["ts"] + e["dur"], end)) for e in work])
    gaps = [b - a for (_, a), (b, _) in pairwise(busy)]
    edges = max(0.0, busy[0][0] - begin) + max(0.0, end - busy[-1][1])
    total = sum(b - a for a, b in busy)
    calls = [e for e in events if e.get("cat") in _CALLS]
    launches = [e for e in calls if "Launch" in e["name"]]
    waits = [e for e in calls if "Synchronize" in e["name"]]
    return {
        "busy_us": total / n,
        "utilisation": total / (end - begin) if end > begin else 0.0,
        "idle_us": (sum(gaps) + edges) / n,
        "largest_gap_us": max([*gaps, 0.0]),
        "n_gaps": len(gaps) / n,
        "n_kernels": sum(e["cat"] == "kernel" for e in work) / n,
        "n_launches": len(launches) / n,
        "n_graph_launches": sum("Graph" in e["name"] for e in launches) / n,
        "launch_us": sum(e["dur"] for e in launches) / n,
        "wait_us": sum(e["dur"] for e in waits) / n,
        "copies": _copies(work, n),
        "kernels": _table(((e["name"], e["dur"]) for e in work if e["cat"] == "kernel"), n),
    }


def union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Disjoint, ascending; streams run at the same time, and that time counts once."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found


def _copies(work: Iterable[Event], n: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for e in work:
        if e["cat"] != "gpu_memcpy":
            continue
        for direction in ("HtoD", "DtoH", "DtoD"):
            if direction in e["name"]:
                row = found.setdefault(direction, {"n": 0.0, "us": 0.0, "bytes": 0.0})
                row["n"] += 1 / n
                row["us"] += e["dur"] / n
                row["bytes"] += float(e.get("args", {}).get("bytes", 0)) / n
    return found


def _table(rows: Iterable[tuple[str, float]], n: int) -> list[dict[str, Any]]:
    """The costliest first: how often a step, µs a step, share of all."""
    count: dict[str, int] = defaultdict(int)
    spent: dict[str, float] = defaultdict(float)
    for name, us in rows:
        count[name] += 1
        spent[name] += us
    total = sum(spent.values()) or 1.0
    names = sorted(spent, key=lambda name: -spent[name])
    return [
        {
            "name": name,
            "n": count[name] / n,
            "us": spent[name] / n,
            "mean_us": spent[name] / count[name],
            "share": spent[name] / total,
        }
        for name in names[:_ROWS]
    ]


def _operators(events: Iterable[Event], n: int) -> list[dict[str, Any]]:
    """PyTorch's operators by their own time, without those they call."""
    own: list[tuple[str, float]] = []
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for e in events:
        if e.get("cat") == "cpu_op":
            by_thread[e.get("pid"), e.get("tid")].append(e)
    for members in by_thread.values():
        members.sort(key=lambda e: (e["ts"], -e["dur"]))
        stack: list[list[Any]] = []  # name, end, own time
        for e in members:
            while stack and e["ts"] >= stack[-1][1]:
                name, _, time = stack.pop()
                own.append((name, time))
            if stack:
                stack[-1][2] -= e["dur"]
            stack.append([e["name"], e["ts"] + e["dur"], e["dur"]])
        own += [(name, time) for name, _, time in stack]
    return _table(own, n)


def _allocations(
    events: Iterable[Event], begin: float, end: float, n: int
) -> dict[str, dict[str, Any]]:
    """Of PyTorch's allocators on the host and the GPU, by device: number, peak, course."""
    found: dict[str, list[tuple[float, int, int]]] = {}
    for e in events:
        if e.get("name") != "[memory]" or not begin <= e["ts"] <= end:
            continue
        args = e["args"]
        device = {0: "cpu", 1: "cuda"}.get(int(args.get("Device Type", 0)), "other")
        row = (e["ts"], int(args.get("Bytes", 0)), int(args.get("Total Allocated", 0)))
        found.setdefault(device, []).append(row)
    told = {}
    for device, rows in found.items():
        rows.sort()
        level, course = 0, []
        for ts, size, total in rows:
            level = total if device == "cuda" else level + size
            course.append(((ts - begin), level))
        keep = thinned(len(course))
        sizes = [size for _, size, _ in rows]
        told[device] = {
            "n": sum(size > 0 for size in sizes) / n,
            "bytes": sum(size for size in sizes if size > 0) / n,
            "peak_MiB": max(value for _, value in course) / 2**20,
            "left_MiB": (course[-1][1] - course[0][1]) / 2**20,
            "series": {
                "us": [round(course[k][0], 1) for k in keep],
                "MiB": [round(course[k][1] / 2**20, 4) for k in keep],
            },
        }
    return told
