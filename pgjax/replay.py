"""Experience replay: a ring buffer as a value, on the device.

Any pytree can be stored; a `Transition` keeps truncation as truncation and observations raw. Inside a
compiled loop the buffer is written in place: memory holds it once, and neither writing nor sampling costs
more for a larger one. Write before sampling: a sample of the buffer as it was before a write that does not
depend on that sample makes XLA copy, at every step, the leaves that are used of it. A single `add_to_replay`
outside of `jit` copies them all.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pgjax._axes import beside
from pgjax._checks import at_least_one
from pgjax._jit import compiled
from pgjax.estimators.returns import n_step_return
from pgjax.types import Array, ArrayTree, Numeric, PRNGKey, Transition


class ReplayState(NamedTuple):
    """The last samples that were added.

    Attributes:
        storage: leaves `[capacity, ...]`.
        position: int32 scalar, the row that is written next.
        size: int32 scalar, rows that hold a sample: the first `size` of them.
    """

    storage: Any
    position: Array
    size: Array


def init_replay(example: ArrayTree, capacity: int) -> ReplayState:
    """An empty buffer.

    Args:
        example: one sample, without batch axes. Its types are those of the storage: an image kept as uint8
            takes a quarter of its float32 twin.
        capacity: number of samples kept.

    Returns:
        The buffer.

    Raises:
        ValueError: if `capacity < 1`.

    Example:
        >>> import jax.numpy as jnp
        >>> init_replay({"obs": jnp.zeros(4, jnp.uint8)}, 1000).storage["obs"].shape
        (1000, 4)
    """
    at_least_one(capacity=capacity)
    storage = jax.tree.map(lambda x: jnp.zeros((capacity, *jnp.shape(x)), jnp.asarray(x).dtype), example)
    return ReplayState(storage, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@compiled()
def add_to_replay(replay: ReplayState, batch: ArrayTree) -> ReplayState:
    """Write a batch over the oldest samples.

    A rollout `[T, N, ...]` goes in as it is, earlier steps first. Of a batch larger than the buffer the last
    `capacity` samples are kept.

    Args:
        replay: the buffer.
        batch: a pytree like the example, leaves with any number of batch axes in front; converted to the
            types of the storage.

    Returns:
        The buffer after.

    Raises:
        ValueError: if a floating leaf would be stored as integers.

    Example:
        >>> import jax.numpy as jnp
        >>> replay = init_replay(jnp.zeros(()), 3)
        >>> add_to_replay(replay, jnp.array([1.0, 2.0, 3.0, 4.0])).storage
        Array([4., 2., 3.], dtype=float32)
    """
    capacity = jax.tree.leaves(replay.storage)[0].shape[0]
    rows = jax.tree.map(_rows, replay.storage, batch)
    num = jax.tree.leaves(rows)[0].shape[0]
    chex.assert_tree_shape_prefix(rows, (num,))
    kept = min(num, capacity)
    target = (replay.position + jnp.arange(num - kept, num, dtype=jnp.int32)) % capacity

    def write(stored: Array, new: Array) -> Array:
        return stored.at[target].set(new[num - kept :], mode="promise_in_bounds", unique_indices=True)

    return ReplayState(
        jax.tree.map(write, replay.storage, rows),
        (replay.position + num) % capacity,
        jnp.minimum(replay.size + num, capacity),
    )


@compiled("batch_size")
def sample_replay(key: PRNGKey, replay: ReplayState, batch_size: int) -> Any:
    """Samples drawn with replacement, each of those stored equally likely.

    An empty buffer gives zeros, for there is nothing else in it: fill it before.

    Args:
        key: consumed.
        replay: the buffer.
        batch_size: B, of any size.

    Returns:
        A pytree like the example, leaves `[B, ...]`, in the types of the storage.

    References:
        Lin 1992, Self-improving reactive agents based on RL, planning and teaching; Mnih et al. 2015,
        algorithm 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> replay = add_to_replay(init_replay(jnp.zeros(()), 100), jnp.full(5, 3.0))
        >>> sample_replay(jax.random.key(0), replay, 4)
        Array([3., 3., 3., 3.], dtype=float32)
    """
    row = jax.random.randint(key, (batch_size,), 0, jnp.maximum(replay.size, 1), jnp.int32)
    return jax.tree.map(lambda stored: stored.at[row].get(mode="promise_in_bounds"), replay.storage)


@compiled("n")
def n_step_transitions(traj: Transition, *, gamma: Numeric, n: int) -> tuple[Transition, Array]:
    """Every step of a window as one transition over the next n steps.

        R_t = Σ_{j<k} γ^j r_{t+j},   discount_t = γ^k,   k = min(n, steps to the end)

    `obs`, `action` and `log_prob` are those of step t; `next_obs`, `terminated` and `truncated` those of step
    t + k − 1, so nothing is summed or bootstrapped across the end of an episode. A one-step loss that is
    given `gamma=discount` has the n-step target. The end of the window ends the sum as well; in a stream keep
    the last n − 1 steps for the next window and take the first rows only, then none is cut short by it. The
    actions between were another policy's, which is not corrected for.

    Args:
        traj: leaves `[T, ...]`, as from a rollout.
        gamma: discount factor.
        n: number of rewards, at least 1; with 1 the transitions are what they were.

    Returns:
        The transitions, leaves `[T, ...]`, and the discount of their bootstrap `[T, ...]`, termination not in
        it. The pair can be stored as it is.

    Raises:
        ValueError: if n < 1.

    References:
        Hessel et al. 2018, Rainbow, section "Multi-step learning".

    Example:
        >>> import jax.numpy as jnp
        >>> x, no = jnp.arange(3.0), jnp.zeros(3, bool)
        >>> traj = Transition(x, x, x, jnp.ones(3), no, no, x + 1.0)
        >>> transition, discount = n_step_transitions(traj, gamma=0.5, n=2)
        >>> transition.reward, discount
        (Array([1.5, 1.5, 1. ], dtype=float32), Array([0.25, 0.25, 0.5 ], dtype=float32))
        >>> transition.next_obs
        Array([2., 3., 3.], dtype=float32)
    """
    reward, flags = traj.reward, (traj.terminated, traj.truncated)
    chex.assert_equal_shape([reward, *flags])
    chex.assert_tree_shape_prefix(traj, reward.shape)
    nothing = jnp.zeros_like(reward)
    length = n_step_return(jnp.ones(reward.shape), nothing, *flags, gamma=1.0, n=n).astype(jnp.int32)
    first = jnp.arange(reward.shape[0], dtype=jnp.int32).reshape(-1, *[1] * (reward.ndim - 1))
    last = first + length - 1

    def at_the_end(x: Array) -> Array:
        return jnp.take_along_axis(x, beside(last, x), 0, mode="promise_in_bounds")

    terminated, truncated, next_obs = jax.tree.map(at_the_end, (*flags, traj.next_obs))
    transition = traj._replace(
        reward=n_step_return(reward, nothing, *flags, gamma=gamma, n=n),
        terminated=terminated,
        truncated=truncated,
        next_obs=next_obs,
    )
    return transition, jnp.power(jnp.asarray(gamma, jnp.result_type(gamma, float)), length)


def _rows(stored: Array, batch: Array) -> Array:
    """A leaf of a batch as rows of the storage, `[num, ...]`."""
    batch = jnp.asarray(batch)
    sample = stored.shape[1:]
    chex.assert_shape(batch, (..., *sample))
    if jnp.issubdtype(batch.dtype, jnp.floating) and not jnp.issubdtype(stored.dtype, jnp.floating):
        raise ValueError(
            f"A leaf of type {batch.dtype} cannot be stored as {stored.dtype}: convert it, or give "
            "init_replay an example of the type that is to be stored."
        )
    return batch.reshape(-1, *sample).astype(stored.dtype)
