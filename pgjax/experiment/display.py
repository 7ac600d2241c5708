"""What a run shows on the screen: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from pgjax.experiment.runner import Result, Snapshot
from pgjax.experiment.statistics import interval, iqm

_PLAIN_SECONDS = 5.0


@contextmanager
def live(console: Console, line: Callable[[Any], str] | None = None) -> Iterator[Callable[[Any], None]]:
    """Show progress while a run goes on.

    Args:
        console: where.
        line: what to show of a snapshot, which has `env_steps` and `steps`; None: `describe`.

    Yields:
        What `runner.run` takes as `report`.
    """
    line = line or describe
    if console.is_terminal:
        columns = (SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("compiling", total=None)

            def update(snapshot: Any) -> None:
                done = float(snapshot.env_steps.min())
                progress.update(task, description=line(snapshot), completed=done, total=snapshot.steps)

            yield update
        return

    next_line = 0.0

    def print_line(snapshot: Any) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line or snapshot.env_steps.min() >= snapshot.steps:
            next_line = time.monotonic() + _PLAIN_SECONDS
            console.print(line(snapshot), highlight=False, soft_wrap=True)

    yield print_line


def describe(snapshot: Snapshot) -> str:
    """One line about a run under way.

    Args:
        snapshot: of it.

    Returns:
        Steps, speed, return with its interval over seeds, time left.
    """
    done = float(snapshot.env_steps.min())
    left = snapshot.seconds * (snapshot.steps / done - 1.0) if done else 0.0
    parts = [
        f"{done:,.0f}/{snapshot.steps:,} steps",
        f"{snapshot.env_steps.sum() / snapshot.seconds:,.0f} steps/s",
        f"return {with_interval(snapshot.returns)}",
        f"{max(0.0, left):.0f} s left",
    ]
    if snapshot.diverged:
        parts.append("diverged: " + _seeds(snapshot.diverged))
    return "  ".join(parts)


def with_interval(returns: Any) -> str:
    """The interquartile mean over seeds, with its interval where there are several.

    Args:
        returns: `[S]`, NaN where there is none.

    Returns:
        Such as "231.4 [201.2, 260.0]", or "-".
    """
    known = np.asarray(returns, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return "-"
    low, high = interval(known, num_resamples=500)
    return f"{iqm(known):.1f}" + ("" if np.isnan(low) else f" [{low:.1f}, {high:.1f}]")


def result_table(result: Result) -> Table:
    """What a run has come to.

    Args:
        result: of it.

    Returns:
        A table.
    """
    summary = result.summary
    table = Table(title=f"{summary['algorithm']} on {summary['environment']}: {result.status}", min_width=44)
    for heading in ("seed", "steps", "final return", "over episodes"):
        table.add_column(heading, justify="right")
    rows = zip(*(summary[k] for k in ("seeds", "env_steps", "final_return", "final_episodes")), strict=True)
    for seed, steps, value, episodes in rows:
        shown = "-" if np.isnan(value) else f"{value:.1f}"
        when = summary["diverged"].get(int(seed))
        note = "" if when is None else f" (diverged in iteration {when})"
        table.add_row(str(seed), f"{steps:,}", shown + note, str(episodes))
    if len(summary["seeds"]) > 1:
        table.add_section()
        table.add_row("IQM", "", with_interval(summary["final_return"]), "")
    table.caption = (
        f"{summary['steps_per_second']:,.0f} steps/s over all seeds, "
        f"{summary['compile_seconds']:.1f} s to compile, {summary['seconds']:.1f} s to run"
    )
    return table


def divergence(result: Result) -> str:
    """Which seeds diverged and when.

    Args:
        result: of the run.

    Returns:
        One line; empty if none did.
    """
    diverged = result.summary["diverged"]
    if not diverged:
        return ""
    where = ", ".join(f"seed {seed} in iteration {iteration}" for seed, iteration in diverged.items())
    return f"diverged (NaN or infinity; frozen from there on): {where}"


def _seeds(diverged: dict[int, int]) -> str:
    return "seed " + ", ".join(map(str, diverged))
