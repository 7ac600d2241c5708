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
_ROW_BYTES = 32  # of a step in all strips: with twice as many XLA no longer makes one function of each loop
_LONGEST_GROUP = 128  # with 224 the error after 100,000 steps without discount exceeded 1e-5


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
    solved side by side and then joined, which keeps float32 rounding from growing with T. A single sequence
    is solved in a form of its own on CPUs, which `grad` knows and `jax.linear_transpose` does not.
    Over 100,000 steps float32 errs by less than 1e-5 of the largest |y| for decays of 0.9, 0.999 and 1, and
    by less than 5e-5 for 0.9999.

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
    if x.shape[0] > _LONGEST_SCAN and init.size == 1:
        return _one_long(x, decay, init)
    return _scan_or_blocks(x, decay, init)


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

    def last(*step: Array) -> Array:
        x, decay = coefficients(*step)
        return x + decay * init + 0.0  # a float, and of the type of the rows: Python's numbers have none

    like = jax.eval_shape(last, *(row[0] for row in rows))
    return _loop(coefficients, rows, jnp.broadcast_to(jnp.asarray(init, like.dtype), like.shape))


def _loop(coefficients: Coefficients, rows: tuple[Array, ...], init: Array) -> Array:
    def backward(later: Array, step: tuple[Array, ...]) -> tuple[Array, Array]:
        x, decay = coefficients(*step)
        now = (x + decay * later).astype(later.dtype)
        return now, now

    return lax.scan(backward, init, rows, reverse=True)[1]


def _scan(x: Array, decay: Array, init: Array) -> Array:
    return _loop(lambda x, decay: (x, decay), (x, decay), init)


def _scan_or_blocks(x: Array, decay: Array, init: Array) -> Array:
    return (_scan if x.shape[0] <= _LONGEST_SCAN else _blocked_scan)(x, decay, init)


def _next(y: Array, init: Array) -> Array:
    """Of every step the y of the step after it."""
    return jnp.concatenate([y[1:], init[None]])


def _local(later: tuple[Array, Array], step: tuple[Array, Array]) -> tuple[Array, Array]:
    """A step back in a block: y as if nothing came after the block, and what of that arrives."""
    (local, passed), (x, decay) = later, step
    return x + decay * local, decay * passed


@jax.custom_jvp
def _one_long(x: Array, decay: Array, init: Array) -> Array:
    return lax.platform_dependent(x, decay, init, cpu=_strips, default=_blocked_scan)


@_one_long.defjvp
def _one_long_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """The derivative of a recurrence is a recurrence: the loops of `_strips` have none in reverse."""
    (_, decay, init), (x_dot, decay_dot, init_dot) = primals, tangents
    y = _one_long(*primals)
    return y, _blocked_scan(x_dot + decay_dot * _next(y, init), decay, init_dot)


@custom_vmap
def _strips(x: Array, decay: Array, init: Array) -> Array:
    """One sequence: a few strips of time side by side, each in groups of steps, and the groups joined.

    A step of its loops touches so little (up to 1 KiB) that XLA makes one function of a loop, instead of
    starting a kernel for every operation of every step. The sequence itself is neither padded nor
    transposed, and to read it twice takes less time than to write down what would be read again. Between
    the loops it is flat: as strips it would be copied on its way to a result of `[T, 1]`.
    """
    shape, length = x.shape, x.shape[0]
    num_strips = _ROW_BYTES // x.itemsize
    strip = length // num_strips
    num_groups = math.ceil(strip / _LONGEST_GROUP)
    sizes = strip // num_groups + (jnp.arange(num_groups, dtype=jnp.int32) < strip % num_groups)
    x, decay, init = x.reshape(-1), decay.reshape(-1), init.reshape(())
    cut = num_strips * strip
    last, end = None, init  # the few steps that fill no row, and what comes after the rows
    if cut < length:
        last = _scan(x[cut:], decay[cut:], init)
        end = last[0]
    x, decay = x[:cut], decay[:cut].reshape(num_strips, strip)

    def row(strips: Array, time: Array) -> Array:
        return lax.dynamic_slice_in_dim(strips, time, 1, 1, allow_negative_indices=False)[:, 0]

    def with_row(strips: Array, row: Array, time: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(strips, row[:, None], time, 1, allow_negative_indices=False)

    def to_start(time: Array, size: Array) -> tuple[Array, tuple[Array, Array]]:
        """`_local` of a group of every strip, at its first step."""

        def step(_: Any, loop: tuple[tuple[Array, Array], Array]) -> tuple[tuple[Array, Array], Array]:
            later, time = loop
            time = time - 1
            return _local(later, (row(strips, time), row(decay, time))), time

        strips, nothing = x.reshape(num_strips, strip), jnp.zeros_like(decay[:, 0])
        found, time = lax.fori_loop(0, size, step, ((nothing, nothing + 1.0), time))
        return time, found

    def solve(loop: tuple[Array, Array], group: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        def step(_: Any, loop: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            later, y, time = loop
            time = time - 1
            now = row(y, time) + row(decay, time) * later
            return now, with_row(y, now, time), time

        (y, time), (later, size) = loop, group
        _, y, time = lax.fori_loop(0, size, step, (later, y.reshape(num_strips, strip), time))
        return (y.reshape(cut), time), None

    time = jnp.asarray(strip, jnp.int32)
    _, starts = lax.scan(to_start, time, sizes)  # from the last group to the first
    local, passed = (a[::-1].T.reshape(-1) for a in starts)
    after = _next(_scan_or_blocks(local, passed, end), end).reshape(num_strips, num_groups).T[::-1]
    (y, _), _ = lax.scan(solve, (x, time), (after, sizes))  # in place: a step reads its x and leaves y there
    if last is None:
        return y.reshape(shape)
    # not concatenated: on two threads that took five times as long
    whole = jnp.zeros((length,), y.dtype).at[:cut].set(y)
    return whole.at[cut:].set(last).reshape(shape)


@_strips.def_vmap
def _strips_of_several(axis_size: int, in_batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
    """In blocks: side by side, strips would touch too much in a step to be one function."""
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
        now = _local(later, step)
        return now, now

    steps = blocks(x, 0.0), blocks(decay, 1.0)  # the padding passes `init` through
    zeros = jnp.zeros_like(steps[0][0])
    _, (local, passed) = lax.scan(backward, (zeros, zeros + 1.0), steps, reverse=True)
    first = _scan(local[0], passed[0], init)  # y at the first step of every block
    y = local + passed * _next(first, init)[None]
    return y.swapaxes(0, 1).reshape(num_blocks * size, *x.shape[1:])[:length]
