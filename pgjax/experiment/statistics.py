"""Figures over few seeds: the interquartile mean and its bootstrap interval.

References:
    Agarwal et al. 2021, Deep RL at the edge of the statistical precipice.
"""

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


def iqm(x: Any, axis: int = 0) -> Any:
    """Interquartile mean: what is left after a quarter of the values is cut off at both ends.

    Args:
        x: `[S, ...]`, one value a seed.
        axis: of the seeds.

    Returns:
        `[...]`; up to three values are simply averaged.

    Example:
        >>> float(iqm([0.0, 1.0, 2.0, 99.0]))
        1.5
    """
    x = np.asarray(x, float)
    if 0 < x.shape[axis] < 4:  # of these nothing is cut off, and importing scipy takes half a second
        return x.mean(axis)
    from scipy.stats import trim_mean

    return trim_mean(x, 0.25, axis=axis)


def interval(x: Any, confidence: float = 0.95, num_resamples: int = 2000) -> tuple[Any, Any]:
    """Percentile bootstrap interval of the interquartile mean; the same numbers give the same interval.

    Args:
        x: `[S, ...]`, one value a seed.
        confidence: how often it should cover the mean of many seeds; few seeds make it too narrow.
        num_resamples: of the seeds, with replacement.

    Returns:
        Lower and upper end `[...]`; NaN for a single seed, which says nothing about others.

    Example:
        >>> low, high = interval([3.0, 3.0, 3.0])
        >>> float(low), float(high)
        (3.0, 3.0)
    """
    x = np.asarray(x, float)
    if len(x) < 2:
        nothing = np.full(x.shape[1:], np.nan)[()]
        return nothing, nothing
    from scipy.stats import bootstrap

    result = bootstrap(
        (x,),
        iqm,
        axis=0,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return np.asarray(low)[()], np.asarray(high)[()]


def scores(
    env_steps: Floats, episodes: Floats, returns: Floats, steps: int, least: int = 100
) -> tuple[Floats, np.ndarray[Any, Any]]:
    """What each seed has reached at a given number of steps.

    The episode-weighted mean of a seed's latest iterations up to the one in which it reached `steps`, as
    many of them as it takes to have `least` episodes.

    Args:
        env_steps: `[S, I]`, of each iteration.
        episodes: `[S, I]`, that ended in it.
        returns: `[S, I]`, the sum of their returns.
        steps: where to read; a seed that is not there yet is read at its last iteration.
        least: episodes wanted.

    Returns:
        The means `[S]`, NaN where no episode ended, and the number of episodes in each `[S]`.
    """
    until = np.cumsum(env_steps, axis=1) - env_steps < steps
    counted, summed = np.where(until, episodes, 0)[:, ::-1], np.where(until, returns, 0.0)[:, ::-1]
    taken = np.cumsum(counted, axis=1) - counted < least
    number = (counted * taken).sum(axis=1)
    total = np.where(taken & (counted > 0), summed, 0.0).sum(axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan), number.astype(int)
