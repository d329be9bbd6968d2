"""Statistics of correlated series, of timings, and of memory that grows.

Neighbouring samples of a trajectory are alike, so a standard error must not count them one by one.
The series is cut into consecutive blocks, long against its correlation time, whose means are
independent (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989)). Timings are cut into blocks
too, but their medians are compared: a disturbance of the machine makes single steps slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

N_BLOCKS = 10
"""Ten blocks know their own scatter to within 1/sqrt(2·9) = 24 %."""
_WINDOW = 5.0
"""Sokal's: the sum over the autocorrelation ends after this many correlation times."""
N_MEDIANS = 20
N_QUANTILES = 101
_N_DRAWS = 1000
LEAST_STEPS = 500
"""A shorter run cannot tell a leak from a cache that fills."""
SMALLEST_GROWTH_BYTES = 256 * 1024
"""Over the whole run. A few pages or arenas more are not a leak."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error."""

    value: float
    error: float

    def beyond_noise(self, expected: float, n_errors: float = 3.0) -> float:
        """What of ``|value - expected|`` is left when ``n_errors`` standard errors are taken off.

        Zero for 99.7 % of sound measurements, however long or short they were.
        """
        return max(0.0, abs(self.value - expected) - n_errors * self.error)


def block_means(series: Array, n_blocks: int = N_BLOCKS) -> Array:
    """Means of ``n_blocks`` equally long consecutive parts of (n, ...): (n_blocks, ...).

    What is left over is taken from the beginning, where equilibration may still go on.
    """
    length = len(series) // n_blocks
    if not length:
        raise ValueError(f"{len(series)} samples make no {n_blocks} blocks")
    kept = series[len(series) - n_blocks * length :]
    return np.asarray(kept.reshape(n_blocks, length, *series.shape[1:]).mean(1))


def mean(series: Array, n_blocks: int = N_BLOCKS) -> Estimate | None:
    """Mean of (n,); None below two samples a block.

    The standard error is that of block means, or ``std sqrt(2 tau / n)`` by the correlation time if
    that is more: in a short run either may happen to be small.
    """
    if len(series) < 2 * n_blocks:
        return None
    by_blocks = block_means(series, n_blocks).std(ddof=1) / np.sqrt(n_blocks)
    by_time = series.std() * np.sqrt(2.0 * correlation_time(series) / len(series))
    return Estimate(float(series.mean()), float(max(by_blocks, by_time)))


def variance(series: Array, n_blocks: int = N_BLOCKS) -> Estimate | None:
    """Variance of (n,) about its mean, as the mean of squared deviations; as `mean` otherwise."""
    return mean((series - series.mean()) ** 2, n_blocks) if len(series) else None


def slope(x: Array, y: Array, n_blocks: int = 2 * N_BLOCKS) -> Estimate | None:
    """Least-squares slope of block means of ``y`` (n,) against those of ``x`` (n,).

    The standard error is that of a regression through means that scatter independently:
    ``sqrt(sum(residuals²) / (n_blocks - 2) / sum((x - <x>)²))``. None below two samples a block.
    """
    if len(x) < 2 * n_blocks:
        return None
    at, of = block_means(x, n_blocks), block_means(y, n_blocks)
    centred = at - at.mean()
    value = float(centred @ (of - of.mean()) / (centred @ centred))
    residuals = of - of.mean() - value * centred
    error = np.sqrt(residuals @ residuals / (n_blocks - 2) / (centred @ centred))
    return Estimate(value, float(error))


def correlation_time(series: Array) -> float:
    """Integrated autocorrelation time of (n,) in samples; 0.5 if they are independent.

    ``tau = 1/2 + sum_t rho(t)`` up to the first ``t >= 5 tau`` (Sokal). A mean over n samples knows
    as much as one over ``n / (2 tau)`` independent ones.
    """
    centred = series - series.mean()
    n = len(series)
    power = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
    correlation = np.fft.irfft(power)[:n]
    if not correlation[0] > 0:
        return 0.5
    tau = 0.5 + np.cumsum(correlation[1:] / correlation[0])
    enough = np.flatnonzero(np.arange(1, n) >= _WINDOW * tau)
    return max(0.5, float(tau[enough[0]] if len(enough) else tau.max(initial=0.5)))


def growth(steps: Array, memory_bytes: Array) -> dict[str, Any]:
    """Slope in bytes per step, its standard error, and whether that is a leak.

    A leak grows by 256 KiB in all, steadily: at least three of four quarters of the run each bring
    a tenth of it, and the slope half. A cache fills once. Below 500 steps it is unknown (None). The
    slope is the median of those between all pairs of points (Theil and Sen).
    """
    if len(steps) < 8 or steps[-1] <= steps[0]:
        return {"growth_bytes_per_step": None, "growth_error": None, "grows": None}
    keep = np.unique(np.linspace(0, len(steps) - 1, 200).astype(int))
    x, y = steps[keep].astype(float), memory_bytes[keep].astype(float)
    i, j = np.triu_indices(len(x), 1)
    slope = float(np.median((y[j] - y[i]) / (x[j] - x[i])))
    parts = np.array_split(np.arange(len(y)), 4)
    gains = np.array([y[part[-1]] - y[part[0]] for part in parts])
    slopes = gains / [max(x[part[-1]] - x[part[0]], 1.0) for part in parts]
    total = float(y[-1] - y[0])
    steady = (gains >= 0.1 * total).sum() >= 3 and slope * (x[-1] - x[0]) >= 0.5 * total
    leaks = bool(total >= SMALLEST_GROWTH_BYTES and steady)
    error = float(slopes.std(ddof=1) / 2.0)
    return {
        "growth_bytes_per_step": round(slope, 2),
        "growth_error": round(error, 2),
        "grows": leaks if x[-1] - x[0] >= LEAST_STEPS else None,
    }


# -- timings ---------------------------------------------------------------------------------------


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


def block_medians(samples: Array) -> list[float]:
    """Medians of up to 20 consecutive parts: they scatter as the machine does, not as steps do."""
    parts = np.array_split(samples, min(N_MEDIANS, len(samples)))
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

    It is its distance to the next (without one, the scatter of its blocks), or half of what
    disturbs its usual step, if that is more: where hardly any part was quiet, who knows.
    """
    levels = [quiet(blocks) for blocks in repeats]
    own = np.asarray(repeats[int(np.argmin(levels))])
    best, usual = min(levels), float(np.median(own))
    if best <= 0:
        return 0.0
    apart = (sorted(levels)[1] - best) / best if len(levels) > 1 else float(own.std()) / usual
    return max(apart, 0.5 * (usual / best - 1.0))
