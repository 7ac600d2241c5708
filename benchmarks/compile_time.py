"""Seconds to compile every algorithm on its default environment, and seconds the command takes to start.

Compiling is tracing, lowering and compiling the start and the loop over iterations as `pgjax.train` needs
them, with nothing kept from before: no cache on disk, and jax's own caches emptied. The command is
`pgjax train ppo --steps 5000` in processes of their own, imports, training, checkpoint and picture included:
cold with an empty folder of compiled programs, warm with the one that was left behind.

    python -m benchmarks compile_time
    python -m benchmarks compile_time --algorithms ppo sac
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import harness

STEPS = 5000


def compile_once(algorithm: str) -> dict[str, Any]:
    """Seconds of each stage, all caches being empty."""
    import jax

    from pgjax import training
    from pgjax.experiment import presets

    jax.clear_caches()
    preset = presets.preset(algorithm)
    built = presets.build(preset)
    key = jax.random.key(0)

    def start(key: Any) -> training.Progress:
        return training.init_progress(key, built)

    def onward(key: Any, progress: training.Progress, length: Any) -> Any:
        return training.advance(key, built, progress, 0, length, 100)

    begin = time.perf_counter()
    init = jax.jit(start).lower(key)
    progress = jax.eval_shape(start, key)
    loop = jax.jit(onward, donate_argnums=1).lower(key, progress, 100)
    lowered = time.perf_counter()
    init.compile()
    loop.compile()
    done = time.perf_counter()
    return {
        "environment": preset.environment,
        "lower": lowered - begin,
        "compile": done - lowered,
        "total": done - begin,
    }


def start_once(algorithm: str, cache: str) -> float:
    """Seconds of one whole command."""
    ours = ("PGJAX_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in ours} | {"XDG_CACHE_HOME": cache}
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "pgjax", "train", algorithm]
        call += ["--steps", str(STEPS), "--out", f"{folder}/run"]
        begin = time.perf_counter()
        subprocess.run(call, env=environment, check=True, capture_output=True)
        return time.perf_counter() - begin


def spread(found: list[float]) -> dict[str, float]:
    """Of several turns."""
    return {"median": statistics.median(found), "least": min(found), "greatest": max(found)}


def measure(arguments: argparse.Namespace) -> harness.Rows:
    """Every algorithm, and the command."""
    import jax

    from pgjax.experiment import presets

    jax.config.update("jax_enable_compilation_cache", False)
    known = presets.algorithm_names()
    names = arguments.algorithms or (["a2c"] if arguments.quick else known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"There is no algorithm {unknown[0]!r}. There are: {', '.join(known)}.")
    turns = 1 if arguments.quick else arguments.turns
    rows = []
    for name in names:
        found = [compile_once(name) for _ in range(turns)]
        stages = {stage: spread([x[stage] for x in found]) for stage in ("lower", "compile", "total")}
        rows.append({"algorithm": name, "environment": found[0]["environment"], **stages, "turns": turns})
        print(f"{name}: {stages['total']['median']:.1f} s", file=sys.stderr, flush=True)
    command, starts = names[0] if arguments.quick else "ppo", []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as cache:
            starts.append([start_once(command, cache) for _ in range(2)])
    cold, warm = zip(*starts, strict=True)
    rows.append({"command": command, "cold": spread(cold), "warm": spread(warm), "turns": turns})
    return rows


def show(found: dict[str, float]) -> str:
    """A cell."""
    return f"{found['median']:.1f} [{found['least']:.1f}, {found['greatest']:.1f}]"


def table(rows: harness.Rows) -> str:
    """Two tables: programs, and the command."""
    programs = [row for row in rows if "algorithm" in row]
    commands = [row for row in rows if "command" in row]
    first = harness.markdown(
        ["algorithm", "environment", "lower, s", "compile, s", "both, s"],
        [
            [
                row["algorithm"],
                row["environment"],
                *(show(row[stage]) for stage in ("lower", "compile", "total")),
            ]
            for row in programs
        ],
    )
    second = harness.markdown(
        ["command", "cold, s", "warm, s"],
        [
            [f"`pgjax train {row['command']} --steps {STEPS}`", show(row["cold"]), show(row["warm"])]
            for row in commands
        ],
    )
    return "\n\n".join(part for part, there in ((first, programs), (second, commands)) if there)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--algorithms", nargs="+", metavar="NAME", help="some of them; by default all")
    return harness.run("compile_time", measure, table, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
