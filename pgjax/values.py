"""What a critic says of a rollout."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from pgjax.descent import default_num_chunks
from pgjax.minibatch import by_time, to_batch
from pgjax.types import Array, ArrayTree, Transition


def rollout_values(
    critic: Callable[[ArrayTree], Array], traj: Transition, *, num_chunks: int | None = None
) -> tuple[Array, Array]:
    """The values of what was observed in a rollout, and of what followed.

    With several chunks of time the critic looks at one after the other, and on a CPU its activations then
    stay in the cache. What follows on a step is observed in the next one, but for the last step and where an
    episode ended; so a chunk's successors are looked at only if an episode was cut off in it. Together that
    is up to five times as fast as two passes over everything. Mapped over seeds, all successors are looked
    at. Call it within `jax.jit`.

    Args:
        critic: `obs [B, ...] -> V [B]`.
        traj: from `rollout`, leaves `[T, N, ...]`, its steps in their order: where no episode ended,
            `next_obs` is the `obs` of the next step.
        num_chunks: divides T; 1 looks at all observations and all successors at once. None: 1, on CPUs as
            many as keep a chunk within about 512 observations.

    Returns:
        `V(obs)` and `V(next_obs)`, both `[T, N]`; the second may be anything where `terminated`, where no
        estimator looks at it.

    Raises:
        ValueError: if the chunks do not divide T, or if the critic gives anything but one value for each
            observation.

    Example:
        >>> import jax, jax.numpy as jnp, pgjax
        >>> env, env_params = pgjax.envs.make("CartPole-v1")
        >>> key = jax.random.key(0)
        >>> env_carry = pgjax.reset_envs(key, env, env_params, 4)
        >>> def push_right(key, obs):
        ...     return jnp.ones(4, int), jnp.zeros(4)
        >>> _, traj, _ = pgjax.rollout(key, env_carry, push_right, env, env_params, 8)
        >>> value, next_value = rollout_values(lambda obs: obs[..., 1], traj, num_chunks=2)
        >>> bool((next_value == traj.next_obs[..., 1]).all())
        True
    """
    chex.assert_rank(traj.reward, 2)
    num_steps, num_envs = traj.reward.shape
    chex.assert_tree_shape_prefix(traj, (num_steps, num_envs))
    if num_chunks is None:
        num_chunks = default_num_chunks(num_envs, num_steps)
    if num_chunks < 1 or num_steps % num_chunks:
        raise ValueError(f"num_chunks={num_chunks} must divide the {num_steps} steps of the rollout.")
    chunk_steps = num_steps // num_chunks

    def evaluate(obs: ArrayTree) -> Array:
        """Of some steps of all environments; one batch axis, see `to_batch`."""
        value = critic(to_batch(obs))
        if value.shape != (chunk_steps * num_envs,):
            raise ValueError(
                f"The critic gave values {value.shape} for {chunk_steps * num_envs} observations: one for "
                "each is needed, without a further axis."
            )
        return by_time(value, chunk_steps)

    if num_chunks == 1:
        return evaluate(traj.obs), evaluate(traj.next_obs)

    def split(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(num_chunks, chunk_steps, *x.shape[1:]), tree)

    def evaluate_chunk(chunk: tuple[ArrayTree, ArrayTree, Array]) -> tuple[Array, Array]:
        obs, next_obs, needed = chunk
        value = evaluate(obs)
        return value, lax.cond(needed, evaluate, lambda _: jnp.zeros_like(value), next_obs)

    # outside the loop: where environments are spread over devices they agree on it once
    needed = split(traj.truncated).any((1, 2)).at[-1].set(True)
    values = lax.map(evaluate_chunk, (split(traj.obs), split(traj.next_obs), needed))
    value, successor_value = (x.reshape(num_steps, num_envs) for x in values)
    following = jnp.concatenate([value[1:], successor_value[-1:]])
    return value, jnp.where(traj.truncated, successor_value, following)
