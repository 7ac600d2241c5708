"""The one reverse linear recurrence of the library."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jax import lax

from pgjax._jit import compiled
from pgjax.types import Array, Numeric

# Up to this length rounding errors of a plain scan stay below 1e-5 of the largest value, and on CPU it is
# the fastest form at every batch size that was measured (benchmarks/recurrence.py).
_LONGEST_SCAN = 1024
_LANES = 16  # rows of a number of blocks that is no multiple of it took up to 1.5 times as long


Coefficients: TypeAlias = Callable[..., tuple[Array, Array]]


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


def fused_recurrence(coefficients: Coefficients, rows: tuple[Array, ...], init: Numeric) -> Array:
    """`reverse_recurrence(*coefficients(*rows), init)`, in one pass over memory.

    Short sequences compute x and decay inside the loop, step by step, instead of writing them out before it.

    Args:
        coefficients: `(*rows) -> (x, decay)`, elementwise.
        rows: arrays `[T, ...]`.
        init: the value after the last step.

    Returns:
        y, `[T, ...]`.
    """
    rows = time_major(*rows)
    if rows[0].shape[0] > _LONGEST_SCAN:
        return reverse_recurrence(*coefficients(*rows), init)
    x, decay = jax.eval_shape(coefficients, *(row[0] for row in rows))
    dtype = jnp.result_type(x.dtype, decay.dtype, init, float)
    shape = jnp.broadcast_shapes(x.shape, decay.shape)
    return _loop(coefficients, rows, jnp.broadcast_to(jnp.asarray(init, dtype), shape))


def _loop(coefficients: Coefficients, rows: tuple[Array, ...], init: Array) -> Array:
    def backward(later: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        x, decay = coefficients(*step)
        now = (x + decay * later).astype(later.dtype)
        return now, now

    return lax.scan(backward, init, rows, reverse=True)[1]


def _scan(x: Array, decay: Array, init: Array) -> Array:
    return _loop(lambda x, decay: (x, decay), (x, decay), init)


def _blocked_scan(x: Array, decay: Array, init: Array) -> Array:
    length = x.shape[0]
    num_blocks = _LANES * math.ceil(math.isqrt(length) / _LANES)
    size = -(-length // num_blocks)
    padding = [(0, num_blocks * size - length)] + [(0, 0)] * (x.ndim - 1)

    def blocks(array: Array, fill: float) -> Array:  # [size, num_blocks, ...]
        padded = jnp.pad(array, padding, constant_values=fill)
        return padded.reshape(num_blocks, size, *x.shape[1:]).swapaxes(0, 1)

    def backward(later: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[Any, Any]:
        (local, passed), (x, decay) = later, step
        now = x + decay * local, decay * passed
        return now, now

    # y of every block as if nothing came after it, and what of the step after it arrives
    steps = blocks(x, 0.0), blocks(decay, 1.0)  # the padding passes `init` through
    zeros = jnp.zeros_like(steps[0][0])
    _, (local, passed) = lax.scan(backward, (zeros, zeros + 1.0), steps, reverse=True)
    first = _scan(local[0], passed[0], init)  # y at the first step of every block
    y = local + passed * jnp.concatenate([first[1:], init[None]])[None]
    return y.swapaxes(0, 1).reshape(num_blocks * size, *x.shape[1:])[:length]
