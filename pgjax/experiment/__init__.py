"""Whole experiments: settings by name, runs that are kept, and what is read from them.

Everything that touches files, the clock or the screen is here; `import pgjax` does not import it.
"""

from pathlib import Path
from typing import Any

from pgjax.experiment import presets, runner
from pgjax.experiment.runner import Result, evaluate
from pgjax.experiment.store import load
from pgjax.types import Algorithm

__all__ = ["Result", "evaluate", "load", "make", "run"]


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
    algorithm: str,
    environment: str | None = None,
    *,
    seeds: int = 1,
    seed: int = 0,
    out: str | Path | None = None,
    stop_return: float | None = None,
    **changes: Any,
) -> Result:
    """Train and keep everything in a folder, as `pgjax train` does.

    Args:
        algorithm: such as "ppo".
        environment: as in `make`.
        seeds: how many runs side by side.
        seed: of the first; run i uses the key of `seed + i`.
        out: the folder; None for `runs/<algorithm>-<environment>-<time>`.
        stop_return: end as soon as the mean of the seeds' returns reaches this.
        **changes: as in `make`.

    Returns:
        The folder, how the run ended and its summary.

    Raises:
        ValueError: if the settings do not fit together, or if the folder exists.
    """
    settings = presets.preset(algorithm, environment, **changes)
    return runner.run(settings, seeds=seeds, seed=seed, out=out, stop_return=stop_return)
