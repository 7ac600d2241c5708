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
    first = jax.tree.map(lambda x: x[0], chunks)
    if num == 1:
        return gradient(params, first)

    def add(total: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, chunk)), None

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first))
    total, _ = jax.lax.scan(add, nothing, chunks)
    return jax.tree.map(lambda x: x / num, total)
