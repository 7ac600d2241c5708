"""What a run has counted, iteration by iteration: how far it is, its scores, and the rows of its metrics."""

import math
from typing import Any

import numpy as np

from pgjax.experiment import statistics
from pgjax.experiment.presets import Preset
from pgjax.experiment.store import SUMS


def iterations_left(steps: int, most: int, history: dict[str, Any], diverged_at: Any) -> int:
    """Iterations that the slowest healthy seed needs at least: nobody runs past the end by more than one.

    Args:
        steps: wanted of every seed.
        most: environment steps of one iteration, at most.
        history: sums of every iteration so far, `[S, I]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        How many; 0 at the end.
    """
    healthy = history["env_steps"].sum(axis=1)[diverged_at < 0]
    return max(0, math.ceil((steps - healthy.min()) / most)) if len(healthy) else 0


def extend(history: dict[str, Any], metrics: dict[str, Any], diverged_at: Any) -> dict[str, Any]:
    """The sums of all iterations; nothing counts of a seed from its divergence on.

    Args:
        history: sums of every iteration before, `[S, I]`.
        metrics: of the iterations that follow, `[S, J]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        The sums, `[S, I + J]`.
    """
    start, length = history["env_steps"].shape[1], metrics["env_steps"].shape[1]
    counts = (diverged_at[:, None] < 0) | (start + np.arange(length) < diverged_at[:, None])
    rows = {k: np.where(counts, metrics[k], 0.0) for k in SUMS}
    return {k: np.concatenate([history[k], rows[k]], axis=1) for k in SUMS}


def scores(history: dict[str, Any], steps: int) -> tuple[Any, Any]:
    """Over each seed's latest episodes.

    Args:
        history: sums of every iteration, `[S, I]`.
        steps: wanted of every seed.

    Returns:
        The returns, NaN before the first episode, and how many episodes they are the mean of, each `[S]`.
    """
    return statistics.scores(history["env_steps"], history["episodes"], history["episode_return_sum"], steps)


def metric_columns(
    names: Any, history: dict[str, Any], metrics: dict[str, Any], diverged_at: Any
) -> dict[str, Any]:
    """The rows that follow `history`, by iteration; a seed's last row is that of its divergence.

    Args:
        names: what stands in the column `seed`, `[S]`.
        history: sums of every iteration before, `[S, I]`.
        metrics: of the iterations that follow, `[S, J]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        Columns by name, as metrics.csv has them.
    """
    iteration = history["env_steps"].shape[1] + np.arange(metrics["env_steps"].shape[1])
    written = ((diverged_at[:, None] < 0) | (iteration <= diverged_at[:, None])).T
    before = history["env_steps"].sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "seed": np.broadcast_to(names[:, None], (len(names), len(iteration))),
            "iteration": np.broadcast_to(iteration, (len(names), len(iteration))),
            "env_steps": (before + np.cumsum(metrics["env_steps"], axis=1)).astype(np.int64),
            "episodes": metrics["episodes"].astype(np.int64),
            "episode_return": metrics["episode_return_sum"] / metrics["episodes"],
            "episode_length": metrics["episode_length_sum"] / metrics["episodes"],
        }
    columns |= {k: v for k, v in metrics.items() if k not in SUMS}
    return {k: v.T[written] for k, v in columns.items()}


def summarize(preset: Preset, names: Any, history: dict[str, Any], diverged_at: Any) -> dict[str, Any]:
    """The scores of a run.

    Args:
        preset: the settings.
        names: the seeds `[S]`.
        history: sums of every iteration, `[S, I]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        What summary.json says of them.
    """
    returns, episodes = scores(history, preset.steps)
    known = returns[~np.isnan(returns)]
    low, high = statistics.interval(known) if len(known) > 1 else (math.nan, math.nan)
    return {
        "algorithm": preset.algorithm,
        "environment": preset.environment,
        "steps": preset.steps,
        "seeds": names,
        "iterations": history["env_steps"].shape[1],
        "env_steps": history["env_steps"].sum(axis=1).astype(int),
        "final_return": returns,
        "final_episodes": episodes,
        "iqm": float(statistics.iqm(known)) if len(known) else None,
        "iqm_interval": None if math.isnan(low) else [float(low), float(high)],
        "diverged": by_seed(names, diverged_at),
    }


def by_seed(names: Any, diverged_at: Any) -> dict[int, int]:
    """The iteration in which a seed diverged, of those that did.

    Args:
        names: the seeds `[S]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        Iterations by seed.
    """
    return {int(s): int(i) for s, i in zip(names, diverged_at, strict=True) if i >= 0}
