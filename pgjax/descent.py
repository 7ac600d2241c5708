"""The gradient of a mean over a batch, in chunks where that pays."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.types import Array, Params

CACHED_SAMPLES = 512
"""Samples whose activations stay in a CPU's cache while a small network learns from them."""

MeanLoss = Callable[[Params, Any], tuple[Array, Any]]
"""`(params, batch) -> (loss, aux)`, both means over the batch, whose leaves are `[B, ...]`."""


def default_num_chunks(num_shards: int, size: int) -> int:
    """In how many chunks samples go through a network, if nobody says: a minibatch, or a rollout.

    On CPUs a chunk has about `CACHED_SAMPLES` samples, since what lies outside the cache costs more than the
    arithmetic; elsewhere there is one.

    Args:
        num_shards: shards that each chunk takes samples from; the environments of a rollout.
        size: samples of each of them; the steps of a rollout.

    Returns:
        A divisor of `size`.
    """
    wanted = num_shards * size / CACHED_SAMPLES
    if jax.default_backend() != "cpu" or wanted <= 1.0:
        return 1
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))


def mean_gradient(loss: MeanLoss, params: Params, chunks: Any) -> tuple[Any, Any]:
    """The gradient of a mean over a batch, one chunk after the other.

    Equal to that of the whole to rounding, in the memory of one chunk.

    Args:
        loss: of a batch.
        params: where.
        chunks: the batch, leaves `[C, B / C, ...]`.

    Returns:
        The gradient, and the loss's `aux`.

    Example:
        >>> import jax.numpy as jnp
        >>> def loss(x, batch):
        ...     return (x * batch).mean(), batch.max()
        >>> gradient, largest = mean_gradient(loss, jnp.array(2.0), jnp.array([[1.0, 2.0], [3.0, 6.0]]))
        >>> float(gradient), float(largest)
        (3.0, 4.0)
    """
    num = jax.tree.leaves(chunks)[0].shape[0]
    gradient = jax.grad(loss, has_aux=True)
    total = sum_over_chunks(lambda chunk: gradient(params, chunk), chunks)
    return total if num == 1 else jax.tree.map(lambda x: x / num, total)


def sum_over_chunks(function: Callable[[Any], Any], chunks: Any, count: Array | None = None) -> Any:
    """The sum of what a function gives for each chunk, one after the other.

    Args:
        function: of a chunk, leaves `[...]`, to a pytree of numbers.
        chunks: leaves `[C, ...]`.
        count: how many chunks to look at, from the first, where the others would add nothing; None: all. It
            may be traced; reverse differentiation then cannot go through the sum.

    Returns:
        The pytree of sums.

    Example:
        >>> import jax.numpy as jnp
        >>> int(sum_over_chunks(jnp.sum, jnp.array([[1, 2], [3, 4], [0, 0]]), jnp.array(2)))
        10
    """
    num = jax.tree.leaves(chunks)[0].shape[0]
    first = jax.tree.map(lambda x: x[0], chunks)
    if num == 1:
        return function(first)

    function = jax.jit(function, inline=True)  # traced once, for its shapes and for the loop

    def add(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(chunk)), None

    def add_at(i: Array, total: Any) -> Any:
        return add(total, jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, False), chunks))[0]

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, first))
    if count is None:
        return jax.lax.scan(add, nothing, chunks)[0]
    return jax.lax.fori_loop(0, count, add_at, nothing)
