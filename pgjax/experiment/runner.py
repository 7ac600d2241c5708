"""A run cut into chunks of about a second, between which the host looks, writes and decides."""

import math
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax import envs, rollouts
from pgjax._checks import at_least_one
from pgjax.experiment import checkpoints, plots, presets, processes, programs, resuming, statistics, store
from pgjax.experiment.presets import Preset
from pgjax.experiment.programs import compile_programs
from pgjax.experiment.resuming import Start
from pgjax.experiment.sinks import Sink, chunk_metrics, running
from pgjax.experiment.store import SUMS, Settings

_CHUNK_SECONDS = 1.0
_CHECKPOINT_SECONDS = 600.0


class Snapshot(NamedTuple):
    """What there is to say between two chunks.

    Attributes:
        env_steps: `[S]`, so far.
        steps: wanted of every seed.
        seconds: since the first iteration.
        returns: `[S]`, over each seed's latest episodes; NaN before the first.
        diverged: iteration in which a seed diverged, by seed.
    """

    env_steps: np.ndarray[Any, Any]
    steps: int
    seconds: float
    returns: np.ndarray[Any, Any]
    diverged: dict[int, int]


class Result(NamedTuple):
    """A run that has ended.

    Attributes:
        folder: where it is kept.
        status: "finished", "stopped" (the return was reached), "diverged" (all seeds), "interrupted".
        summary: the content of summary.json.
    """

    folder: Path
    status: str
    summary: dict[str, Any]


Report = Callable[[Snapshot], None]
Warn = Callable[[str], None]


def run(
    settings: Settings,
    *,
    out: str | Path | None = None,
    sinks: Sequence[Sink] = (),
    report: Report = lambda snapshot: None,
    warn: Warn | None = None,
) -> Result:
    """Train and keep everything in a folder.

    Ctrl-C ends the run after the chunk under way; what there is by then is kept, and `resume` goes on.

    Args:
        settings: of the run. Run i of its seeds uses the key of `seed + i`, the same stream however many run.
        out: the folder; None for `runs/<algorithm>-<environment>-<time>`.
        sinks: called with steps and metrics about once a second, beside metrics.csv.
        report: called after every chunk; one that fails is silent from then on, and ends nothing.
        warn: told of what goes wrong without ending the run; by default Python's warnings are.

    Returns:
        The folder and the summary.

    Raises:
        ValueError: if the settings do not fit together, or if the folder exists or has no room.
    """
    check(settings)
    folder = create(out, settings)
    start = resuming.beginning(settings.seeds)
    return run_in(folder, settings, start, sinks=sinks, report=report, warn=warn)


def resume(
    run: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    allow_inexact: bool = False,
    sinks: Sequence[Sink] = (),
    report: Report = lambda snapshot: None,
    warn: Warn | None = None,
) -> Result:
    """Go on with a run from its latest checkpoint, bit for bit as if it had never stopped.

    Args:
        run: its folder.
        changes: fields of `Settings`: more steps in `preset`, unless a schedule ends with them, and how the
            run is kept. A run's other settings stay.
        allow_inexact: go on where versions or devices differ, as far as shapes allow.
        sinks: as in `run`.
        report: as in `run`.
        warn: as in `run`; also told where the run is not exactly what it was.

    Returns:
        As `run`; of a run that has finished what there is.

    Raises:
        FileNotFoundError: if this is not a run's folder.
        ValueError: says what differs, or which file is damaged.
    """
    folder, tell = Path(run), warn or _warn
    settings, start = resuming.read(folder, changes=changes or {}, allow_inexact=allow_inexact, warn=tell)
    check(settings)
    return run_in(folder, settings, start, sinks=sinks, report=report, warn=warn)


