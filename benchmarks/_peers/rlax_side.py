"""The advantage in rlax, mapped over a time-major batch. Its discount, zero at an end, is given ready."""

import functools

import jax
import jax.numpy as jnp
import rlax

from benchmarks._peers.tasks import Task
from benchmarks._peers.timing import Function, Timed, gae_inputs


def timed(task: Task, steps: int) -> Timed:
    """Something to compile and time."""
    num_steps, num_envs, gamma, lambda_ = task.options.values()
    given = gae_inputs(num_steps, num_envs)
    discount = gamma * (1.0 - given["terminated"].astype("float32"))
    arrays = given["reward"], discount, given["values"]

    @functools.partial(jax.vmap, in_axes=1, out_axes=1)
    def function(reward: jax.Array, discount: jax.Array, values: jax.Array) -> jax.Array:
        return rlax.truncated_generalized_advantage_estimation(reward, discount, lambda_, values)

    size = num_steps * num_envs
    return Function(steps // size, size, function, tuple(map(jnp.asarray, arrays)))
