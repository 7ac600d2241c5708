"""Learning curves on a matplotlib axes; nothing here touches pyplot, so no display is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgjax.experiment.statistics import interval, iqm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#2a6fbb", "#d1495b", "#3a8f5c", "#e08e1b", "#7a5aa6", "#3aa6a6", "#8c5a3c", "#555555")
_NUM_POINTS = 100
_MOST_LABELS = 120  # cells of a heat map; beyond that figures in them cannot be read
_MOST_TICKS = 8


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


def heat_map(
    settings: Sequence[Mapping[str, Any]], returns: Sequence[Any], ax: "Axes | None" = None
) -> "Axes":
    """Scores of a grid over its first two options: the best over the others; with one option a line.

    Args:
        settings: values by option, the same options in each; at least one.
        returns: of each setting, one a seed; NaN where there is none.
        ax: where to draw; None makes new axes.

    Returns:
        The axes.
    """
    from matplotlib import colormaps

    first, *others = settings[0]
    values = _values(settings, first)
    if not others:
        ax = new_axes() if ax is None else ax
        return _draw_line(ax, first, [(s[first], r) for s, r in zip(settings, returns, strict=True)])
    second, *rest = others
    columns = _values(settings, second)
    scores = np.full((len(values), len(columns)), np.nan)
    shown: dict[tuple[int, int], str] = {}
    for setting, seeds in zip(settings, returns, strict=True):
        cell = values.index(setting[first]), columns.index(setting[second])
        score = _score(seeds)
        if not np.isnan(score) and not score <= scores[cell]:
            scores[cell] = score
            low, high = interval(_known(seeds))
            shown[cell] = _figure(score) + ("" if np.isnan(low) else f"\n[{_figure(low)}, {_figure(high)}]")
    ax = new_axes(2.6 + 1.0 * max(3, len(columns)), 1.8 + 0.62 * max(3, len(values))) if ax is None else ax
    colors = colormaps["viridis"].with_extremes(bad="#eeeeee")
    image = ax.imshow(np.ma.masked_invalid(scores), cmap=colors, aspect="auto", origin="lower")
    _label_cells(ax, image, scores, shown)
    ax.set_xticks(range(len(columns)), map(_label, columns))
    ax.set_yticks(range(len(values)), map(_label, values))
    ax.set_xlabel(second)
    ax.set_ylabel(first)
    ax.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    ax.set_yticks(np.arange(1, len(values)) - 0.5, minor=True)
    ax.grid(True, which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    title = _return_title(returns) + (f"\nthe best over {', '.join(rest)}" if rest else "")
    ax.set_title(title, fontsize="medium")
    bar = ax.get_figure(root=True).colorbar(image, ax=ax)  # pyright: ignore[reportOptionalMemberAccess]
    bar.outline.set_visible(False)
    return ax


def scatter(
    settings: Sequence[Mapping[str, Any]], returns: Sequence[Any], axes: "Sequence[Axes] | None" = None
) -> "list[Axes]":
    """Scores of settings that were drawn, against each of their options.

    Args:
        settings: values by option, the same options in each; at least one.
        returns: of each setting, one a seed; NaN where there is none.
        axes: where to draw, one for each option; None makes new ones.

    Returns:
        The axes.
    """
    names = list(settings[0])
    if axes is None:
        across = min(3, len(names))
        down = -(-len(names) // across)
        figure = new_axes(1.2 + 3.2 * across, 0.9 + 2.9 * down).get_figure(root=True)
        figure.clear()  # pyright: ignore[reportOptionalMemberAccess]
        grid = figure.subplots(down, across, sharey=True, squeeze=False)  # pyright: ignore[reportOptionalMemberAccess]
        axes = list(grid.flat[: len(names)])
        for ax in grid.flat[len(names) :]:
            ax.set_visible(False)
        for row in grid:
            row[0].set_ylabel("final return")
    scores = np.array([_score(r) for r in returns])
    ranked = np.argsort(np.nan_to_num(scores, nan=-np.inf))
    # side by side where many settings have the same value
    aside = np.linspace(-0.25, 0.25, len(settings)) if len(settings) > 1 else np.zeros(1)
    for name, ax in zip(names, axes, strict=True):
        values = _values(settings, name)
        numeric, where = _positions(values)
        x = np.array([where[setting[name]] for setting in settings])
        x = x if numeric else x + aside
        for seeds, one in zip(returns, x, strict=True):
            ends = interval(_known(seeds), num_resamples=500)
            ax.plot([one, one], ends, color=_COLORS[0], alpha=0.35, linewidth=1.2)
        ax.plot(x, scores, "o", color=_COLORS[0], markersize=4.5, label="setting")
        best = ranked[-1]
        if not np.isnan(scores[best]):
            ax.plot(x[best], scores[best], "o", color=_COLORS[1], markersize=7.5, label="the best")
        _scale(ax, values, numeric)
        ax.set_xlabel(name)
        _plain(ax)
    axes[0].legend(frameon=False, fontsize="small", loc="best")
    figure = axes[0].get_figure(root=True)
    figure.suptitle(_return_title(returns), fontsize="medium")  # pyright: ignore[reportOptionalMemberAccess]
    return list(axes)


def _draw_line(ax: "Axes", name: str, points: list[tuple[Any, Any]]) -> "Axes":
    values = [value for value, _ in points]
    values = sorted(values) if _is_numeric(values) else values
    numeric, where = _positions(values)
    points = sorted(points, key=lambda point: values.index(point[0]))
    x = np.array([where[value] for value, _ in points])
    scores = np.array([_score(seeds) for _, seeds in points])
    for one, (_, seeds) in zip(x, points, strict=True):
        known = _known(seeds)
        ax.plot(np.full(len(known), one), known, "_", color=_COLORS[0], alpha=0.45, markersize=14)
        ax.plot([one, one], interval(known), color=_COLORS[0], linewidth=2.2)
    ax.plot(x, scores, "o-" if numeric else "o", color=_COLORS[0], linewidth=1.4, markersize=6)
    _scale(ax, values, numeric)
    if numeric and len(values) <= _MOST_TICKS:
        ax.set_xticks(values, map(_label, values))
        ax.set_xticks([], minor=True)
    ax.set_xlabel(name)
    ax.set_ylabel("final return")
    ax.set_title(_return_title([seeds for _, seeds in points]), fontsize="medium")
    return _plain(ax)


def _label_cells(ax: "Axes", image: Any, scores: Any, shown: Mapping[tuple[int, int], str]) -> None:
    """Figures in the cells, if there is room for them; a frame around the best."""
    if scores.size <= _MOST_LABELS:
        for (row, column), text in shown.items():
            dark = image.norm(scores[row, column]) < 0.6
            color = "white" if dark else "black"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize="small")
    if shown:
        row, column = np.unravel_index(np.nanargmax(scores), scores.shape)
        from matplotlib.patches import Rectangle

        frame = {"fill": False, "edgecolor": _COLORS[1], "linewidth": 2.5, "clip_on": False, "zorder": 5}
        ax.add_patch(Rectangle((float(column) - 0.5, float(row) - 0.5), 1.0, 1.0, **frame))


def _values(settings: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of an option, numbers ascending and others as they come."""
    values = list(dict.fromkeys(setting[name] for setting in settings))
    return sorted(values) if _is_numeric(values) else values


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in values)