def create(out: str | Path | None, settings: Settings) -> Path:
    """The folder of a new run, with room for its checkpoints.

    Args:
        out: as in `run`.
        settings: of the run.

    Returns:
        The folder.

    Raises:
        ValueError: if it exists, cannot be made, or has no room.
    """
    folder = store.create(out, settings.preset) if processes.is_first() else Path()
    folder = Path(processes.agree_on_text(str(folder)))
    algorithm, rows = presets.build(settings.preset), programs.layout(settings).rows
    shapes = store.abstract_run(algorithm, rows=rows, seeds=settings.seeds, iteration=0)
    try:
        # one more than is kept while it is written
        checkpoints.check_room(folder, (settings.keep + 1) * checkpoints.size(shapes))
        if processes.is_first():
            store.write_config(folder, settings, programs.layout(settings).devices)
    except (OSError, ValueError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def run_in(
    folder: Path,
    settings: Settings,
    start: Start,
    *,
    sinks: Sequence[Sink] = (),
    report: Report = lambda snapshot: None,
    warn: Warn | None = None,
) -> Result:
    """The same in a folder that is there, with settings that were checked.

    Args:
        folder: of `create`, or that of a run.
        settings: as in `run`.
        start: where it begins.
        sinks: as in `run`.
        report: as in `run`.
        warn: as in `run`.

    Returns:
        As `run`.
    """
    record = _Record(folder, settings, start, warn or _warn)
    try:
        return _run(record, settings, start, sinks, report)
    finally:
        record.close()


def _run(
    record: "_Record", settings: Settings, start: Start, listeners: Sequence[Sink], report: Report
) -> Result:
    preset, seeds = settings.preset, settings.seeds
    names = np.arange(settings.seed, settings.seed + seeds)
    history, diverged_at = start.history, start.diverged_at
    report = lasting(report, record.warn)
    compiled: Any = None
    progress: Any = None
    most = presets.iteration_size(preset)[0]
    status, length, device_seconds = "finished", 1, 0.0

    def left() -> int:
        return iterations_left(preset.steps, most, history, diverged_at)

    with deferred_interrupt() as interrupted, running(listeners, record.warn) as emit:
        if left():
            compiled = compile_programs(settings, start.tree)
            progress = compiled.progress
        begin = time.perf_counter()
        try:
            while left() and not processes.any_of(interrupted()):
                iteration, began = history["env_steps"].shape[1], time.perf_counter()
                length = min(length, left(), programs.MAX_CHUNK, record.until_checkpoint(iteration))
                progress, buffer = compiled.chunk(
                    compiled.hyper, compiled.run_keys, progress, np.int32(iteration), np.int32(length)
                )
                metrics, diverged = processes.gather((buffer, progress.diverged_at))
                chunk_seconds = time.perf_counter() - began
                device_seconds += chunk_seconds

                metrics = {k: _rows(v, seeds)[:, :length] for k, v in metrics.items()}
                diverged_at = np.atleast_1d(diverged)[:seeds]
                before, history = history, extend(history, metrics, diverged_at)
                columns = metric_columns(names, before, metrics, diverged_at)
                record.append(columns)
                done, returns = history["env_steps"].sum(axis=1), _scores(history, preset.steps)[0]
                emit(int(done.max()), chunk_metrics(names, columns))
                seconds = start.seconds + time.perf_counter() - begin
                report(Snapshot(done, preset.steps, seconds, returns, _by_seed(names, diverged_at)))
                record.checkpoint_if_due(compiled, progress, history, seconds)
                length = max(1, min(8 * length, int(length * _CHUNK_SECONDS / chunk_seconds)))
                length = int(processes.agree(np.asarray(length)))
                if stop_at(settings.stop_return, returns, diverged_at):
                    status = "stopped"
                    break
            status = "interrupted" if left() and status == "finished" else status
        except KeyboardInterrupt:
            status = "interrupted"
        status = "diverged" if (diverged_at >= 0).all() else status
        elapsed = time.perf_counter() - begin
        seconds = start.seconds + elapsed
        if compiled is not None:
            record.checkpoint(compiled, progress, history, seconds, last=True)
        host_seconds = time.perf_counter() - begin - device_seconds
        summary = summarize(preset, names, history, diverged_at) | {
            "status": status,
            "seconds": seconds,
            "host_seconds": host_seconds,
            "steps_per_second": float(history["env_steps"].sum() / seconds) if seconds else None,
            "compile_seconds": compiled.compile_seconds if compiled else 0.0,
            **store.surroundings(),
        }
        if compiled is None:  # of a run that had ended nothing is measured anew
            summary |= record.times_before()
        folder = record.finish(summary)
        if processes.is_first() and history["episodes"].any():
            _draw(folder, f"{preset.algorithm} on {preset.environment}", record.warn)
    return Result(folder, status, summary)


def lasting(report: Callable[[Any], None], warn: Warn) -> Callable[[Any], None]:
    """A report that is silent once it has failed: what is only to be seen ends nothing.

    Args:
        report: takes a snapshot.
        warn: told of the failure.

    Returns:
        Does not fail; an interrupt passes.
    """
    failed = False

    def tell(snapshot: Any) -> None:
        nonlocal failed
        if failed:
            return
        try:
            report(snapshot)
        except (Exception, SystemExit) as error:  # of a pipe that was closed rich makes a SystemExit
            failed = True
            warn(f"The report of the progress failed, and is silent from here on: {error!r}.")

    return tell


def stop_at(stop_return: float | None, returns: Any, diverged_at: Any) -> bool:
    """Whether a run has reached what it was to reach.

    Args:
        stop_return: the return; None: never.
        returns: `[S]`, over each seed's latest episodes.
        diverged_at: `[S]`, −1 for none.

    Returns:
        Whether the mean of the healthy seeds is there.
    """
    healthy = returns[diverged_at < 0]
    return stop_return is not None and len(healthy) > 0 and bool(np.mean(healthy) >= stop_return)


class _Record:
    """What is written of a run, and what happens where it cannot be written.

    Nothing that goes wrong here ends a run: it is reported once, tried again, and in the end everything goes
    into a folder of the system's temporary ones. With several processes a failure ends all of them instead,
    for they would wait for each other.
    """

    def __init__(self, folder: Path, settings: Settings, start: Start, warn: Warn):
        self.folder, self.settings, self.warn = folder, settings, warn
        self.layout = programs.layout(settings)
        self.saved_at = start.iteration if start.tree is not None else None
        self.saved_time = time.perf_counter()
        self.kept: Any = None
        self.reported: set[str] = set()
        self.metrics: store.MetricsFile | None = None
        if processes.is_first():
            until = np.where(start.diverged_at < 0, start.iteration, start.diverged_at + 1)
            self.metrics = store.MetricsFile(folder, until=start.iteration, rows=int(until.sum()))
            store.write_config(folder, settings, self.layout.devices)

    def append(self, columns: Mapping[str, Any]) -> None:
        """Rows for metrics.csv."""
        if self.metrics is not None:
            with self._surviving("metrics.csv"):
                self.metrics.append(columns)

    def times_before(self) -> dict[str, Any]:
        """What the summary in the folder says of times; nothing if there is none."""
        try:
            before = store.read_json(self.folder / "summary.json")
        except (OSError, ValueError):
            return {}
        names = ("seconds", "host_seconds", "steps_per_second", "compile_seconds")
        return {name: before[name] for name in names if name in before}

    def until_checkpoint(self, iteration: int) -> int:
        """Iterations until the next one that is due by their number."""
        every = self.settings.checkpoint_every
        return programs.MAX_CHUNK if every is None else every - iteration % every

    def checkpoint_if_due(self, compiled: Any, progress: Any, history: Any, seconds: float) -> None:
        """A checkpoint, every so many iterations or every ten minutes."""
        every, iteration = self.settings.checkpoint_every, history["env_steps"].shape[1]
        late = time.perf_counter() - self.saved_time >= _CHECKPOINT_SECONDS
        if iteration % every == 0 if every else bool(processes.agree(np.asarray(late))):
            self.checkpoint(compiled, progress, history, seconds)

    def checkpoint(
        self, compiled: Any, progress: Any, history: Any, seconds: float, *, last: bool = False
    ) -> None:
        """A checkpoint now; the last one is kept in memory if it cannot be written."""
        iteration, self.saved_time = history["env_steps"].shape[1], time.perf_counter()
        if iteration == self.saved_at:
            return
        tree = {"keys": compiled.keys, "progress": progress, "history": history if iteration else {}}
        about = resuming.describe(self.settings, *self.layout, seconds)
        rows_are_there = False
        with self._surviving("metrics.csv"):  # a checkpoint is worth nothing without the rows before it
            if self.metrics is not None:
                self.metrics.journal.flush()
                self.metrics.journal.sync()
            rows_are_there = True
        with self._surviving(f"the checkpoint of iteration {iteration}", "checkpoint"):
            if rows_are_there:
                checkpoints.save(self.folder, iteration, tree, about, keep=self.settings.keep)
                self.saved_at = iteration
        if last and self.saved_at != iteration:
            self.kept = iteration, tree, about

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """The summary; and everything elsewhere, if the folder does not take it. Returns the folder."""
        if self.metrics is None:
            return self.folder
        try:
            self.metrics.journal.flush()
            if self.kept is not None:
                checkpoints.save(self.folder, *self.kept, keep=self.settings.keep)
            store.write_json(self.folder / "summary.json", summary)
            return self.folder
        except OSError as error:
            if jax.process_count() > 1:
                raise
            elsewhere = Path(tempfile.mkdtemp(prefix="pgjax-"))
            store.write_config(elsewhere, self.settings, self.layout.devices)
            self.metrics.journal.copy_to(elsewhere / "metrics.csv")
            if self.kept is not None:
                checkpoints.save(elsewhere, *self.kept, keep=self.settings.keep)
            store.write_json(elsewhere / "summary.json", summary)
            self.warn(f"{self.folder} cannot be written ({error}): the run is kept in {elsewhere}.")
            return elsewhere

    def close(self) -> None:
        """Let go of the folder."""
        if self.metrics is not None:
            self.metrics.journal.close()

    @contextmanager
    def _surviving(self, what: str, kind: str | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if jax.process_count() > 1:
                raise
            if (kind or what) not in self.reported:
                self.reported.add(kind or what)
                self.warn(f"{what} cannot be written ({error}); the run goes on, and tries again.")


def _draw(folder: Path, label: str, warn: Warn) -> None:
    try:
        plots.save(plots.learning_curve(store.read_metrics(folder), label=label), folder / "curve.png")
    except OSError as error:
        warn(f"{folder / 'curve.png'} cannot be written: {error}.")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def check(settings: Settings) -> None:
    """Trace one iteration: whatever does not fit together shows before anything is compiled or written.

    Args:
        settings: of the run.

    Raises:
        ValueError: says what does not fit.
    """
    seeds, seed = settings.seeds, settings.seed
    at_least_one(seeds=seeds, checkpoint_every=settings.checkpoint_every, keep=settings.keep)
    if seed < 0 or seed + seeds > 2**31:
        raise ValueError(f"seed must be between 0 and {2**31 - seeds}, got {seed}.")
    programs.layout(settings)
    made = presets.environment(settings.preset)
    if presets.is_on_host(made) and (seeds > 1 or settings.shard == "data"):
        raise ValueError(
            f"The environments of {settings.preset.environment} live on the host, which can neither map them "
            "over seeds nor spread them over devices: train one seed at a time."
        )
    algorithm = presets.build(settings.preset, made=made)
    jax.eval_shape(lambda key: algorithm.step(key, algorithm.init(key)), jax.random.key(0))


def summarize(preset: Preset, names: Any, history: dict[str, Any], diverged_at: Any) -> dict[str, Any]:
    """The scores of a run.

    Args:
        preset: the settings.
        names: the seeds `[S]`.
        history: sums of every iteration, `[S, I]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        What summary.json says of them.
    """
    returns, episodes = _scores(history, preset.steps)
    known = returns[~np.isnan(returns)]
    low, high = statistics.interval(known) if len(known) > 1 else (math.nan, math.nan)
    return {
        "algorithm": preset.algorithm,
        "environment": preset.environment,
        "steps": preset.steps,
        "seeds": names,
        "iterations": history["env_steps"].shape[1],
        "env_steps": history["env_steps"].sum(axis=1).astype(int),
        "final_return": returns,
        "final_episodes": episodes,
        "iqm": float(statistics.iqm(known)) if len(known) else None,
        "iqm_interval": None if math.isnan(low) else [float(low), float(high)],
        "diverged": _by_seed(names, diverged_at),
    }


def evaluate(run: str | Path, *, episodes: int = 100, seed: int = 0) -> dict[int, float]:
    """Play a run's final policies.

    Args:
        run: its folder.
        episodes: whole ones, of every seed.
        seed: of the evaluation; its stream is none that training used.

    Returns:
        The mean return by seed.

    Raises:
        FileNotFoundError: if a file of the run is missing.
        ValueError: if one is damaged, if `episodes < 1`, or if the seed is negative or above 2³² − 1.
    """
    at_least_one(episodes=episodes)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be between 0 and {2**32 - 1}, got {seed}.")
    algorithm, state, config = store.load_state(run)
    env, env_params = presets.environment(config["preset"])
    limit = envs.max_steps(env_params)

    def play(key: Any, state: Any) -> Any:
        # training holds the first two branches of this key
        key = jax.random.fold_in(jax.random.split(key, 3)[2], seed)
        act = lambda key, obs: algorithm.act(key, state, obs)  # noqa: E731
        return rollouts.evaluate(key, act, env, env_params, episodes, limit).mean_return

    keys = store.seed_keys(config["seed"], config["seeds"])
    if presets.is_on_host((env, env_params)):  # cannot be mapped over, and has one seed
        means = jax.jit(play)(keys[0], jax.tree.map(lambda x: x[0], state))[None]
    else:
        means = jax.jit(jax.vmap(play))(keys, state)
    return {config["seed"] + i: float(mean) for i, mean in enumerate(means)}


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are only noted: a chunk's donated state is lost in its middle.

    Yields:
        A function that says whether one came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        seen.append(number)

    for number in previous:
        signal.signal(number, note)
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def iterations_left(steps: int, most: int, history: dict[str, Any], diverged_at: Any) -> int:
    """Iterations that the slowest healthy seed needs at least: nobody runs past the end by more than one.

    Args:
        steps: wanted of every seed.
        most: environment steps of one iteration, at most.
        history: sums of every iteration so far, `[S, I]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        How many; 0 at the end.
    """
    healthy = history["env_steps"].sum(axis=1)[diverged_at < 0]
    return max(0, math.ceil((steps - healthy.min()) / most)) if len(healthy) else 0


def extend(history: dict[str, Any], metrics: dict[str, Any], diverged_at: Any) -> dict[str, Any]:
    """The sums of all iterations; nothing counts of a seed from its divergence on.

    Args:
        history: sums of every iteration before, `[S, I]`.
        metrics: of the iterations that follow, `[S, J]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        The sums, `[S, I + J]`.
    """
    start, length = history["env_steps"].shape[1], metrics["env_steps"].shape[1]
    counts = (diverged_at[:, None] < 0) | (start + np.arange(length) < diverged_at[:, None])
    rows = {k: np.where(counts, metrics[k], 0.0) for k in SUMS}
    return {k: np.concatenate([history[k], rows[k]], axis=1) for k in SUMS}


def _scores(history: dict[str, Any], steps: int) -> tuple[Any, Any]:
    return statistics.scores(history["env_steps"], history["episodes"], history["episode_return_sum"], steps)


def metric_columns(
    names: Any, history: dict[str, Any], metrics: dict[str, Any], diverged_at: Any
) -> dict[str, Any]:
    """The rows that follow `history`, by iteration; a seed's last row is that of its divergence.

    Args:
        names: what stands in the column `seed`, `[S]`.
        history: sums of every iteration before, `[S, I]`.
        metrics: of the iterations that follow, `[S, J]`.
        diverged_at: `[S]`, −1 for none.

    Returns:
        Columns by name, as metrics.csv has them.
    """
    iteration = history["env_steps"].shape[1] + np.arange(metrics["env_steps"].shape[1])
    written = ((diverged_at[:, None] < 0) | (iteration <= diverged_at[:, None])).T
    before = history["env_steps"].sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "seed": np.broadcast_to(names[:, None], (len(names), len(iteration))),
            "iteration": np.broadcast_to(iteration, (len(names), len(iteration))),
            "env_steps": (before + np.cumsum(metrics["env_steps"], axis=1)).astype(np.int64),
            "episodes": metrics["episodes"].astype(np.int64),
            "episode_return": metrics["episode_return_sum"] / metrics["episodes"],
            "episode_length": metrics["episode_length_sum"] / metrics["episodes"],
        }
    columns |= {k: v for k, v in metrics.items() if k not in SUMS}
    return {k: v.T[written] for k, v in columns.items()}


def _rows(buffer: Any, seeds: int) -> Any:
    rows = np.asarray(buffer)
    return rows[None] if rows.ndim == 1 else rows[:seeds]


def _by_seed(names: Any, diverged_at: Any) -> dict[int, int]:
    return {int(s): int(i) for s, i in zip(names, diverged_at, strict=True) if i >= 0}
