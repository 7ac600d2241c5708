"""Learning curves on a matplotlib axes; nothing here touches pyplot, so no display is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgjax.experiment.statistics import interval, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#2a6fbb", "#d1495b", "#3a8f5c", "#e08e1b", "#7a5aa6", "#3aa6a6", "#8c5a3c", "#555555")
_NUM_POINTS = 100


def new_axes(width: float = 7.0, height: float = 4.2) -> "Axes":
    """Axes on a figure of their own.

    Args:
        width: inches.
        height: inches.

    Returns:
        The axes; `ax.figure` is the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def save(ax: "Axes", path: Path) -> None:
    """Write the axes' figure.

    Args:
        ax: the axes.
        path: where; the ending says in which format.
    """
    ax.get_figure(root=True).savefig(path, dpi=150)  # pyright: ignore[reportOptionalMemberAccess]


def learning_curve(
    metrics: Mapping[str, Any], ax: "Axes | None" = None, *, label: str = "", color: str = _COLORS[0]
) -> "Axes":
    """Episode return against environment steps: every seed, their interquartile mean and its interval.

    Args:
        metrics: columns of a run's `metrics.csv`.
        ax: where to draw; None makes new axes.
        label: of the run; in the title if it stands alone.
        color: of the run.

    Returns:
        The axes.
    """
    ax = new_axes() if ax is None else ax
    x, curves = curves_by_seed(metrics)
    several = len(curves) > 1
    for number, curve in enumerate(curves):
        seeds = f"each of {len(curves)} seeds" if several else "one seed"
        style: dict[str, Any] = {"alpha": 0.35, "linewidth": 0.8} if several else {"linewidth": 1.8}
        ax.plot(x, curve, color=color, label=None if number else seeds, **style)
    if several:
        _draw_mean(ax, x, curves, color, "interquartile mean, 95 % interval")
    ax.set_title(label)
    return _finish(ax)


def compare(runs: Mapping[str, Mapping[str, Any]], ax: "Axes | None" = None) -> "Axes":
    """Several runs: the interquartile mean of each over its seeds, with its 95 % bootstrap interval.

    Args:
        runs: metrics by label.
        ax: where to draw; None makes new axes.

    Returns:
        The axes.
    """
    ax = new_axes() if ax is None else ax
    for number, (label, metrics) in enumerate(runs.items()):
        x, curves = curves_by_seed(metrics)
        seeds = f"{len(curves)} seed{'s' if len(curves) > 1 else ''}"
        _draw_mean(ax, x, curves, _COLORS[number % len(_COLORS)], f"{label} ({seeds})")
    ax.set_title("Interquartile mean over seeds, 95 % bootstrap interval")
    return _finish(ax)


def curves_by_seed(metrics: Mapping[str, Any], num_points: int = _NUM_POINTS) -> tuple[Any, Any]:
    """Every seed's return on one common grid of environment steps.

    Each point is the mean over the episodes that ended since the point before; where none did, the last
    known value goes on. A seed that stopped early is not continued.

    Args:
        metrics: columns `seed`, `env_steps`, `episodes` and `episode_return`.
        num_points: of the grid; fewer if there are fewer iterations.

    Returns:
        The grid `[P]` and the returns `[S, P]`, NaN before the first episode and after the last iteration.
    """
    seed, steps, episodes = (np.asarray(metrics[k], float) for k in ("seed", "env_steps", "episodes"))
    total = np.nan_to_num(np.asarray(metrics["episode_return"], float)) * episodes
    seeds = np.unique(seed)
    if not len(seed):
        return np.zeros(0), np.zeros((0, 0))
    num_points = max(1, min(num_points, len(seed) // len(seeds)))
    grid = np.linspace(0.0, steps.max(), num_points + 1)[1:]
    curves = np.full((len(seeds), num_points), np.nan)
    for row, one in enumerate(seeds):
        mine = seed == one
        bins = np.minimum(np.searchsorted(grid, steps[mine]), num_points - 1)
        count = np.bincount(bins, episodes[mine], num_points)
        known = count > 0
        if not known.any():
            continue
        mean = np.bincount(bins, total[mine], num_points) / np.where(known, count, 1.0)
        latest = np.maximum.accumulate(np.where(known, np.arange(num_points), -1))
        inside = (latest >= 0) & (np.arange(num_points) <= bins.max())
        curves[row, inside] = mean[latest[inside]]
    return grid, curves


def _draw_mean(ax: "Axes", x: Any, curves: Any, color: str, label: str) -> None:
    """IQM and band where every seed has a value: a mean over other seeds at other points would jump."""
    curves = curves[~np.isnan(curves).all(axis=1)]  # a seed that never ended an episode has no curve
    complete = ~np.isnan(curves).any(axis=0)
    if not len(curves) or not complete.any():
        return
    x, curves = x[complete], curves[:, complete]
    ax.plot(x, iqm(curves), color=color, linewidth=2.2, label=label)
    if len(curves) > 1:
        ax.fill_between(x, *interval(curves, num_resamples=1000), color=color, alpha=0.18, linewidth=0)


def _finish(ax: "Axes") -> "Axes":
    from matplotlib.ticker import EngFormatter

    ax.set_xlabel("environment steps (per seed)")
    ax.set_ylabel("episode return (undiscounted sum of rewards)")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.02)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="best")
    return ax
