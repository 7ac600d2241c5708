"""Beside other libraries: steps per second of trainings and of an advantage, by turns, settings the same.

    python -m pip install -e ".[peers]"         # torch for CPU is enough: install that before
    python -m benchmarks peers                  # all of it
    python -m benchmarks peers --only ppo-default a2c-sb3
    python -m benchmarks peers --peers rlax

Both sides run in processes of their own, one turn each, again and again; a ratio is of the two turns of a
pair, pgjax's steps per second over the peer's. A training goes on from turn to turn, so that compiling and
the random steps before the first gradient step are in none of them, and nothing is evaluated. What cannot
be the same:

- Parameters of pgjax lie in one vector, as they do in `pgjax.experiment.make`.
- rejax trains in the same environment object, behind an adapter for the interface of gymnax 0.0.9 that it
  expects (`_peers/rejax_side.py`). `ppo-default` has the defaults of `rejax.PPO.create`, `ppo-cartpole`
  those of rejax's configuration file for CartPole-v1. rejax draws batches without replacement (pgjax with),
  takes an end by time for a terminal one (pgjax does not), and its TD3 improves the mean of both critics,
  not the first alone.
- Stable-Baselines3, sb3-contrib and SBX step gymnasium's CartPole-v1 and Pendulum-v1, another
  implementation of the same dynamics, in a `DummyVecEnv`. Their turns are shorter, because they are slower.
  SBX does not clip the gradient of DQN.
- rlax gets its discount, which is 0 at an end, ready made; pgjax takes two flags. rlax cannot tell an end
  by time from any other.

Trainings of fewer than 512 environments have one thread of XLA on both sides (`PJRT_NPROC=1`), as the command
`pgjax train` arranges for them; set the variable yourself for another number.

Seconds to compile are those from Python to the executable of a whole training, from a key, without any
cache, up to five times by turns. Stable-Baselines3 compiles nothing, SBX parts of its program when they
are first called.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import harness
from benchmarks._peers.tasks import GOALS, MODULES, QUICK, TASKS, TOLD, Task
from pgjax.experiment import threads

ROOT = pathlib.Path(__file__).parents[1]
ADVICE = 'python -m pip install -e ".[peers]"'
COMPILE_TURNS = 5


class WorkerError(RuntimeError):
    """A worker ended before it answered."""


class Worker:
    """A process with one library and one task."""

    def __init__(self, library: str, task: str, steps: int, quick: bool):
        self.library = library
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        call = [sys.executable, "-m", "benchmarks._peers.worker", library, task, str(steps)]
        self.process = subprocess.Popen(
            call,
            cwd=ROOT,
            env=_environment(TASKS[task], quick),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ask(self, request: str) -> dict[str, Any]:
        """One answer to one request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(request, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or [f"it ended with status {status}"]
        raise WorkerError(said[-1])

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _environment(task: Task, quick: bool) -> dict[str, str]:
    """Nothing cached between runs, nothing reserved on an accelerator that two processes share.

    Small trainings have one thread of XLA on both sides, as they do in `pgjax train`.
    """
    found = dict(os.environ)
    if task.algorithm != "gae" and task.options["num_envs"] < threads.SMALL:
        found.setdefault("PJRT_NPROC", "1")
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
        found.pop(name, None)
    found |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return found | ({"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if quick else {})


def installed(peer: str) -> bool:
    """Whether its module can be found; it is not imported."""
    return importlib.util.find_spec(MODULES[peer]) is not None


def chosen(arguments: argparse.Namespace) -> list[str]:
    """The tasks that were asked for and whose peer is there; says which are left out."""
    names = arguments.only or (QUICK if arguments.quick and not arguments.peers else list(TASKS))
    names = [name for name in names if not arguments.peers or TASKS[name].peer in arguments.peers]
    for peer in dict.fromkeys(TASKS[name].peer for name in names):
        if not installed(peer):
            print(f"{peer} is not installed: its rows are left out. To have them: {ADVICE}", file=sys.stderr)
    return [name for name in names if installed(TASKS[name].peer)]


def measure(arguments: argparse.Namespace) -> harness.Rows:
    """One row for every task that was chosen."""
    names = chosen(arguments)
    rows = []
    for name in names:
        rows.append(_row(name, TASKS[name], 1 if arguments.quick else arguments.turns, arguments.quick))
        print(name, _brief(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _row(name: str, task: Task, turns: int, quick: bool) -> dict[str, Any]:
    steps, peer_steps = (task.quick, task.quick) if quick else (task.steps, task.peer_steps)
    row: dict[str, Any] = {
        "task": name,
        "peer": task.peer,
        "versions": harness.packages(*TOLD[task.peer]),
        "settings": task.words(),
    }
    with Worker("pgjax", name, steps, quick) as ours, Worker(task.peer, name, peer_steps, quick) as theirs:
        try:
            return row | _compare(ours, theirs, turns)
        except WorkerError as failure:
            if ours.process.poll() is not None:
                raise RuntimeError(f"pgjax failed at {name}: {failure}") from failure
            return row | {"error": str(failure)}


def _compare(ours: Worker, theirs: Worker, turns: int) -> dict[str, Any]:
    compiled = [(ours.ask("compile"), theirs.ask("compile")) for _ in range(min(COMPILE_TURNS, turns))]
    _check_same(*compiled[0])
    pairs = []
    for turn in range(turns + 1):
        pair = ours.ask("turn"), theirs.ask("turn")
        if turn > 0:  # the first warms up
            pairs.append(pair)
    speeds = [[answer["steps"] / answer["seconds"] for answer in side] for side in zip(*pairs, strict=True)]
    row = {
        "pgjax_steps_per_second": statistics.median(speeds[0]),
        "peer_steps_per_second": statistics.median(speeds[1]),
        "ratio": harness.ratio(*speeds),
        "pgjax_steps": pairs[0][0]["steps"],
        "peer_steps": pairs[0][1]["steps"],
    }
    seconds = [[answer.get("seconds") for answer in side] for side in zip(*compiled, strict=True)]
    row["pgjax_compile_seconds"] = _median(seconds[0])
    row["peer_compile_seconds"] = _median(seconds[1])
    whole = row["peer_compile_seconds"] is not None
    return row | {"compile_ratio": harness.ratio(*seconds) if whole else None}


def _median(seconds: list[float | None]) -> float | None:
    known = [x for x in seconds if x is not None]
    return statistics.median(known) if known else None


def _check_same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """What can be compared has to agree, or the times are of different things."""
    if "result" not in ours or "result" not in theirs:
        return
    if abs(ours["result"] - theirs["result"]) > 1e-4 * abs(theirs["result"]):
        raise RuntimeError(f"The two sides compute different things: {ours['result']}, {theirs['result']}.")


def _brief(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"did not run: {row['error']}"
    compiled = row["compile_ratio"]
    return harness.show(row["ratio"]) + (f", compile {harness.show(compiled)}" if compiled else "")


def table(rows: harness.Rows) -> str:
    """One line a task; what did not run, and the settings, stand below."""
    if not rows:
        return f"Nothing measured: no such peer is installed. {ADVICE}"
    heads = [
        "task",
        "peer",
        "pgjax, steps/s",
        "peer, steps/s",
        "ratio",
        "goal",
        "compile, s",
        "peer, s",
        "ratio",
    ]
    lines = [
        [
            row["task"],
            _names(row),
            f"{row['pgjax_steps_per_second']:,.0f}",
            f"{row['peer_steps_per_second']:,.0f}",
            harness.show(row["ratio"]),
            GOALS.get(row["task"], ""),
            _seconds(row["pgjax_compile_seconds"]),
            _seconds(row["peer_compile_seconds"]),
            harness.show(row["compile_ratio"]) if row["compile_ratio"] else "",
        ]
        for row in rows
        if "error" not in row
    ]
    parts = [harness.markdown(heads, lines)] if lines else []
    failed = [
        f"- {row['task']} did not run with {_names(row)}: {row['error']}" for row in rows if "error" in row
    ]
    settings = [f"- {row['task']}: {row['settings']}" for row in rows]
    return "\n\n".join(
        parts + (["\n".join(failed)] if failed else []) + ["Settings:\n\n" + "\n".join(settings)]
    )


def _names(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in row["versions"].items())


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def main(argv: list[str] | None = None) -> int:
    """The exit status is 0 too where no peer is installed: there is nothing to measure or to save then."""
    parser = harness.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--peers", nargs="+", choices=list(MODULES), metavar="PEER", help=", ".join(MODULES))
    arguments = parser.parse_args(argv)
    if arguments.turns < 1:
        parser.error(f"--turns must be at least 1, got {arguments.turns}.")
    if (
        arguments.only
        and arguments.peers
        and not any(TASKS[n].peer in arguments.peers for n in arguments.only)
    ):
        parser.error("no task of --only is against one of --peers.")
    names = chosen(arguments)
    if not names:
        print(table([]))
        return 0
    arguments.only, arguments.peers = names, None
    return harness.run("peers", measure, table, arguments)


if __name__ == "__main__":
    sys.exit(main())
