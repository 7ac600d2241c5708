"""Shuffle a batch and split it, within shards that no sample ever leaves; descend on the pieces."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from pgjax._checks import at_least_one
from pgjax._random import flat_draw
from pgjax.descent import default_num_chunks, mean_gradient
from pgjax.types import Array, ArrayTree, Params, PRNGKey


def to_shards(tree: ArrayTree, num_shards: int) -> Any:
    """Lay a rollout out as a batch, environments before time.

    A plain `reshape(-1)` of `[T, N]` mixes environments; on several devices it compiles to a gather of the
    whole batch. Here every shard holds the steps of its own environments.

    Args:
        tree: leaves `[T, N, ...]`.
        num_shards: divides N.

    Returns:
        Leaves `[num_shards, N T / num_shards, ...]`.

    Raises:
        ValueError: if N does not split into the shards.

    Example:
        >>> import jax.numpy as jnp
        >>> to_shards(jnp.array([[0, 1], [2, 3]]), 2)
        Array([[0, 2],
               [1, 3]], dtype=int32)
    """
    num_steps, num_envs = jax.tree.leaves(tree)[0].shape[:2]
    chex.assert_tree_shape_prefix(tree, (num_steps, num_envs))
    if num_shards < 1 or num_envs % num_shards:
        raise ValueError(f"num_shards={num_shards} must divide num_envs={num_envs}.")
    size = num_envs * num_steps // num_shards
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(num_shards, size, *x.shape[2:]), tree)


def to_batch(tree: ArrayTree) -> Any:
    """Lay a rollout out as one batch, environments before time: what a full-batch gradient sees.

    Networks and their gradients run up to a third faster over one batch axis than over two.

    Args:
        tree: leaves `[T, N, ...]`.

    Returns:
        Leaves `[N T, ...]`.

    Example:
        >>> import jax.numpy as jnp
        >>> to_batch(jnp.array([[0, 1], [2, 3]]))
        Array([0, 2, 1, 3], dtype=int32)
    """
    return jax.tree.map(lambda x: x[0], to_shards(tree, 1))


def by_time(batch: ArrayTree, num_steps: int) -> Any:
    """A batch as the rollout that it came from: the inverse of `to_batch`.

    Args:
        batch: leaves `[N T, ...]`.
        num_steps: T.

    Returns:
        Leaves `[T, N, ...]`.

    Example:
        >>> import jax.numpy as jnp
        >>> by_time(jnp.array([0, 2, 1, 3]), 2)
        Array([[0, 1],
               [2, 3]], dtype=int32)
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, num_steps, *x.shape[1:]), 0, 1), batch)


def shuffled_minibatches(
    key: PRNGKey,
    num_shards: int,
    shard_size: int,
    num_minibatches: int,
    num_epochs: int = 1,
    *,
    permutation: Callable[[PRNGKey, int], Array] | None = None,
) -> Array:
    """Indices that visit every sample once an epoch, in random order within its shard.

    Args:
        key: consumed.
        num_shards: number of shards.
        shard_size: samples in each.
        num_minibatches: divides `shard_size`.
        num_epochs: independent shuffles.
        permutation: `(key, n) -> [n]`, such as `jax.random.permutation`, which sorts; None: a shuffle that
            does not, and is ten to seventy times as fast.

    Returns:
        int32 `[num_epochs * num_minibatches, num_shards, shard_size / num_minibatches]`, for
        `take_minibatch`.

    Raises:
        ValueError: if a number of something is below 1, or if a shard does not split into the minibatches.

    Example:
        >>> import jax
        >>> shuffled_minibatches(jax.random.key(0), 2, 6, 3).shape
        (3, 2, 2)
    """
    at_least_one(
        num_shards=num_shards, shard_size=shard_size, num_minibatches=num_minibatches, num_epochs=num_epochs
    )
    if shard_size % num_minibatches:
        raise ValueError(
            f"num_minibatches={num_minibatches} must divide the {shard_size} samples of each of the "
            f"{num_shards} shards."
        )
    num = num_epochs * num_shards
    if permutation is None:
        order = _permutations(key, num, shard_size)
    else:
        order = jax.vmap(lambda key: permutation(key, shard_size))(jax.random.split(key, num))
        order = order.astype(jnp.int32)
    order = order.reshape(num_epochs, num_shards, num_minibatches, -1)
    return jnp.swapaxes(order, 1, 2).reshape(num_epochs * num_minibatches, num_shards, -1)


def take_minibatch(tree: ArrayTree, indices: Array) -> Any:
    """The samples of one minibatch, or of several.

    Args:
        tree: leaves `[num_shards, shard_size, ...]`.
        indices: int `[..., num_shards, size]`.

    Returns:
        Leaves `[..., num_shards * size, ...]`, shard after shard: one batch axis, because networks and
        losses run up to a fifth slower over two.

    Example:
        >>> import jax.numpy as jnp
        >>> take_minibatch(jnp.array([[5, 6, 7], [0, 1, 2]]), jnp.array([[2, 0], [1, 1]]))
        Array([7, 5, 1, 1], dtype=int32)
    """
    *many, num_shards, size = indices.shape

    def take(x: Array) -> Array:
        rows = jax.vmap(lambda shard, i: shard[i], (0, -2), len(many))(x, indices)
        return rows.reshape(*many, num_shards * size, *x.shape[2:])

    return jax.tree.map(take, tree)


