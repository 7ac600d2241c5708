"""A run cut into chunks of about a second, between which the host looks, writes and decides."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pgjax import envs, rollouts, training
from pgjax.experiment import plots, presets, statistics, store
from pgjax.experiment.presets import Preset

_CHUNK_SECONDS = 1.0
_MAX_CHUNK = 2048
_SUMS = ("env_steps", "episodes", "episode_return_sum", "episode_length_sum")


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


class Programs(NamedTuple):
    """What runs on the device, compiled.

    Attributes:
        chunk: `(hyper, run_keys, progress, start, length) -> (progress, metrics)`; takes the progress over.
        hyper: its first argument.
        run_keys: its second.
        progress: its third, at the start.
        compile_seconds: what that took.
    """

    chunk: Any
    hyper: Any
    run_keys: Any
    progress: training.Progress
    compile_seconds: float


def run(
    preset: Preset,
    *,
    seeds: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    stop_return: float | None = None,
    report: Callable[[Snapshot], None] = lambda snapshot: None,
) -> Result:
    """Train and keep everything in a folder.

    Ctrl-C ends the run after the chunk under way; what there is by then is kept.

    Args:
        preset: the settings.
        seeds: how many runs side by side, in one program.
        seed: of the first; run i uses the key of `seed + i`, the same stream however many run.
        out: the folder; None for `runs/<algorithm>-<environment>-<time>`.
        stop_return: the run ends at the first chunk where the mean of the seeds' returns reaches this.
        report: called after every chunk.

    Returns:
        The folder and the summary.

    Raises:
        ValueError: if the settings do not fit together, or if the folder exists.
    """
    check(preset, seeds, seed)
    folder = store.create(out, preset)
    return run_in(folder, preset, seeds=seeds, seed=seed, stop_return=stop_return, report=report)


def run_in(
    folder: Path,
    preset: Preset,
    *,
    seeds: int,
    seed: int,
    stop_return: float | None,
    report: Callable[[Snapshot], None],
) -> Result:
    """The same in a folder that is there, with settings that were checked.

    Args:
        folder: empty.
        preset: as in `run`.
        seeds: as in `run`.
        seed: as in `run`.
        stop_return: as in `run`.
        report: as in `run`.

    Returns:
        As `run`.
    """
    config = {"preset": presets.to_json(preset), "seeds": seeds, "seed": seed, "stop_return": stop_return}
    store.write_json(folder / "config.json", config | store.surroundings())
    names = np.arange(seed, seed + seeds)
    diverged_at, status, length = np.full(seeds, -1), "finished", 1
    most = presets.iteration_size(preset)[0]
    with _deferred_interrupt() as interrupted, store.open_metrics(folder) as append:
        programs = compile_programs(preset, seed, seeds)
        progress, history, begin = programs.progress, _empty_history(seeds), time.perf_counter()
        try:
            while (left := _iterations_left(preset.steps, most, history, diverged_at)) and not interrupted():
                length = min(length, left, _MAX_CHUNK)
                start, began = history["env_steps"].shape[1], time.perf_counter()
                progress, buffer = programs.chunk(
                    programs.hyper, programs.run_keys, progress, np.int32(start), np.int32(length)
                )
                metrics = {k: _rows(v, seeds)[:, :length] for k, v in buffer.items()}
                diverged_at = np.atleast_1d(progress.diverged_at)[:seeds]
                seconds = time.perf_counter() - began
                append(_columns(names, history, metrics, diverged_at))
                history = _extend(history, metrics, diverged_at)
                length = max(1, min(8 * length, int(length * _CHUNK_SECONDS / seconds)))
                returns = _scores(history, preset.steps)[0]
                report(
                    Snapshot(
                        history["env_steps"].sum(axis=1),
                        preset.steps,
                        time.perf_counter() - begin,
                        returns,
                        _by_seed(names, diverged_at),
                    )
                )
                if (diverged_at >= 0).all():
                    status = "diverged"
                    break
                if stop_return is not None and np.mean(returns[diverged_at < 0]) >= stop_return:
                    status = "stopped"
                    break
            status = "interrupted" if interrupted() else status
        except KeyboardInterrupt:
            status = "interrupted"
        seconds = time.perf_counter() - begin
        summary = summarize(preset, names, history, diverged_at) | {
            "status": status,
            "seconds": seconds,
            "steps_per_second": float(history["env_steps"].sum() / seconds),
            "compile_seconds": programs.compile_seconds,
            **store.surroundings(),
        }
        store.write_json(folder / "summary.json", summary)
        store.save_state(folder, _to_one_device(progress.state, seeds))
        if history["episodes"].any():
            label = f"{preset.algorithm} on {preset.environment}"
            plots.save(plots.learning_curve(store.read_metrics(folder), label=label), folder / "curve.png")
    return Result(folder, status, summary)


def check(preset: Preset, seeds: int = 1, seed: int = 0) -> None:
    """Trace one iteration: whatever does not fit together shows before anything is compiled or written.

    Args:
        preset: the settings.
        seeds: how many.
        seed: the first.

    Raises:
        ValueError: says what does not fit.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}.")
    if seed < 0 or seed + seeds > 2**31:
        raise ValueError(f"seed must be between 0 and {2**31 - seeds}, got {seed}.")
    algorithm = presets.build(preset)
    jax.eval_shape(lambda key: algorithm.step(key, algorithm.init(key)), jax.random.key(0))


