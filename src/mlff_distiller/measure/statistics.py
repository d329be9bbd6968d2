"""Numbers about samples: latencies, slopes, ratios, and what noise allows to say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

N_BLOCKS = 20
N_QUANTILES = 101
_N_DRAWS = 1000


def latency(samples_ms: Array) -> dict[str, float | int | None]:
    """Mean, spread and percentiles; a percentile needs enough samples beyond it."""
    n = len(samples_ms)

    def percentile(q: float, least: int) -> float | None:
        return float(np.percentile(samples_ms, q)) if n >= least else None

    return {
        "n_samples": n,
        "mean": float(samples_ms.mean()),
        "std": float(samples_ms.std()),
        "min": float(samples_ms.min()),
        "max": float(samples_ms.max()),
        "median": float(np.median(samples_ms)),
        "p95": percentile(95, 20),
        "p99": percentile(99, 100),
    }


def quantiles(samples_ms: Array) -> list[float]:
    """0, 1, …, 100 %: what a distribution is drawn from."""
    return [round(float(q), 6) for q in np.quantile(samples_ms, np.linspace(0, 1, N_QUANTILES))]


def blocks(samples: Array) -> list[float]:
    """Medians of consecutive parts: they scatter as the machine does, single steps do not."""
    parts = np.array_split(samples, min(N_BLOCKS, len(samples)))
    return [round(float(np.median(part)), 6) for part in parts]


def ratio(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> dict[str, float]:
    """Median of b over median of a, with the 95 % interval of a bootstrap.

    ``a`` and ``b``: block medians of each repeat. Repeats are drawn first, then their blocks.
    """
    rng = np.random.default_rng(0)

    def drawn(repeats: Sequence[Sequence[float]]) -> Array:
        n = min(map(len, repeats))
        values = np.array([own[:n] for own in repeats])
        which = rng.integers(len(values), size=(_N_DRAWS, len(values), 1))
        picked = values[which, rng.integers(n, size=(_N_DRAWS, len(values), n))]
        medians: Array = np.median(picked.reshape(_N_DRAWS, -1), axis=1)
        return medians

    ratios = drawn(b) / drawn(a)
    centre = np.median(np.concatenate([*b])) / np.median(np.concatenate([*a]))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return {"ratio": float(centre), "low": float(low), "high": float(high)}


def quiet(block_medians: Sequence[float]) -> float:
    """What the quietest tenth of a run took: whatever disturbs a machine makes it slower."""
    return float(np.quantile(block_medians, 0.1))


def noise(repeats: Sequence[Sequence[float]]) -> float:
    """By how much the quietest repeat could be off, relative; from the block medians of each.

    It is its distance to the next (for want of one, the scatter of its blocks), or half of what
    disturbs its usual step, if that is more: where hardly any part was quiet, who knows.
    """
    levels = [quiet(blocks) for blocks in repeats]
    own = np.asarray(repeats[int(np.argmin(levels))])
    best, usual = min(levels), float(np.median(own))
    if best <= 0:
        return 0.0
    apart = (sorted(levels)[1] - best) / best if len(levels) > 1 else float(own.std()) / usual
    return max(apart, 0.5 * (usual / best - 1.0))