def _positions(values: Sequence[Any]) -> tuple[bool, dict[Any, float]]:
    """Whether an axis of numbers can show them, and where each value stands."""
    numeric = _is_numeric(values)
    return numeric, {v: float(v) if numeric else float(i) for i, v in enumerate(values)}


def _scale(ax: "Axes", values: Sequence[Any], numeric: bool) -> None:
    if not numeric:
        ax.set_xticks(range(len(values)), map(_label, values))
        ax.set_xlim(-0.5, len(values) - 0.5)
    elif min(values) > 0 and max(values) >= 10 * min(values):
        # on the scale that the values were chosen on, their median is in the middle
        linear = np.asarray(values, float)
        aside = [abs(np.median(x) - (x.min() + x.max()) / 2) / np.ptp(x) for x in (linear, np.log(linear))]
        if aside[1] <= aside[0]:
            ax.set_xscale("log")


def _label(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_label, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _known(seeds: Any) -> Any:
    seeds = np.asarray(seeds, float)
    return seeds[~np.isnan(seeds)]


def _score(seeds: Any) -> float:
    known = _known(seeds)
    return float(iqm(known)) if len(known) else float("nan")


def _figure(value: Any) -> str:
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _return_title(returns: Sequence[Any]) -> str:
    several = max(len(_known(seeds)) for seeds in returns) > 1
    return "Final return" + (", interquartile mean over seeds, 95 % interval" if several else " of one seed")


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
    ax.margins(x=0.02)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="best")
    return _plain(ax)


def _plain(ax: "Axes") -> "Axes":
    ax.grid(True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
