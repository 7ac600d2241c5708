"""What the benchmarks share: timing by turns, ratios with their spread, and where results go.

A benchmark is a module with `measure(arguments) -> rows`, `table(rows) -> Markdown`, and a `main` that hands
both to `run`. Its rows go into `results/<device>-<date>.json`, beside those of the other benchmarks of that
day, and all tables of that file into a Markdown file of the same name. Nothing is typed by hand.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
Rows = list[dict[str, Any]]


def seconds(program: Callable[[], Any]) -> float:
    """How long a call takes until its results are there."""
    import jax

    begin = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - begin


def by_turns(programs: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of every program in every turn; a first turn warms up and is not kept."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(turns + 1):
        for name, program in programs.items():
            spent = seconds(program)
            if turn > 0:
                times[name].append(spent)
    return times


def ratio(numerator: Iterable[float], denominator: Iterable[float]) -> dict[str, float]:
    """Of pairs that were measured in the same turn: the median, its quartiles, the least, the greatest."""
    single = [a / b for a, b in zip(numerator, denominator, strict=True)]
    low, _, high = statistics.quantiles(single, n=4) if len(single) > 1 else (single[0],) * 3
    found = {"median": statistics.median(single), "lower": low, "upper": high}
    return found | {"least": min(single), "greatest": max(single), "turns": len(single)}


def show(found: Mapping[str, float]) -> str:
    """A ratio as a cell of a table: the median, and the range of single turns."""
    return f"{found['median']:.2f} [{found['least']:.2f}, {found['greatest']:.2f}]"


def markdown(heads: Iterable[str], lines: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    rows = [heads, ["---"] * len(heads), *([str(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def packages(*names: str) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def about() -> dict[str, Any]:
    """Where and with what something is measured."""
    import jax

    device, now = jax.devices()[0], datetime.datetime.now(datetime.UTC)
    kind = _processor() if device.platform == "cpu" else device.device_kind
    return {
        "device": kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "date": now.date().isoformat(),
        "time": now.strftime("%H:%M"),
        "versions": {"python": platform.python_version()}
        | packages("pgjax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy"),
    }


def commit() -> str | None:
    """The code that is measured, `-dirty` if it was changed since; None outside of a repository."""

    def git(*call: str) -> str:
        root = RESULTS.parents[1]
        return subprocess.run(
            ["git", *call], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "pgjax", "benchmarks/*.py")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        name = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        if name:
            return " ".join(name[1].split())
    return platform.processor() or platform.machine() or "cpu"


def result_file(where: Mapping[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """The file of a device and a day."""
    cores = f"-{where['cores']}-cores" if where["platform"] == "cpu" else ""
    device = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)", "", where["device"]).lower()).strip("-")
    return folder / f"{device}{cores}-{where['date']}.json"


def save(name: str, rows: Rows, folder: pathlib.Path = RESULTS, **more: Any) -> pathlib.Path:
    """Put a benchmark's rows into the file of this device and day, and write that file's tables anew.

    Rows replace those that measured the same: where only a part was asked for, the rest of the day stays.
    What was measured with other versions of libraries on the same day stays in a file of its own.

    Args:
        name: of the benchmark, a module of this package.
        rows: what it measured.
        folder: of the results.
        **more: to be kept with every one of these rows, such as the number of turns, beside the time and the
            commit.

    Returns:
        The JSON file.
    """
    where = about()
    path = first = result_file(where, folder)
    number, found = 1, _of(path)
    while found.get(name, where)["versions"] != where["versions"]:
        number += 1
        path = first.with_stem(f"{first.stem}-{number}")
        found = _of(path)
    before = found.get(name, {}).get("rows", [])
    stamp = {"time": where["time"], "commit": commit()} | more
    rows = [row | {"measured": stamp} for row in rows]
    order, measured = [_what(row) for row in before], {_what(row) for row in rows}
    kept = [row for row in before if _what(row) not in measured]
    rows = sorted(
        [*kept, *rows], key=lambda row: order.index(_what(row)) if _what(row) in order else len(order)
    )
    found[name] = {"rows": rows, **where}
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(found, indent=1) + "\n")
    _write(path.with_suffix(".md"), page(found))
    return path


def _of(path: pathlib.Path) -> dict[str, Any]:
    """What a results file holds."""
    return json.loads(path.read_text()) if path.exists() else {}


def _what(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row measured, as far as one can be asked for without another; all rows are alike if none can."""
    for names in (("task",), ("part",), ("algorithm", "environment"), ("network", "batch_size")):
        if names[0] in row:
            return tuple(row.get(name) for name in names)
    return ()


def _write(path: pathlib.Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def page(found: Mapping[str, Any]) -> str:
    """All tables of a results file."""
    parts = []
    for name, entry in found.items():
        module = importlib.import_module(f"benchmarks.{name}")
        title = (module.__doc__ or name).splitlines()[0]
        versions = ", ".join(f"{k} {v}" for k, v in entry["versions"].items())
        cores = f", {entry['cores']} cores" if entry["platform"] == "cpu" else ""
        parts.append(
            f"## {title}\n\n`python -m benchmarks {name}` on {entry['device']}{cores}, {entry['date']}; "
            f"{versions}{_stamps(entry['rows'])}.\n\n{module.table(entry['rows'])}\n"
        )
    return "# Measured\n\nMade from the JSON file beside it; " + (
        "a ratio is the median over turns, with the least and the greatest of them.\n\n" + "\n".join(parts)
    )


def _stamps(rows: Rows) -> str:
    """Of which commits rows are, and of how many turns."""
    stamps = [row["measured"] for row in rows if "measured" in row]
    found = {
        "commit": [x["commit"] for x in stamps if x.get("commit")],
        "turns": [x.get("turns") for x in stamps],
    }
    told = {name: ", ".join(str(x) for x in dict.fromkeys(values) if x) for name, values in found.items()}
    return "".join(f"; {name} {text}" for name, text in told.items() if text)


def parser(doc: str | None, turns: int = 5) -> argparse.ArgumentParser:
    """What every benchmark can be asked for."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("--turns", type=int, default=turns, help="how often each thing is timed")
    found.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    found.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the results")
    return found


def run(
    name: str,
    measure: Callable[[argparse.Namespace], Rows],
    table: Callable[[Rows], str],
    arguments: argparse.Namespace,
) -> int:
    """Measure, print the table, save.

    Returns:
        The exit status.
    """
    if arguments.turns < 1:
        raise SystemExit(f"--turns must be at least 1, got {arguments.turns}.")
    rows = measure(arguments)
    print(table(rows))
    if arguments.quick:
        print("quick: nothing saved", file=sys.stderr)
    else:
        print(save(name, rows, arguments.results, turns=arguments.turns))
    return 0
