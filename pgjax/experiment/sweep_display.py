"""What a sweep shows on the screen."""

from typing import Any

from rich.table import Table

from pgjax.experiment import grid
from pgjax.experiment.sweeps import SweepSnapshot

_MOST_ROWS = 30
_MOST_SEEDS = 4  # that are named; all of them are in summary.json


def describe(snapshot: SweepSnapshot) -> str:
    """One line about a sweep under way.

    Args:
        snapshot: of it.

    Returns:
        Runs that have ended, steps, speed, the best setting's return, time left.
    """
    done, speed = float(snapshot.env_steps.sum()), snapshot.steps_per_second
    parts = [
        f"{snapshot.runs}/{snapshot.num_runs} runs",
        f"{done:,.0f}/{snapshot.steps:,} steps",
        f"{speed:,.0f} steps/s",
        f"best IQM {'-' if snapshot.best is None else f'{snapshot.best:.1f}'}",
        f"{(snapshot.steps - done) / speed if speed else 0.0:.0f} s left",
    ]
    return "  ".join([*parts, *([f"{snapshot.diverged} diverged"] if snapshot.diverged else [])])


def table(summary: dict[str, Any]) -> Table:
    """The settings of a sweep, best first.

    Args:
        summary: the content of summary.json.

    Returns:
        A table.
    """
    rows, seeds = summary["settings"], summary["seeds"]
    title = f"{summary['algorithm']} on {summary['environment']}, {seeds} seed{'s' if seeds > 1 else ''} each"
    shown = Table(title=f"{title}: {summary['status']}", show_edge=False)
    complete = all(len(row["seeds"]) == seeds for row in rows)
    shown.add_column("")
    names = list(rows[0]["setting"]) if rows else []
    for name in names:
        heading = name.replace(".", ".\n")
        heading = heading.replace("_", "_\n") if len(names) > 2 else heading
        shown.add_column(heading, justify="right", overflow="fold")
    headings = ("IQM\n[95 % interval]", "worst\n(seed)", "diverged\n(seeds)")
    for heading in (*headings, *([] if complete else ["seeds\nended"])):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows[:_MOST_ROWS]:
        best = row["number"] == summary["best"]
        worst = row["worst"]
        cells = [
            "best" if best else "≈" if row["distinguishable"] is False else "",
            *map(grid.show, grid.from_json([row["setting"]])[0].values()),
            _with_interval(row),
            "-" if worst is None else f"{worst['final_return']:.1f} ({worst['seed']})",
            _diverged(row),
        ]
        cells += [] if complete else [f"{len(row['seeds'])}/{seeds}"]
        shown.add_row(*cells, style="bold" if best else None)
    more = f"{len(rows) - _MOST_ROWS} more settings in summary.json\n" if len(rows) > _MOST_ROWS else ""
    shown.caption = (
        f"{more}{summary['runs']:,} runs, {summary['programs']} compiled program"
        f"{'s' if summary['programs'] != 1 else ''}, {summary['steps_per_second']:,.0f} steps/s over all,\n"
        f"{summary['compile_seconds']:.1f} s to compile, {summary['seconds']:.1f} s to run"
    )
    return shown


def verdict(summary: dict[str, Any]) -> str:
    """What can be said of the best setting.

    Args:
        summary: the content of summary.json.

    Returns:
        A sentence or two.
    """
    if summary["best"] is None:
        return "No run has a return: there is no best setting."
    best, *others = summary["settings"]
    setting = grid.describe(grid.from_json([best["setting"]])[0])
    said = f"best: {setting}: IQM {_with_interval(best)}."
    if not others:
        return said
    if best["iqm_interval"] is None:
        return f"{said} One seed says nothing of others: several --seeds tell how sure that is."
    alike = sum(row["distinguishable"] is False for row in others)
    if not alike:
        return f"{said} No other interval overlaps its own."
    are = "is 1 other setting" if alike == 1 else f"are {alike} other settings"
    luck = f"The best of many is partly luck: train it with other seeds (--seed {max(best['seeds']) + 1})."
    return f"{said} Not distinguishable from it (≈, overlapping intervals) {are}. {luck}"


def _with_interval(row: dict[str, Any]) -> str:
    if row["iqm"] is None:
        return "-"
    interval = row["iqm_interval"]
    return f"{row['iqm']:.1f}" + ("" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]")


def _diverged(row: dict[str, Any]) -> str:
    seeds = sorted(map(int, row["diverged"]))
    if len(seeds) > _MOST_SEEDS:
        return f"{len(seeds)} ({', '.join(map(str, seeds[:_MOST_SEEDS]))} …)"
    return f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "0"
