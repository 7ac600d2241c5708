"""A run cut into chunks of about a second, between which the host looks, writes and decides."""

import shutil
import signal
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
from pgjax._checks import at_least_one, real, whole
from pgjax.experiment import checkpoints, plots, presets, processes, programs, resuming, store
from pgjax.experiment.history import by_seed, extend, iterations_left, metric_columns, scores, summarize
from pgjax.experiment.programs import compile_programs
from pgjax.experiment.record import Record
from pgjax.experiment.resuming import Start, Times
from pgjax.experiment.sinks import Sink, chunk_metrics, running
from pgjax.experiment.store import Settings

_CHUNK_SECONDS = 1.0


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
        changes: fields of `Settings`: other steps in `preset`, not fewer than are done and unless a schedule
            ends with them, and how the run is kept. A run's other settings stay.
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
    record = Record(folder, settings, start, warn or _warn)
    try:
        return _run(record, settings, start, sinks, report)
    finally:
        record.close()


def _run(
    record: Record, settings: Settings, start: Start, listeners: Sequence[Sink], report: Report
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

    def times() -> Times:
        if compiled is None:  # of a run that had ended nothing is measured anew
            return start.times
        elapsed, before = time.perf_counter() - begin, start.times
        return Times(
            before.seconds + elapsed,
            before.host_seconds + elapsed - device_seconds,
            before.compile_seconds + compiled.compile_seconds,
        )

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
                done, returns = history["env_steps"].sum(axis=1), scores(history, preset.steps)[0]
                emit(int(done.max()), chunk_metrics(names, columns))
                report(Snapshot(done, preset.steps, times().seconds, returns, by_seed(names, diverged_at)))
                record.checkpoint_if_due(compiled, progress, history, times())
                length = max(1, min(8 * length, int(length * _CHUNK_SECONDS / chunk_seconds)))
                length = int(processes.agree(np.asarray(length)))
                if stop_at(settings.stop_return, returns, diverged_at):
                    status = "stopped"
                    break
            status = "interrupted" if left() and status == "finished" else status
        except KeyboardInterrupt:
            status = "interrupted"
        status = "diverged" if (diverged_at >= 0).all() else status
        taken = times()
        if compiled is not None:
            record.checkpoint(compiled, progress, history, taken, last=True)
        summary = summarize(preset, names, history, diverged_at) | {
            "status": status,
            **taken._asdict(),
            "steps_per_second": float(history["env_steps"].sum() / taken.seconds) if taken.seconds else None,
            **store.surroundings(),
        }
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
    at_least_one(seeds=seeds, keep=settings.keep)
    whole(seed=seed)
    if settings.checkpoint_every is not None:
        at_least_one(checkpoint_every=settings.checkpoint_every)
    if settings.stop_return is not None:
        real(stop_return=settings.stop_return)
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
    whole(seed=seed)
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


def _rows(buffer: Any, seeds: int) -> Any:
    rows = np.asarray(buffer)
    return rows[None] if rows.ndim == 1 else rows[:seeds]
