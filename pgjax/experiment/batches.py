"""The runs of a group on the devices: one program, and as many rows at a time as the memory takes."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pgjax import placement, training
from pgjax.experiment import checkpoints, presets, programs, statistics
from pgjax.experiment.grid import Group
from pgjax.experiment.history import extend, iterations_left, metric_columns
from pgjax.experiment.store import SUMS
from pgjax.experiment.tidy import RunRecord

_CHUNK_SECONDS = 1.0
_CPU_ROWS = 16  # of a device at a time: more leave the cache, and are slower
_SHARE = 0.8  # of an accelerator's memory; the rest is for what the compiler does not count
_CPU_SHARE = 0.5


class Batches(NamedTuple):
    """A group's program, for any of its runs.

    Attributes:
        begin: `(hyper, seeds) -> (hyper, seeds, progress)` on the devices; leaves `[rows]` and `[rows, ...]`.
        chunk: `(hyper, seeds, progress, start, length) -> (progress, metrics)`; takes the progress over.
        rows: runs of one batch.
        devices: that they are spread over.
        num_bytes: that a batch fills, on all devices.
        compile_seconds: what compiling took.
    """

    begin: Callable[[Any, Any], tuple[Any, Any, training.Progress]]
    chunk: Any
    rows: int
    devices: int
    num_bytes: int
    compile_seconds: float


class Outline(NamedTuple):
    """What is known of a group without compiling anything.

    Attributes:
        metrics: names of what an iteration measures.
        num_bytes: of one run's state.
    """

    metrics: tuple[str, ...]
    num_bytes: int


def outline(group: Group) -> Outline:
    """Trace one iteration: whatever does not fit together shows.

    Args:
        group: of settings.

    Returns:
        The outline.

    Raises:
        ValueError: says what does not fit.
    """
    algorithm = presets.build(group.preset)

    def once(key: Any) -> Any:
        progress = training.init_progress(key, algorithm)
        return progress, algorithm.step(key, progress.state)[1]

    progress, metrics = jax.eval_shape(once, jax.random.key(0))
    return Outline(tuple(sorted(metrics)), checkpoints.size(progress))


def budget(memory: float | None, devices: int) -> float:
    """What each device may fill.

    Args:
        memory: bytes, of all devices together; None: most of an accelerator's memory, half of what the
            machine has free for CPUs.
        devices: how many.

    Returns:
        Bytes of one device; infinity where nothing is known.
    """
    if memory is not None:
        return memory / devices
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return _SHARE * limit if limit else _CPU_SHARE * _free_memory() / devices


def check_room(outline: Outline, memory: float | None, devices: int) -> None:
    """Refuse before anything is compiled what cannot fit.

    Args:
        outline: of a group.
        memory: as in `budget`.
        devices: how many there are.

    Raises:
        ValueError: if the state of a single run is too large.
    """
    room = budget(memory, devices)
    if outline.num_bytes > room:
        raise ValueError(_too_small("The state of a single run", outline.num_bytes, room, devices))


def compile_group(group: Group, num_runs: int, *, memory: float | None, devices: int) -> Batches:
    """Compile a group's program for as many rows as the memory takes, at most all of them.

    Args:
        group: of settings.
        num_runs: that there are to do.
        memory: as in `budget`.
        devices: how many at most.

    Returns:
        The program.

    Raises:
        ValueError: if not even one row fits on a device.
    """
    begin = time.perf_counter()
    devices = min(devices, num_runs)
    mesh = placement.make_mesh("seed", jax.devices()[:devices])
    spread = NamedSharding(mesh, PartitionSpec("seed"))
    preset = group.preset
    env_steps, num_updates = presets.iteration_size(preset)
    whole = math.ceil(preset.steps / env_steps) if num_updates is not None else programs.MAX_CHUNK
    buffer_size = min(programs.MAX_CHUNK, whole)

    def start(hyper: Any, seed: Any) -> training.Progress:
        init_key, _ = training.split_run_key(jax.random.key(seed))
        return training.init_progress(init_key, presets.build(preset, hyper))

    def advance(hyper: Any, seed: Any, progress: training.Progress, start: Any, length: Any) -> Any:
        def one(row: Any, progress: training.Progress) -> Any:
            hyper, seed = row
            _, run_key = training.split_run_key(jax.random.key(seed))
            algorithm = presets.build(preset, hyper)
            return training.advance(run_key, algorithm, progress, start, length, buffer_size)

        together = programs.seeds_together(preset, seed.shape[0] // devices)
        return training.map_seeds(one, (hyper, seed), progress, together=together, mesh=mesh)

    def start_rows(hyper: Any, seeds: Any) -> Any:
        # one after the other, as `training.init_progress` says
        return jax.lax.map(lambda row: start(*row), (hyper, seeds))

    def shapes(rows: int) -> tuple[Any, Any, Any]:
        hyper = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows,), jax.numpy.float32), group.hyper)
        seeds = jax.ShapeDtypeStruct((rows,), jax.numpy.int32)
        return hyper, seeds, jax.eval_shape(start_rows, hyper, seeds)

    def compiled_for(rows: int) -> Any:
        abstract = shapes(rows)
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread), abstract)
        program = jax.jit(advance, donate_argnums=2, out_shardings=spread)
        return program.lower(*placed, np.int32(0), np.int32(1)).compile()

    room = budget(memory, devices)
    size = checkpoints.size(shapes(1))
    most = min(room / size, _CPU_ROWS if jax.devices()[0].platform == "cpu" else math.inf)
    per_device = math.ceil(num_runs / devices)
    per_device = _evenly(num_runs, devices, int(max(1, min(per_device, most))))
    while True:
        chunk = compiled_for(per_device * devices)
        needed = _num_bytes(chunk)
        if needed <= room:
            break
        if per_device == 1:
            raise ValueError(_too_small("A single run on a device", needed, room, devices))
        fewer = max(1, min(per_device - 1, int(per_device * room / needed)))
        per_device = _evenly(num_runs, devices, fewer)
    compiled_start = jax.jit(start_rows).lower(*shapes(per_device)[:2]).compile()

    def begin_batch(hyper: Any, seeds: Any) -> tuple[Any, Any, training.Progress]:
        hyper = jax.tree.map(lambda x: np.asarray(x, np.float32), hyper)
        seeds = np.asarray(seeds, np.int32)
        parts = []
        # the first device starts all of them, one device's share at a time: it need not hold more
        for i, device in enumerate(mesh.devices.flat):
            mine = slice(i * per_device, (i + 1) * per_device)
            part = compiled_start(jax.tree.map(lambda x, mine=mine: x[mine], hyper), seeds[mine])
            parts.append(jax.device_put(part, device))

        def join(*shares: Any) -> Any:
            shape = (per_device * devices, *shares[0].shape[1:])
            return jax.make_array_from_single_device_arrays(shape, spread, [*shares])

        return *jax.device_put((hyper, seeds), spread), jax.tree.map(join, *parts)

    rows, seconds = per_device * devices, time.perf_counter() - begin
    return Batches(begin_batch, chunk, rows, devices, int(needed * devices), seconds)


class Chunk(NamedTuple):
    """What has come out of some iterations of a batch.

    Attributes:
        columns: rows of metrics.csv, without the values of settings.
        env_steps: that were made, of all rows.
        done: how far the runs of the batch are, each between 0 and 1, together.
        ended: at the end of the batch what its runs have come to.
    """

    columns: dict[str, Any]
    env_steps: float
    done: float
    ended: list[RunRecord]


def train_batch(group: Group, batches: Batches, runs: Any, *, seeds: int, seed: int) -> Iterator[Chunk]:
    """Train a batch of runs, about a second at a time.

    Args:
        group: of their settings.
        batches: of `compile_group`.
        runs: their numbers, at most `batches.rows`.
        seeds: of each setting.
        seed: the first of them; run r is that of setting `r // seeds` and seed `seed + r % seeds`.

    Yields:
        What has come out.

    Raises:
        ValueError: if the device runs out of memory all the same.
    """
    steps, most = group.preset.steps, presets.iteration_size(group.preset)[0]
    rows = runs[np.minimum(np.arange(batches.rows), len(runs) - 1)]  # filled with the last run
    of_group = np.searchsorted(group.numbers, rows // seeds)
    with _saying_so(batches.rows):
        hyper = jax.tree.map(lambda x: x[of_group], group.hyper)
        hyper, names, progress = batches.begin(hyper, seed + rows % seeds)
    history = {name: np.zeros((len(runs), 0)) for name in SUMS}
    diverged_at, length = np.full(len(runs), -1), 1
    while left := iterations_left(steps, most, history, diverged_at):
        start, began = history["env_steps"].shape[1], time.perf_counter()
        length = min(length, left, programs.MAX_CHUNK)
        with _saying_so(batches.rows):
            progress, buffer = batches.chunk(hyper, names, progress, np.int32(start), np.int32(length))
            metrics = {k: np.asarray(v)[: len(runs), :length] for k, v in buffer.items()}
            diverged_at = np.asarray(progress.diverged_at)[: len(runs)]
        before, history = history, extend(history, metrics, diverged_at)
        columns = _columns(runs, before, metrics, diverged_at, steps)
        columns["seed"] = seed + columns["run"] % seeds
        length = max(1, min(8 * length, int(length * _CHUNK_SECONDS / (time.perf_counter() - began))))
        done = np.minimum(history["env_steps"].sum(axis=1) / steps, 1.0)
        ended = not iterations_left(steps, most, history, diverged_at)
        yield Chunk(
            columns,
            float(metrics["env_steps"].sum()),
            float(np.where(diverged_at < 0, done, 1.0).sum()),
            _records(runs, history, diverged_at, steps, seeds, seed) if ended else [],
        )


@contextmanager
def _saying_so(rows: int) -> Iterator[None]:
    """An accelerator may be short of memory all the same: others use it too."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"The device ran out of memory with {rows} runs at a time: give less --memory, or free what "
            "others use of it."
        ) from error