def compile_programs(preset: Preset, seed: int, seeds: int) -> Programs:
    """Place the seeds on the devices, compile, and initialise.

    Several seeds are split over as many devices as serve them evenly; odd places are filled with further
    seeds, which nobody looks at. A single seed runs without the seed axis, which costs time.

    Args:
        preset: the settings.
        seed: the first.
        seeds: how many.

    Returns:
        The compiled programs and the start.
    """
    begin = time.perf_counter()
    per_device = math.ceil(seeds / jax.device_count())
    num_devices = math.ceil(seeds / per_device)
    keys = store.seed_keys(seed, per_device * num_devices)
    init_keys, run_keys = training.split_run_key(keys if seeds > 1 else keys[0])
    sharding = None
    if num_devices > 1:
        devices = jax.devices()[:num_devices]
        mesh = jax.make_mesh((num_devices,), ("seed",), axis_types=(AxisType.Auto,), devices=devices)
        sharding = NamedSharding(mesh, PartitionSpec("seed"))
    hyper = presets.hyper(preset)
    env_steps, num_updates = presets.iteration_size(preset)
    fixed = num_updates is not None
    buffer_size = min(_MAX_CHUNK, math.ceil(preset.steps / env_steps)) if fixed else _MAX_CHUNK

    @jax.jit
    def init(hyper: Any, keys: Any) -> training.Progress:
        return training.init_progress(keys, presets.build(preset, hyper))

    def advance(hyper: Any, keys: Any, progress: training.Progress, start: Any, length: Any) -> Any:
        return training.advance(keys, presets.build(preset, hyper), progress, start, length, buffer_size)

    compiled_init = init.lower(hyper, init_keys).compile()
    seconds = time.perf_counter() - begin
    progress = compiled_init(hyper, init_keys)
    if sharding is not None:
        progress, run_keys = jax.device_put((progress, run_keys), sharding)
    jax.block_until_ready(progress)

    begin = time.perf_counter()
    chunk = jax.jit(advance, donate_argnums=2, out_shardings=sharding)
    compiled = chunk.lower(hyper, run_keys, progress, np.int32(0), np.int32(1)).compile()
    return Programs(compiled, hyper, run_keys, progress, seconds + time.perf_counter() - begin)


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
        ValueError: if one is damaged, or if `episodes < 1`.
    """
    algorithm, state, config, _ = store.load(run)
    env, env_params = presets.environment(config["preset"])
    limit = envs.max_steps(env_params)

    def play(key: Any, state: Any) -> Any:
        # training holds the first two branches of this key
        key = jax.random.fold_in(jax.random.split(key, 3)[2], seed)
        act = lambda key, obs: algorithm.act(key, state, obs)  # noqa: E731
        return rollouts.evaluate(key, act, env, env_params, episodes, limit).mean_return

    means = jax.jit(jax.vmap(play))(store.seed_keys(config["seed"], config["seeds"]), state)
    return {config["seed"] + i: float(mean) for i, mean in enumerate(means)}


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is only noted: a chunk's donated state is lost in its middle, and a file half written."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        seen.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, previous)


def _iterations_left(steps: int, most: int, history: dict[str, Any], diverged_at: Any) -> int:
    """Iterations that the slowest healthy seed needs at least: nobody runs past the end by more than one."""
    healthy = history["env_steps"].sum(axis=1)[diverged_at < 0]
    return max(0, math.ceil((steps - healthy.min()) / most))


def _empty_history(seeds: int) -> dict[str, Any]:
    return {name: np.zeros((seeds, 0)) for name in _SUMS}


def _extend(history: dict[str, Any], metrics: dict[str, Any], diverged_at: Any) -> dict[str, Any]:
    """The sums of all iterations; nothing counts of a seed from its divergence on."""
    start, length = history["env_steps"].shape[1], metrics["env_steps"].shape[1]
    counts = (diverged_at[:, None] < 0) | (start + np.arange(length) < diverged_at[:, None])
    rows = {k: np.where(counts, metrics[k], 0.0) for k in _SUMS}
    return {k: np.concatenate([history[k], rows[k]], axis=1) for k in _SUMS}


def _scores(history: dict[str, Any], steps: int) -> tuple[Any, Any]:
    return statistics.scores(history["env_steps"], history["episodes"], history["episode_return_sum"], steps)


def _columns(
    names: Any, history: dict[str, Any], metrics: dict[str, Any], diverged_at: Any
) -> dict[str, Any]:
    """The rows that follow `history`, by iteration; a seed's last row is that of its divergence."""
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
    columns |= {k: v for k, v in metrics.items() if k not in _SUMS}
    return {k: v.T[written] for k, v in columns.items()}


def _rows(buffer: Any, seeds: int) -> Any:
    rows = np.asarray(buffer)
    return rows[None] if rows.ndim == 1 else rows[:seeds]


def _by_seed(names: Any, diverged_at: Any) -> dict[int, int]:
    return {int(s): int(i) for s, i in zip(names, diverged_at, strict=True) if i >= 0}


def _to_one_device(state: Any, seeds: int) -> Any:
    """The seeds asked for, leaves `[S, ...]`, whatever devices they were on."""
    state = jax.device_put(state, jax.devices()[0])
    return jax.tree.map(lambda x: x[None] if seeds == 1 else x[:seeds], state)
