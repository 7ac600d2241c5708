"""Whole experiments: settings by name, runs that are kept, and what is read from them.

Everything that touches files, the clock or the screen is here; `import pgjax` does not import it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pgjax.experiment import grid, presets, runner, store, sweeps
from pgjax.experiment.runner import Result, evaluate
from pgjax.experiment.sinks import Sink
from pgjax.experiment.store import load
from pgjax.placement import Axis
from pgjax.types import Algorithm

__all__ = ["Result", "evaluate", "load", "make", "run", "sweep"]


def make(algorithm: str, environment: str | None = None, **changes: Any) -> Algorithm[Any]:
    """An algorithm by name, its networks and optimizers filled in.

    Args:
        algorithm: such as "ppo".
        environment: such as "CartPole-v1"; None for the first that the algorithm has a preset for, which is
            CartPole-v1 for most.
        **changes: any option of the algorithm's `make`; `steps`; `network`, `env_params` or an optimizer,
            each a dict of what to change in it.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a name is unknown or a value out of its range.

    Example:
        >>> import jax, pgjax
        >>> from pgjax import experiment
        >>> ppo = experiment.make("ppo", "CartPole-v1", clip_eps=0.1, optimizer=dict(learning_rate=1e-3))
        >>> state, metrics = pgjax.train(jax.random.key(0), ppo, 1)
        >>> metrics["env_steps"]
        Array([512], dtype=int32)
    """
    return presets.build(presets.preset(algorithm, environment, **changes))


def run(
    algorithm: str | None = None,
    environment: str | None = None,
    *,
    resume: str | Path | None = None,
    allow_inexact: bool = False,
    seeds: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    stop_return: float | None = None,
    checkpoint_every: int | None = None,
    keep: int | None = None,
    shard: Axis | None = None,
    devices: int | None = None,
    sinks: Sequence[Sink] = (),
    **changes: Any,
) -> Result:
    """Train and keep everything in a folder, as `pgjax train` does; or go on with what is in one.

    Args:
        algorithm: such as "ppo".
        environment: as in `make`.
        resume: the folder of a run to go on with from its latest checkpoint, bit for bit as if it had never
            stopped. What is given beside must be what the run was started with, but for how it is kept, and
            for `steps`, where no schedule ends with them.
        allow_inexact: with `resume`, go on although versions or devices differ.
        seeds: how many runs side by side; None for 1.
        seed: of the first; run i uses the key of `seed + i`; None for 0.
        out: the folder; None for `runs/<algorithm>-<environment>-<time>`.
        stop_return: end as soon as the mean of the seeds' returns reaches this.
        checkpoint_every: iterations between two checkpoints; None: ten minutes. There is always one at the
            end.
        keep: how many checkpoints stay; None for 2.
        shard: what is spread over the devices, seeds or the environments of each: "seed", the default, or
            "data".
        devices: how many; None for all. On CPUs there is one, unless `jax_num_cpu_devices` says otherwise.
        sinks: functions `(step, metrics) -> None`, called about once a second with plain numbers, such as
            `experiment.sinks.tensorboard(folder)`. One that is slow or fails is reported and never stops a
            run.
        **changes: as in `make`.

    Returns:
        The folder, how the run ended and its summary.

    Raises:
        ValueError: if the settings do not fit together, if the folder exists, or if the run to go on with
            is another or cannot go on exactly; says what differs.
    """
    given = {
        "seeds": seeds,
        "seed": seed,
        "stop_return": stop_return,
        "checkpoint_every": checkpoint_every,
        "keep": keep,
        "shard": shard,
        "devices": devices,
    }
    kept: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if resume is not None:
        if out is not None:
            raise ValueError("A run that goes on stays in its folder: leave out= away.")
        before = store.read_config(Path(resume))["preset"]
        for asked, its in ((algorithm, before.algorithm), (environment, before.environment)):
            if asked not in (None, its):
                raise ValueError(
                    f"{resume} is a run of {before.algorithm} on {before.environment}, not {asked}."
                )
        kept["preset"] = presets.change(before, **changes)
        return runner.resume(resume, changes=kept, allow_inexact=allow_inexact, sinks=sinks)
    if allow_inexact:
        raise ValueError("allow_inexact goes with resume=RUN.")
    if algorithm is None:
        raise ValueError("Name the algorithm, or the run to go on with: run(resume=RUN).")
    settings = store.Settings(presets.preset(algorithm, environment, **changes), **kept)
    return runner.run(settings, out=out, sinks=sinks)


def sweep(
    algorithm: str | None = None,
    environment: str | None = None,
    *,
    resume: str | Path | None = None,
    random: int | None = None,
    seeds: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    memory: float | None = None,
    format: Literal["csv", "parquet"] | None = None,
    devices: int | None = None,
    **changes: Any,
) -> Result:
    """Train many settings with many seeds, as `pgjax sweep` does; or do what is left of a sweep.

    Settings that differ in real numbers only are rows of one compiled program; those that differ in sizes,
    names or switches need one each. All settings have the same seeds.

    Args:
        algorithm: such as "ppo".
        environment: as in `make`.
        resume: the folder of a sweep that was cut off. Its settings stay, the runs that have ended are kept.
        random: how many settings to draw; None for all combinations of the values. Exactly two numbers are
            then a range, logarithmic if they are positive and a factor of 10 or more apart.
        seeds: runs of each setting; None for 1.
        seed: of the first; also that of the draw; None for 0.
        out: the folder; None for `runs/sweep-<algorithm>-<environment>-<time>`.
        memory: bytes that the runs of a batch may fill, on all devices together; None: most of an
            accelerator's, half of what is free for CPUs.
        format: of the metrics; None for "csv"; "parquet" needs pyarrow.
        devices: how many; None for all. On CPUs there is one, unless `jax_num_cpu_devices` says otherwise.
        **changes: as in `make`, with a list wherever there are several values, such as
            `clip_eps=[0.1, 0.2], optimizer=dict(learning_rate=[1e-4, 1e-3])`.

    Returns:
        The folder, how the sweep ended and its summary: `settings`, best first, and `best`, the number of the
        first. In the folder `metrics.csv` has a row for each run and iteration, `runs.csv` one for each run.

    Raises:
        ValueError: if a setting cannot be trained, if the folder exists, if a run does not fit into the
            memory, or if the sweep to go on with is damaged.
    """
    if resume is not None:
        if changes or any(x is not None for x in (algorithm, environment, random, seeds, seed, out, format)):
            raise ValueError(
                "A sweep that goes on keeps its settings: beside resume=RUN give memory and devices."
            )
        return sweeps.resume(resume, memory=memory, devices=devices)
    if algorithm is None:
        raise ValueError("Name the algorithm, or the sweep to go on with: sweep(resume=RUN).")
    given = {"seeds": seeds, "seed": seed, "memory": memory, "devices": devices, "format": format}
    kept: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    shared, settings = grid.plan(algorithm, environment, changes, random=random, seed=kept.get("seed", 0))
    planned = sweeps.Sweep(shared, settings, drawn=random is not None, **kept)
    return sweeps.run(planned, out=out)
