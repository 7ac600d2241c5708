"""What runs on the devices: placed, compiled and started."""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pgjax import descent, placement, training
from pgjax._checks import whole
from pgjax.experiment import presets, processes, store
from pgjax.experiment.store import Settings

MAX_CHUNK = 2048
"""Iterations of one call at most; the length of the metrics buffer."""

_CACHED_IMAGES = 64  # as `descent.CACHED_SAMPLES`, for a CNN as small as MinAtar's


class Programs(NamedTuple):
    """What runs on the devices, compiled.

    Attributes:
        chunk: `(hyper, run_keys, progress, start, length) -> (progress, metrics)`; takes the progress over.
        hyper: its first argument.
        keys: of the runs `[rows]`, or one for a single seed.
        run_keys: its second argument.
        progress: its third, at the start.
        compile_seconds: what that took.
    """

    chunk: Any
    hyper: Any
    keys: Any
    run_keys: Any
    progress: training.Progress
    compile_seconds: float


class Layout(NamedTuple):
    """How a run lies on the devices.

    Attributes:
        rows: seeds that run; those beyond the ones asked for fill devices, and nobody looks at them.
        devices: that are used.
    """

    rows: int
    devices: int


def layout(settings: Settings) -> Layout:
    """How a run lies on the devices there are.

    Several seeds are split over as many devices as serve them evenly; odd places are filled with further
    seeds. A single seed has no seed axis, which costs time, and one device.

    Args:
        settings: of the run.

    Returns:
        Its layout.

    Raises:
        ValueError: if there are not so many devices, if the environments do not divide among them, or if a
            process would have nothing to do.
    """
    there, seeds = jax.device_count(), settings.seeds
    devices = there if settings.devices is None else settings.devices
    whole(devices=devices)
    if settings.shard not in ("seed", "data"):
        raise ValueError(f'shard must be "seed" or "data", got {settings.shard!r}.')
    if not 1 <= devices <= there:
        raise ValueError(
            f"devices must be between 1 and the {there} there are, got {devices}. (On CPUs only the command "
            "can set their number, because that must come before jax starts: pgjax train … --devices N.)"
        )
    if settings.shard == "data":
        _check_environments(settings.preset, devices)
        return Layout(seeds, devices)
    per_device = math.ceil(seeds / devices)
    if jax.process_count() == 1:
        devices = math.ceil(seeds / per_device)
    elif devices < there:
        raise ValueError("With several processes all devices are used: leave devices out.")
    elif seeds == 1:
        raise ValueError('One seed is no work for several processes: more seeds, or shard="data".')
    return Layout(per_device * devices, devices)


def _check_environments(preset: presets.Preset, devices: int) -> None:
    num_envs = preset.options.get("num_envs")
    if preset.algorithm == "a3c" or num_envs is None:
        raise ValueError(
            f'The environments of {preset.algorithm} cannot be spread over devices: shard="seed".'
        )
    if num_envs % devices:
        raise ValueError(
            f"num_envs={num_envs} does not divide among {devices} devices: take a multiple of {devices}, or "
            "name fewer devices."
        )
    if "num_shards" in preset.options:
        shards = preset.options["num_shards"] or math.gcd(num_envs, 8)
        if shards % devices:
            raise ValueError(
                f"The {shards} shards that minibatches stay within do not divide among {devices} devices: "
                f"set num_shards to a multiple of {devices} that divides num_envs={num_envs}."
            )


