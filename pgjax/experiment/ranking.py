"""What a sweep has found: its settings by their score, and how far that can be told."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pgjax.experiment import grid, statistics
from pgjax.experiment.grid import Setting
from pgjax.experiment.tidy import RunRecord


def rank(settings: Sequence[Setting], records: Sequence[RunRecord], seeds: int) -> dict[str, Any]:
    """The settings by the interquartile mean of their runs' final returns, best first.

    A run that diverged counts with what it had reached. Settings of which a run has not ended, or has no
    return, come last: what is missing is hardly the best.

    Args:
        settings: of the sweep.
        records: of the runs that have ended.
        seeds: of each setting.

    Returns:
        `settings`, a dict for each of which a run has ended: its number, its values, its seeds and their
        returns, `iqm` with `iqm_interval`, the worst seed, iterations of divergence by seed, and whether it
        is `distinguishable` from the best: whether their intervals are apart (None where there are not two);
        `best`, the number of the first, None if there is none with a return.
    """
    by_setting: dict[int, list[RunRecord]] = {}
    for record in sorted(records):
        by_setting.setdefault(record.setting, []).append(record)
    rows = sorted(
        (_row(number, settings[number], mine) for number, mine in by_setting.items()),
        key=lambda row: (_num_known(row) < seeds, math.inf if row["iqm"] is None else -row["iqm"]),
    )
    best = rows[0]["number"] if rows and rows[0]["iqm"] is not None else None
    for row in rows:
        ends = row["iqm_interval"], rows[0]["iqm_interval"]
        row["distinguishable"] = None if row is rows[0] or None in ends else bool(ends[0][1] < ends[1][0])
    return {"settings": rows, "best": best}


def best_score(records: Iterable[RunRecord], seeds: int, best: float | None = None) -> float | None:
    """The best interquartile mean of the settings of which all runs have ended.

    Args:
        records: of some settings.
        seeds: of each setting.
        best: of other settings; None if there are none.

    Returns:
        The score; None if no setting is complete.
    """
    returns: dict[int, list[float]] = {}
    for record in records:
        returns.setdefault(record.setting, []).append(record.final_return)
    scores = [float(statistics.iqm(x)) for x in returns.values() if len(x) == seeds and not np.isnan(x).any()]
    return max([*scores, *([] if best is None else [best])], default=None)


def _row(number: int, setting: Setting, records: Sequence[RunRecord]) -> dict[str, Any]:
    returns = np.array([record.final_return for record in records])
    known = returns[~np.isnan(returns)]
    low, high = statistics.interval(known)
    worst = records[int(np.nanargmin(returns))] if len(known) else None
    return {
        "number": number,
        "setting": grid.to_json([setting])[0],
        "seeds": [record.seed for record in records],
        "final_return": returns,
        "iqm": float(statistics.iqm(known)) if len(known) else None,
        "iqm_interval": None if math.isnan(low) else [float(low), float(high)],
        "worst": None if worst is None else {"seed": worst.seed, "final_return": worst.final_return},
        "diverged": {record.seed: record.diverged_at for record in records if record.diverged_at >= 0},
    }


def _num_known(row: dict[str, Any]) -> int:
    return int((~np.isnan(row["final_return"])).sum())