def _columns(runs: Any, before: Any, metrics: dict[str, Any], diverged_at: Any, steps: int) -> dict[str, Any]:
    """A run's rows end with its own steps, however long others of its batch go on."""
    so_far = before["env_steps"].sum(axis=1, keepdims=True) + np.cumsum(metrics["env_steps"], axis=1)
    unfinished = so_far - metrics["env_steps"] < steps
    columns = metric_columns(runs, before, metrics | {"unfinished": unfinished}, diverged_at)
    wanted = columns.pop("unfinished")
    return {"run" if name == "seed" else name: x[wanted] for name, x in columns.items()}


def _records(
    runs: Any, history: dict[str, Any], diverged_at: Any, steps: int, seeds: int, seed: int
) -> list[RunRecord]:
    """What the runs of a batch have come to, each at its own end."""
    env_steps = history["env_steps"]
    iterations = (np.cumsum(env_steps, axis=1) - env_steps < steps).sum(axis=1)
    diverged = (diverged_at >= 0) & (diverged_at < iterations)
    iterations = np.where(diverged, diverged_at + 1, iterations)
    returns, episodes = statistics.scores(
        env_steps, history["episodes"], history["episode_return_sum"], steps
    )
    return [
        RunRecord(
            run=int(run),
            setting=int(run) // seeds,
            seed=seed + int(run) % seeds,
            iterations=int(iterations[row]),
            env_steps=int(env_steps[row, : iterations[row]].sum()),
            final_return=float(returns[row]),
            final_episodes=int(episodes[row]),
            diverged_at=int(diverged_at[row]) if diverged[row] else -1,
        )
        for row, run in enumerate(runs)
    ]


def _evenly(num_runs: int, devices: int, per_device: int) -> int:
    """Rows of a device, so that no more batches than it takes are all equally full."""
    batches = math.ceil(num_runs / (per_device * devices))
    return math.ceil(num_runs / (batches * devices))


def _num_bytes(compiled: Any) -> float:
    """What a program fills on a device while it runs."""
    found = compiled.memory_analysis()
    if found is None:  # not every backend knows
        return 0.0
    return (
        found.temp_size_in_bytes
        + found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )


def _too_small(what: str, needed: float, room: float, devices: int) -> str:
    return (
        f"{what} needs {needed / 1e6:,.1f} MB, and there are {room / 1e6:,.1f} MB for each of {devices} "
        f"devices: give more --memory or fewer --devices, or take a smaller network, capacity or num_envs."
    )


def _free_memory() -> float:
    """Bytes that this process may still take; infinity where the system does not say."""
    free = math.inf
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):  # a container may have less than its machine
        free = min(free, float(int(Path("/sys/fs/cgroup/memory.max").read_text())))
    if free == math.inf:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return free