def compile_programs(settings: Settings, start: Any = None) -> Programs:
    """Place the run on the devices, compile it, and initialise what was not there before.

    Args:
        settings: of the run.
        start: `keys` and `progress` from a checkpoint, in the layout of these settings, of which the progress
            is taken out; None begins anew.

    Returns:
        The compiled programs and the start.
    """
    begin, seconds = time.perf_counter(), 0.0
    preset, seeds = settings.preset, settings.seeds
    rows, num_devices = layout(settings)
    if settings.shard == "data" and preset.options.get("num_chunks", 0) is None:
        preset = presets.change(preset, num_chunks=1)  # every chunk would be summed over the devices
    hyper, made = presets.hyper(preset), presets.environment(preset)
    if start is None:
        keys = store.seed_keys(settings.seed, rows)
        keys = keys if seeds > 1 else keys[0]
    else:
        keys = start["keys"]
    init_keys, run_keys = training.split_run_key(keys)

    def init(hyper: Any, keys: Any) -> training.Progress:
        return training.init_progress(keys, presets.build(preset, hyper, made))

    mesh = None
    if num_devices > 1 or jax.process_count() > 1:
        mesh = placement.make_mesh(settings.shard, jax.devices()[:num_devices])
    together, seed_mesh = None, None
    if settings.shard == "seed":
        together, seed_mesh = seeds_together(preset, rows // num_devices), mesh

    def advance(hyper: Any, keys: Any, progress: training.Progress, start: Any, length: Any) -> Any:
        def one(key: Any, progress: training.Progress) -> Any:
            algorithm = presets.build(preset, hyper, made)
            return training.advance(key, algorithm, progress, start, length, buffer_size)

        if seeds == 1:
            return one(keys, progress)
        return training.map_seeds(one, keys, progress, together=together, mesh=seed_mesh)

    env_steps, num_updates = presets.iteration_size(preset)
    whole = math.ceil(preset.steps / env_steps) if num_updates is not None else MAX_CHUNK
    buffer_size = min(MAX_CHUNK, whole)
    if start is None:
        compiled_init = jax.jit(init).lower(hyper, init_keys).compile()
        seconds = time.perf_counter() - begin
        progress = compiled_init(hyper, init_keys)
    else:
        progress = start.pop("progress")  # or the host would keep a second copy all through the run
    out_shardings = None
    if mesh is not None:
        by_leaf = placement.shardings(progress, mesh, batch_axes=int(seeds > 1))
        axes = ("seed",) if settings.shard == "seed" else ()
        rest = NamedSharding(mesh, PartitionSpec(*axes))
        progress = processes.place(progress, by_leaf)
        keys, run_keys = processes.place((keys, run_keys), rest)
        out_shardings = by_leaf, rest
    elif start is not None:
        progress = jax.device_put(progress, jax.devices()[0])
    jax.block_until_ready(progress)

    begin = time.perf_counter()
    chunk = jax.jit(advance, donate_argnums=2, out_shardings=out_shardings)
    compiled = chunk.lower(hyper, run_keys, progress, np.int32(0), np.int32(1)).compile()
    return Programs(compiled, hyper, keys, run_keys, progress, seconds + time.perf_counter() - begin)


def seeds_together(preset: presets.Preset, rows: int) -> int:
    """How many seeds of a device run side by side, in one batch.

    On a CPU those whose observations of one gradient step fill its caches; elsewhere all.

    Args:
        preset: the settings.
        rows: seeds of a device.

    Returns:
        A divisor of `rows`.
    """
    if jax.default_backend() != "cpu":
        return rows
    cached = _CACHED_IMAGES if preset.network.torso == "cnn" else descent.CACHED_SAMPLES
    wanted = max(1.0, cached / presets.observations_per_update(preset))
    divisors = [d for d in range(1, rows + 1) if rows % d == 0]
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))


def fit_rows(tree: Any, seeds: int, rows: int) -> Any:
    """The seeds of a checkpoint in another layout.

    Args:
        tree: leaves `[rows before, ...]`; without that axis for a single seed.
        seeds: how many of them are wanted.
        rows: how many there shall be.

    Returns:
        Leaves `[rows, ...]`, places beyond the seeds filled with them again.
    """
    if seeds == 1:
        return tree
    return jax.tree.map(lambda x: x[np.arange(rows) % seeds], tree)
