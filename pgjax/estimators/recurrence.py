"""The one reverse linear recurrence of the library."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from pgjax._jit import compiled
from pgjax.types import Array, Numeric

# Up to this length rounding errors of a plain scan stay below 1e-5 of the largest value, and on CPU it is
# the fastest form at every batch size that was measured (benchmarks/recurrence.py).
_LONGEST_SCAN = 1024
_LANES = 16  # rows of a number of blocks that is no multiple of it took up to 1.5 times as long
_STRIPS_BYTES = 64  # twice as many strips are more than XLA makes one function of
_LONGEST_GROUP = 128  # at 224 steps rounding errors of 100,000 steps exceeded 1e-5


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

    Every return and advantage of the library is one call of it. Long sequences are cut into blocks that are
    solved side by side and then joined, which keeps float32 rounding from growing with T.

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
    return _long(x, decay, init)


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


@jax.custom_jvp
def _long(x: Array, decay: Array, init: Array) -> Array:
    if init.size != 1:
        return _blocked_scan(x, decay, init)
    return lax.platform_dependent(x, decay, init, cpu=_strips, default=_blocked_scan)


@_long.defjvp
def _long_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """The derivative of a recurrence is a recurrence; loops that write in place would make it slow."""
    (_, decay, init), (x_dot, decay_dot, init_dot) = primals, tangents
    y = _long(*primals)
    later = jnp.concatenate([y[1:], init[None]])
    return y, _blocked_scan(x_dot + decay_dot * later, decay, init_dot)


@custom_vmap
def _strips(x: Array, decay: Array, init: Array) -> Array:
    """One sequence: a few strips of time side by side, each in groups of steps, and the groups joined.

    A step of its loops touches so little (up to 1 KiB) that XLA makes one function of a loop, instead of
    starting a kernel for every operation of every step. Nothing is padded, transposed or stacked, and to
    read the sequence twice takes less time than to write down what would be read again.
    """
    shape, length = x.shape, x.shape[0]
    num_strips = _STRIPS_BYTES // x.itemsize
    strip = length // num_strips
    num_groups = math.ceil(strip / _LONGEST_GROUP)
    sizes = strip // num_groups + (jnp.arange(num_groups, dtype=jnp.int32) < strip % num_groups)
    x, decay, init = x.reshape(-1), decay.reshape(-1), init.reshape(())
    cut = num_strips * strip
    last = _scan(x[cut:], decay[cut:], init)  # fewer steps than strips, mostly none
    end = jnp.append(last, init)[0]
    x, decay = x[:cut].reshape(num_strips, strip), decay[:cut].reshape(num_strips, strip)

    def back(later: Array, time: Array) -> tuple[Array, Array]:
        x_now, decay_now = (lax.dynamic_slice_in_dim(a, time, 1, axis=1)[:, 0] for a in (x, decay))
        return x_now + decay_now * later, decay_now

    def to_start(time: Array, size: Array) -> tuple[Array, tuple[Array, Array]]:
        """A group of each strip: y at its first step as if nothing came after, and what arrives there."""

        def step(_: Any, loop: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            local, passed, time = loop
            local, decay_now = back(local, time - 1)
            return local, decay_now * passed, time - 1

        nothing = jnp.zeros(num_strips, x.dtype)
        local, passed, time = lax.fori_loop(0, size, step, (nothing, nothing + 1.0, time))
        return time, (local, passed)

    def solve(loop: tuple[Array, Array], group: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        def step(_: Any, loop: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            later, y, time = loop
            now, _ = back(later, time - 1)
            return now, lax.dynamic_update_slice_in_dim(y, now[:, None], time - 1, axis=1), time - 1

        later, size = group
        _, y, time = lax.fori_loop(0, size, step, (later, *loop))
        return (y, time), None

    time = jnp.asarray(strip, jnp.int32)
    _, starts = lax.scan(to_start, time, sizes)  # from the last group to the first
    local, passed = (a[::-1].T.reshape(-1) for a in starts)
    after = jnp.append(_scan(local, passed, end)[1:], end).reshape(num_strips, num_groups).T[::-1]
    (y, _), _ = lax.scan(solve, (jnp.zeros_like(x), time), (after, sizes))
    # not concatenated: on two threads that took five times as long
    whole = jnp.zeros((length,), y.dtype).at[:cut].set(y.reshape(-1))
    return whole.at[cut:].set(last).reshape(shape)


@_strips.def_vmap
def _side_by_side(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
    """Several sequences make a step too large for that."""
    del axis_size
    axes = [0 if is_batched else None for is_batched in in_batched]
    return jax.vmap(_blocked_scan, axes)(*arrays), True


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
