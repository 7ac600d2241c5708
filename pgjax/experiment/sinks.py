"""Where a run's metrics go beside its metrics.csv: TensorBoard, Weights & Biases, any callable.

Each sink works on a thread of its own, so a slow, hanging or failing one costs the run nothing; it is
reported once.

Example:
    >>> show = lambda step, metrics: print(step, metrics)
    >>> with running([show], warn=print) as write:
    ...     write(128, {"episode_return": 21.5})
    128 {'episode_return': 21.5}
"""

import importlib
import importlib.util
import os
import queue
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

# (step, metrics): environment steps of one seed so far, numbers by name. Its `close()`, if any, comes last.
Sink: TypeAlias = Callable[[int, Mapping[str, float]], None]

_ROOM = 64  # points; about a minute of a run
_LIMIT = 10.0  # seconds
_POSITION = ("seed", "iteration", "env_steps")  # where a row stands: the step says it
_OF_EPISODES = ("episode_return", "episode_length")
# What of wandb's settings this library decides where its environment variables do not.
_WANDB_SETTINGS = {
    "console": "off",  # the terminal belongs to the progress display
    "quiet": True,
    "init_timeout": 30.0,  # wandb's own exit waits as long as these two
    "finish_timeout": 30.0,
}


@contextmanager
def running(
    sinks: Sequence[Sink], warn: Callable[[str], None], *, limit: float = _LIMIT, room: int = _ROOM
) -> Iterator[Sink]:
    """Hand points on to every sink, each on a daemon thread of its own.

    A sink that fails is called again with the next point, since a network comes back; only its first failure
    is reported. Points for which a slow sink has no room are dropped; that too is reported once. At the end,
    be it that of a body that raises, all sinks together have `limit` seconds to write what waits and to
    close; what is not written by then is reported and dropped.

    Args:
        sinks: what to call; each gets a dict of its own.
        warn: gets one sentence; called on the threads that use the context, never on a sink's.
        limit: seconds that the end may take.
        room: points that may wait for one sink.

    Yields:
        A function `(step, metrics)` that never waits for a sink and never raises what one raises.
    """
    lanes = [_Lane(sink, room) for sink in sinks]

    def tell() -> None:
        for lane in lanes:
            while lane.news:
                warn(lane.news.popleft())

    def write(step: int, metrics: Mapping[str, float]) -> None:
        point = {str(name): float(value) for name, value in metrics.items()}
        for lane in lanes:
            lane.put(int(step), dict(point))
        tell()

    try:
        yield write
    finally:
        deadline = time.monotonic() + limit
        for lane in lanes:
            lane.end()
        for lane in lanes:
            lane.wait(deadline, limit)
        tell()


