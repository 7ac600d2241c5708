"""The one reverse linear recurrence of the library."""

import math
from typing import Any

import chex
import jax.numpy as jnp
from jax import lax

from pgjax._jit import compiled
from pgjax.types import Array, Numeric

# Up to this length rounding errors of a plain scan stay below 1e-5 of the largest value, and on CPU it is
# the fastest form at every batch size that was measured (benchmarks/recurrence.py).
_LONGEST_SCAN = 1024


def time_major(*arrays: Any) -> tuple[Array, ...]:
    """Give arrays `[T, ...]` of lower rank the trailing axes of those of higher rank.

    Flags `[T, N]` beside rewards `[T, N, K]` (several objectives, several agents) become `[T, N, 1]`.

    Args:
        *arrays: arrays with the same leading axis T.

    Returns:
        The arrays, all of the same rank.

    Raises:
        AssertionError: if the time axes differ.
    """
    arrays = tuple(jnp.asarray(x) for x in arrays)
    chex.assert_equal_shape_prefix(arrays, 1)
    rank = max(x.ndim for x in arrays)
    return tuple(x.reshape(x.shape + (1,) * (rank - x.ndim)) for x in arrays)


@compiled()
def reverse_recurrence(x: Array, decay: Array, init: Numeric) -> Array:
    """Solve a linear recurrence backwards in time.

        y_t = x_t + decay_t y_{t+1},   y_T = init

    Every return and advantage of the library is one call of it. Long sequences are cut into √T blocks that
    are solved side by side and then joined, which keeps float32 rounding from growing with T.

    Args:
        x: `[T, ...]`.
        decay: `[T, ...]`, broadcast against `x`.
        init: `[...]`, the value after the last step, broadcast against a step of `x`.

    Returns:
        y, `[T, ...]`.

    Example:
        >>> import jax.numpy as jnp
        >>> reverse_recurrence(jnp.ones(3), jnp.full(3, 0.5), 0.0)
        Array([1.75, 1.5 , 1.  ], dtype=float32)
    """
    x, decay = jnp.broadcast_arrays(*time_major(x, decay))
    dtype = jnp.result_type(x, decay, init, float)
    x, decay = x.astype(dtype), decay.astype(dtype)
    init = jnp.broadcast_to(jnp.asarray(init, dtype), x.shape[1:])
    if x.shape[0] <= _LONGEST_SCAN:
        return _scan(x, decay, init)
    return _blocked_scan(x, decay, init)


def _scan(x: Array, decay: Array, init: Array) -> Array:
    def backward(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        now = step[0] + step[1] * later
        return now, now

    return lax.scan(backward, init, (x, decay), reverse=True)[1]


def _blocked_scan(x: Array, decay: Array, init: Array) -> Array:
    length = x.shape[0]
    size = math.isqrt(length)
    num_blocks = -(-length // size)
    padding = [(0, num_blocks * size - length)] + [(0, 0)] * (x.ndim - 1)

    def blocks(array: Array, fill: float) -> Array:  # [size, num_blocks, ...]
        padded = jnp.pad(array, padding, constant_values=fill)
        return padded.reshape(num_blocks, size, *x.shape[1:]).swapaxes(0, 1)

    x_blocks, decay_blocks = blocks(x, 0.0), blocks(decay, 1.0)  # the padding passes `init` through
    zeros = jnp.zeros_like(x_blocks[0])
    local = _scan(x_blocks, decay_blocks, zeros)
    passed = _scan(jnp.zeros_like(x_blocks), decay_blocks, zeros + 1.0)
    first = _scan(local[0], passed[0], init)  # y at the first step of every block
    after = jnp.concatenate([first[1:], init[None]])
    y = local + passed * after[None]
    return y.swapaxes(0, 1).reshape(num_blocks * size, *x.shape[1:])[:length]
