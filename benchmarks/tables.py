"""The tables of the README, made from the results.

What stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` is written anew: `learned` from
results/learning.json, `fast` from the newest results of `throughput` and of `peers`.

    python -m benchmarks tables             # write them
    python -m benchmarks tables --check     # exit status 1 if the README says anything else
"""

import argparse
import json
import math
import pathlib
import sys
from typing import Any

from benchmarks import harness, learning
from benchmarks._peers.tasks import GOALS

README = pathlib.Path(__file__).parents[1] / "README.md"
ALGORITHMS = ("reinforce", "actor_critic", "a2c", "a3c", "ppo", "npg", "trpo", "acktr")
ALGORITHMS += ("dqn", "ddpg", "td3", "sac", "q_learning", "sarsa")


def newest(name: str, folder: pathlib.Path) -> dict[str, Any] | None:
    """What the latest results file with this benchmark holds of it.

    Args:
        name: of the benchmark.
        folder: of the results.

    Returns:
        Its rows, and where, when and with what they were measured; None if it was never run.
    """
    entries = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())
        entry = found.get(name) if isinstance(found, dict) else None
        if isinstance(entry, dict) and {"rows", "date", "device"} <= entry.keys():
            entries.append(entry)
    # two devices on one day: the later; results from before the time was kept have none
    return max(entries, key=lambda entry: (entry["date"], entry.get("time", "")), default=None)


def learned(folder: pathlib.Path) -> str | None:
    """One line an environment: the score of every algorithm that was trained there.

    Args:
        folder: of the results.

    Returns:
        Markdown; None if nothing is there.
    """
    path = folder / "learning.json"
    if not path.exists():
        return None
    pairs = json.loads(path.read_text())
    rows = [{"name": name, **row} for name, row in pairs.items()]
    scores: dict[str, dict[str, str]] = {}
    for row in rows:
        algorithm, _, environment = row["name"].partition(":")
        scores.setdefault(environment, {})[algorithm] = _score(row)
    for algorithm, environment in learning.pairs():
        if environment in scores:
            scores[environment].setdefault(algorithm, "…")
    names = [name for name in ALGORITHMS if any(f"{name}:{where}" in pairs for where in scores)]
    lines = [[where, *(found.get(name, "") for name in names)] for where, found in scores.items()]
    verdicts = [row.get("verdict") for row in rows]
    counts = ", ".join(
        f"{verdicts.count(verdict)} {text}"
        for verdict, text in (
            ("reached", f"come {100 * learning.REACHED:.0f} % of that way or more (bold)"),
            ("below", "less, or miss a bound on the worst seed"),
            ("failed", f"less than {100 * learning.FAILED:.0f} % (struck through)"),
            (None, "are held against nothing"),
        )
        if verdict in verdicts
    )
    told = [
        "Each pair is held against what is published for it, for another algorithm there, or the most there "
        f"is, and measured from what uniform actions get. Of {len(rows)} pairs {counts}."
    ]
    cells = [cell for found in scores.values() for cell in found.values()]
    told += ["A cell with … is not trained yet."] if "…" in cells else []
    told += ["† is of a preset that has changed since."] if any("†" in cell for cell in cells) else []
    return f"{harness.markdown(['environment', *names], lines)}\n\n{' '.join(told)}"


def _score(row: dict[str, Any]) -> str:
    """The interquartile mean that counts, marked by its verdict."""
    value = row["evaluation_iqm" if row.get("scored") == "evaluation" else "iqm"]
    if value is None or math.isnan(value):
        return "~~none~~"
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
    mark = {"reached": "**", "failed": "~~"}.get(row.get("verdict") or "", "")
    return f"{mark}{text}{mark}{'†' if learning.is_outdated(row) else ''}"


def fast(folder: pathlib.Path) -> str | None:
    """Whole trainings beside the least that they must do, and beside other libraries.

    Args:
        folder: of the results.

    Returns:
        Markdown; None if neither was measured.
    """
    parts = []
    for name, compact in (("throughput", _throughput), ("peers", _peers)):
        if entry := newest(name, folder):
            cores = f", {entry['cores']} cores" if entry.get("platform") == "cpu" else ""
            versions = ", ".join(f"{k} {v}" for k, v in entry["versions"].items() if k in ("jax", "pgjax"))
            where = f"`python -m benchmarks {name}`, {entry['device']}{cores}, {entry['date']}, {versions}:"
            parts.append(f"{where}\n\n{compact(entry['rows'])}")
    return "\n\n".join(parts) or None


def _throughput(rows: harness.Rows) -> str:
    lines = [
        [
            row["task"],
            f"{row['steps_per_second'] / 1e3:,.0f}k",
            *(harness.show(row[k]) if k in row else "" for k in ("ratio", "over_purejaxrl")),
        ]
        for row in rows
    ]
    heads = ["training", "environment steps / s", "of the least it must do", "times as fast as PureJaxRL"]
    return harness.markdown(heads, lines)


def _peers(rows: harness.Rows) -> str:
    lines = [
        [
            row["task"],
            ", ".join(f"{name} {version}" for name, version in row["versions"].items()),
            harness.show(row["ratio"]) if "ratio" in row else "did not run",
            GOALS.get(row["task"], ""),
            harness.show(row["compile_ratio"]) if row.get("compile_ratio") else "",
        ]
        for row in rows
    ]
    heads = ["training", "beside", "times as fast", "goal", "compile time, pgjax's / theirs"]
    return harness.markdown(heads, lines)


SECTIONS = {"learned": learned, "fast": fast}


def replace(text: str, name: str, table: str) -> str:
    """The text with another table between the markers of a section.

    Args:
        text: of the README.
        name: of the section.
        table: what shall stand there.

    Returns:
        The new text.

    Raises:
        ValueError: if the markers are not there, once each and in order.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(end) < text.index(begin):
        raise ValueError(f"The README needs the lines {begin} and {end}, once each and in this order.")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def main(argv: list[str] | None = None) -> int:
    """The command; the exit status is 1 if `--check` finds a difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    parser.add_argument("--quick", action="store_true", help="the same as --check")
    parser.add_argument("--readme", type=pathlib.Path, default=README)
    parser.add_argument("--results", type=pathlib.Path, default=harness.RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    old = new = arguments.readme.read_text()
    for name, make in SECTIONS.items():
        table = make(arguments.results)
        if table is None:
            print(f"{name}: no results in {arguments.results}; left as it is", file=sys.stderr)
            continue
        try:
            new = replace(new, name, table)
        except ValueError as error:
            print(f"{arguments.readme}: {error}", file=sys.stderr)
            return 1
    if new == old:
        print(f"{arguments.readme}: as the results say")
        return 0
    if arguments.check or arguments.quick:
        print(f"{arguments.readme} is not what the results say: python -m benchmarks tables", file=sys.stderr)
        return 1
    arguments.readme.write_text(new)
    print(f"{arguments.readme}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