class _Lane:
    """One sink, its thread, the points that wait for it, and the sentences to be said of it."""

    def __init__(self, sink: Sink, room: int):
        self.sink, self.room = sink, room
        self.name = getattr(sink, "__name__", type(sink).__name__.lstrip("_"))
        self.points: queue.SimpleQueue[tuple[int, dict[str, float]] | None] = queue.SimpleQueue()
        self.news: deque[str] = deque()
        self.given = self.done = 0
        self.full = self.failed = self.late = False
        self.thread = threading.Thread(target=self.work, name=f"pgjax sink {self.name}", daemon=True)
        self.thread.start()

    def put(self, step: int, point: dict[str, float]) -> None:
        if self.points.qsize() < self.room:
            self.given += 1
            self.points.put((step, point))
        elif not self.full:
            self.full = True
            self.news.append(
                f"the sink {self.name} is slower than the run: points are dropped, the first at step {step}"
            )

    def end(self) -> None:
        self.points.put(None)  # beyond the room: nothing follows

    def wait(self, deadline: float, limit: float) -> None:
        self.thread.join(max(0.0, deadline - time.monotonic()))
        if self.thread.is_alive():
            self.late = True
            left = self.given - self.done
            rest = f"{left} point{'s' * (left > 1)} not written" if left else "it may not be whole"
            self.news.append(f"the sink {self.name} did not end within {limit:g} s: {rest}")

    def work(self) -> None:
        while (item := self.points.get()) is not None:
            if not self.late:
                self.attempt(f"at step {item[0]} (the run goes on)", self.sink, *item)
            self.done += 1
        close = getattr(self.sink, "close", None)
        if close is not None:
            self.attempt("at its end", close)

    def attempt(self, when: str, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except BaseException as error:  # SystemExit too would end the thread, and with it the sink
            if not self.failed:
                self.failed = True
                detail = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
                self.news.append(f"the sink {self.name} failed {when}: {detail}")


def chunk_metrics(names: Any, columns: Mapping[str, Any]) -> dict[str, float]:
    """One point of a chunk of iterations.

    Means over the iterations; of return and length over the episodes that ended, and left out where none did;
    `episodes` is their number. A NaN among the losses is kept: the seed diverged there. Where the rows stand
    (seed, iteration, env_steps) is left out: the step says it.

    Args:
        names: all seeds of the run.
        columns: the rows of metrics.csv that the chunk adds, by column.

    Returns:
        Numbers by name. Of several seeds `seed_<k>/<name>` for each that has rows, and under the plain name
        their mean, each seed counting the same, but their sum for `episodes`.

    Example:
        >>> columns = {"seed": [0, 0], "episodes": [1, 3], "episode_return": [20.0, 40.0], "loss": [0.5, 1.0]}
        >>> chunk_metrics([0], columns)
        {'episodes': 4.0, 'episode_return': 35.0, 'loss': 0.75}
    """
    order = np.argsort(columns["seed"], kind="stable")
    table = {name: np.asarray(values, float)[order] for name, values in columns.items()}
    by_seed = {}
    for seed in names:
        start, stop = np.searchsorted(table["seed"], [seed, seed + 1])
        if stop > start:
            by_seed[int(seed)] = _chunk_of_one({k: v[start:stop] for k, v in table.items()})
    if len(names) == 1:
        return next(iter(by_seed.values()), {})
    point = {}
    for name in table:
        values = [one[name] for one in by_seed.values() if name in one]
        if values:
            point[name] = float(np.sum(values)) if name == "episodes" else _mean(values)
    return point | {f"seed_{seed}/{name}": v for seed, one in by_seed.items() for name, v in one.items()}


def _chunk_of_one(rows: Mapping[str, Any]) -> dict[str, float]:
    episodes = rows["episodes"]
    ended = episodes > 0
    point = {}
    for name, values in rows.items():
        if name == "episodes":
            point[name] = float(episodes.sum())
        elif name in _OF_EPISODES:
            if ended.any():
                point[name] = float(np.average(values[ended], weights=episodes[ended]))
        elif name not in _POSITION:
            point[name] = _mean(values)
    return point


def _mean(values: Any) -> float:
    with np.errstate(invalid="ignore"):  # infinities of both signs
        return float(np.mean(values))


def tensorboard(folder: Path) -> Sink:
    """Write scalars to an event file; `tensorboard --logdir runs` shows those of all runs.

    Every start writes a file of its own. Where a resumed run repeats steps, TensorBoard shows the later ones.

    Args:
        folder: of the run.

    Returns:
        The sink, for one run.

    Raises:
        ValueError: if tensorboardX is not installed.
    """
    require("tensorboardX", "tensorboard")
    return _TensorBoard(folder)


class _TensorBoard:
    """One event a point, on disk at once.

    Not by tensorboardX's SummaryWriter: a full disk kills its inner thread, and from then on it blocks its
    caller for good. Here the error reaches the lane, and the next point is tried again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file: Any = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        events = []
        if self.file is None:
            self.file = self.open()
            # A resumed run goes back to its checkpoint: what earlier files have from here on is forgotten.
            events = [{"file_version": "brain.Event:2"}, {"step": step, "session_log": {"status": "START"}}]
        values = [{"tag": name, "simple_value": value} for name, value in metrics.items()]
        event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
        for fields in [*events, {"step": step, "summary": {"value": values}}]:
            self.file.write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())
        self.file.flush()

    def open(self) -> Any:
        from tensorboardX import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        return RecordWriter(str(self.folder / f"events.out.tfevents.{time.time_ns()}"))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def wandb(folder: Path, *, name: str, config: Mapping[str, Any]) -> Sink:
    """Log to Weights & Biases, whose files go into the run's folder.

    Project, entity, mode and the rest come from wandb's own environment variables: WANDB_PROJECT,
    WANDB_MODE=offline. Without an API key, or where the server cannot be reached, that is reported and the
    run is kept offline, for `wandb sync`. A resumed run goes on under the same id, and wandb ignores points
    before the last step that it has; resumed offline it gets a second folder.

    Args:
        folder: of the run.
        name: shown for the run.
        config: shown beside it.

    Returns:
        The sink, for one run. It connects with its first point.

    Raises:
        ValueError: if wandb is not installed.
    """
    require("wandb", "wandb")
    return _Wandb(folder, name, config)


class _Wandb:
    """One run, started on the sink's thread: that takes a second, and half a minute without a network."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        self.folder, self.name, self.config = folder, name, dict(config)
        self.run: Any = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        trouble = None
        if self.run is None:
            self.run, trouble = self.start()
        self.run.log(dict(metrics), step=step)
        if trouble is not None:
            raise ConnectionError(f"{trouble} (kept offline in {self.folder / 'wandb'}, for `wandb sync`)")

    def start(self) -> tuple[Any, Exception | None]:
        """The run, and why it is offline where that is not wanted."""
        import wandb

        run_id = _wandb_id(self.folder)
        if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
            return self.init(id=run_id), None
        try:
            if not wandb.login(prompt=False, verify=False):  # init would ask at the terminal
                raise ValueError("no API key: `wandb login` stores one, WANDB_MODE=offline needs none")
            return self.init(id=run_id, resume="allow"), None
        except Exception as error:  # what failed keeps its id in use, so it is not tried again
            return self.init(id=f"{run_id}-offline", mode="offline"), error

    def init(self, **options: Any) -> Any:
        import wandb

        own = {k: v for k, v in _WANDB_SETTINGS.items() if f"WANDB_{k.upper()}" not in os.environ}
        return wandb.init(
            dir=self.folder,
            name=self.name,
            config=self.config,
            allow_val_change=True,  # a resumed run may have more steps
            reinit="create_new",  # leaves the user's own run alone
            settings=wandb.Settings(**own),
            **options,
        )

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


def _wandb_id(folder: Path) -> str:
    """The folder's name and a suffix, kept in the folder: another folder of that name is another run."""
    path = folder / "wandb" / "pgjax-run-id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]", "-", folder.resolve().name)
        path.write_text(f"{stem}-{secrets.token_hex(4)}", encoding="utf-8")
    return path.read_text(encoding="utf-8")


def require(module: str, extra: str) -> None:
    """Complain if a sink's package is not there.

    Args:
        module: its name.
        extra: what installs it.

    Raises:
        ValueError: says how to install it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # a folder of that name counts as a module; wandb makes one
        raise ValueError(f'The sink {extra} needs {module}: pip install "pgjax[{extra}]".')