def minibatch_descent(
    key: PRNGKey,
    loss: Callable[[Params, Any], Array],
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    batch: ArrayTree,
    *,
    num_minibatches: int,
    num_epochs: int,
    num_chunks: int | None = None,
) -> tuple[Any, Any, Array]:
    """Several passes of gradient descent over a batch: how a critic is fitted.

    Args:
        key: consumed.
        loss: `(params, minibatch) -> scalar`, where the minibatch has leaves `[size, ...]`.
        optimizer: of the parameters.
        params: to begin with.
        opt_state: of the optimizer.
        batch: leaves `[num_shards, shard_size, ...]`, from `to_shards`.
        num_minibatches: gradient steps in each pass; divides `shard_size`.
        num_epochs: passes.
        num_chunks: a minibatch is differentiated in as many pieces, one after the other; None: 1, on CPUs as
            many as keep a piece within about 512 samples. Of the loss it asks that it is a mean.

    Returns:
        The parameters, the optimizer's state, and the mean loss of all steps.

    Raises:
        ValueError: if a shard does not split into the minibatches.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def loss(x, y):
        ...     return ((x - y) ** 2).mean()
        >>> optimizer = optax.sgd(0.5)
        >>> x, y = jnp.array(0.0), jnp.ones((1, 4))
        >>> key, start = jax.random.key(0), optimizer.init(x)
        >>> minibatch_descent(key, loss, optimizer, x, start, y, num_minibatches=2, num_epochs=1)[0]
        Array(1., dtype=float32)
    """
    shards, size = jax.tree.leaves(batch)[0].shape[:2]
    order = shuffled_minibatches(key, shards, size, num_minibatches, num_epochs)
    order = in_chunks(order, num_chunks)

    def with_value(params: Params, minibatch: Any) -> tuple[Array, Array]:
        value = loss(params, minibatch)
        return value, value

    def gradient_step(loop: tuple[Any, Any], indices: Array) -> tuple[tuple[Any, Any], Array]:
        params, opt_state = loop
        gradient, value = mean_gradient(with_value, params, take_minibatch(batch, indices))
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    (params, opt_state), losses = jax.lax.scan(gradient_step, (params, opt_state), order)
    return params, opt_state, losses.mean()


def in_chunks(indices: Array, num_chunks: int | None = None) -> Array:
    """The indices of minibatches, each in chunks to be differentiated one after the other.

    Args:
        indices: `[..., num_shards, size]`, from `shuffled_minibatches`.
        num_chunks: of each minibatch; None: `descent.default_num_chunks`.

    Returns:
        `[..., num_chunks, num_shards, size / num_chunks]`: every chunk takes from all shards, so that all
        devices have a part in it.

    Raises:
        ValueError: if the samples of a shard do not split into the chunks.
    """
    *many, num_shards, size = indices.shape
    if num_chunks is None:
        num_chunks = default_num_chunks(num_shards, size)
    if num_chunks < 1 or size % num_chunks:
        raise ValueError(
            f"num_chunks={num_chunks} must divide the {size} samples that a minibatch takes from each of the "
            f"{num_shards} shards."
        )
    return jnp.swapaxes(indices.reshape(*many, num_shards, num_chunks, -1), -3, -2)


def _permutations(key: PRNGKey, num: int, size: int) -> Array:
    """Independent random permutations of `range(size)`, int32 `[num, size]`, without sorting.

    The swap-or-not shuffle: in every round a random reflection x → c − x (mod size) pairs the elements, and
    a random bit of each pair says whether its two are swapped. Any number of rounds gives a permutation, for
    any size; after 24 no statistic that the tests look at can tell it from a uniform one, and it is ten to
    seventy times as fast as sorting random numbers.

    Hoang, Morris & Rogaway 2012, An enciphering scheme based on a card shuffle, figure 1; the bit is a
    multiply-shift hash (Dietzfelbinger et al. 1997) with fresh random constants in every round.
    """
    constants = flat_draw(jax.random.bits, key, (3, 24, num, 1), jnp.uint32)
    reflections = (constants[0] % size).astype(jnp.int32)
    multipliers, offsets = constants[1] | 1, constants[2]
    x = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (num, size))

    def swap_or_not(x: Array, constants: tuple[Array, Array, Array]) -> tuple[Array, None]:
        reflection, multiplier, offset = constants
        partner = reflection - x
        partner = jnp.where(partner < 0, partner + size, partner)
        pair = jnp.maximum(x, partner).astype(jnp.uint32)
        swapped = (multiplier * pair + offset) >> 31 == 1
        return jnp.where(swapped, partner, x), None

    # unrolled, all rounds become one fusion, two to four times slower than the loop
    return jax.lax.scan(swap_or_not, x, (reflections, multipliers, offsets))[0]
