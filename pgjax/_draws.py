"""Random numbers of traced programs, drawn together: the numbers of `jax.random` from fewer generators.

Every call of a random function compiles a generator of its own, a loop and eight kernels around it. The
numbers of Threefry depend on a key and a count alone, so those of many calls can be drawn in one row.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.random import threefry2x32_p

from pgjax import _jaxpr
from pgjax.types import Array, PRNGKey

_SHORT = 32  # random bits of a key; from here on their places in a row cost more than the row saves
_WORD, _WORDS = 32, 64  # bits


class _Counted(NamedTuple):
    """A random primitive as what Threefry needs for it.

    Attributes:
        keys: `[K, 2]` uint32.
        begins: the first count of each key, uint32 `[K]`.
        each: how many counts each key has, one after the other.
        finish: of both words that a key gives for a count, each uint32 `[K * each]`, to what the primitive
            gives.
    """

    keys: Array
    begins: Array
    each: int
    finish: Callable[[Array, Array], Any]

    @property
    def size(self) -> int:
        """Of the row that it needs."""
        return len(self.keys) * self.each


def draw_row(eqn: core.JaxprEqn, keys: PRNGKey, *messages: Any) -> Any:
    """A random primitive that, mapped over, draws for all keys in one row.

    That compiles in half the time; and where each key draws a few numbers only, XLA would unroll the
    generator along them: ten numbers of each took five times as long to compile as one vector of all.

    Args:
        eqn: is `_jaxpr.is_draw`.
        keys: of any shape.
        *messages: what `random_fold_in` folds in.

    Returns:
        What the primitive gives.
    """
    if messages:
        return _jaxpr.bind(eqn, keys, *messages)

    @jax.custom_batching.custom_vmap
    def draw(keys: Any) -> Any:
        return _jaxpr.bind(eqn, keys)

    @draw.def_vmap
    def _(num_keys: int, batched: list[bool], keys: Any) -> tuple[Any, bool]:
        del num_keys, batched
        row = keys.reshape(-1)
        size = math.prod(eqn.params["shape"])
        short = size < _SHORT or eqn.primitive.name == "random_split"
        counted = _count(eqn, row) if size and short else None
        drawn = draw(row) if counted is None else counted.finish(*_words([counted]))
        return drawn.reshape(*keys.shape, *eqn.params["shape"]), True

    return draw(keys)


def draw_together(f: Callable[..., Any]) -> Callable[..., Any]:
    """A function that gives what `f` gives, to the bit, from as few generators as can be.

    The traced program is evaluated as far as it goes without random numbers; then all that wait are drawn in
    one row; and so on. The start of PPO has 14 generators otherwise, here three.

    Args:
        f: of arrays or trees of them. With side effects it is left as it is.

    Returns:
        The function.
    """

    def together(*inputs: Any) -> Any:
        leaves, tree = jax.tree.flatten(inputs)
        out_trees = []

        def flat(*leaves: Any) -> list[Any]:
            out = f(*jax.tree.unflatten(tree, leaves))
            out_trees.append(jax.tree.structure(out))
            return jax.tree.leaves(out)

        program = _jaxpr.trace(flat, *leaves)
        if program.effects:
            return f(*inputs)
        jaxpr, known = program.jaxpr, _jaxpr.given(program, leaves)
        left = list(jaxpr.eqns)
        while left:
            waiting, later = [], []
            for eqn in left:
                if not all(v in known for v in _jaxpr.variables(eqn.invars)):
                    later.append(eqn)
                elif _jaxpr.is_draw(eqn):
                    waiting.append(eqn)
                else:
                    _jaxpr.run([eqn], known)
            _draw_all(waiting, known)
            left = later
        return jax.tree.unflatten(out_trees[-1], [_jaxpr.read(known, v) for v in jaxpr.outvars])

    return together


def _count(eqn: core.JaxprEqn, keys: PRNGKey, *messages: Any) -> _Counted | None:
    """What Threefry needs for a random primitive.

    Args:
        eqn: is `_jaxpr.is_draw`.
        keys: of any shape.
        *messages: what `random_fold_in` folds in.

    Returns:
        It, or None where the numbers are made in another way: keys of another kind, words of less than 32
        bits, `jax_threefry_partitionable` off.

    References:
        Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    implementation = jax.random.key_impl(keys)
    is_counted = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if implementation != "threefry2x32" or not is_counted:
        return None
    bits = eqn.params.get("bit_width", _WORD)
    if bits not in (_WORD, _WORDS):
        return None
    shape = (*keys.shape, *eqn.params.get("shape", ()))
    begins = jnp.zeros(keys.size, jnp.uint32)
    if messages:
        shape = jnp.broadcast_shapes(keys.shape, jnp.shape(messages[0]))
        keys = jnp.broadcast_to(keys, shape)
        begins = jnp.broadcast_to(jnp.asarray(messages[0], jnp.uint32), shape).ravel()
    data = jax.random.key_data(keys).reshape(-1, 2)
    each = math.prod(eqn.params.get("shape", ()))

    def finish(first: Array, second: Array) -> Any:
        if eqn.primitive.name != "random_bits":
            pairs = jnp.stack([first, second], axis=-1).reshape(*shape, 2)
            return jax.random.wrap_key_data(pairs, impl=implementation)
        if bits == _WORD:
            return (first ^ second).reshape(shape)
        return (first.astype(jnp.uint64) << jnp.uint64(_WORD) | second.astype(jnp.uint64)).reshape(shape)

    return _Counted(data, begins, each, finish)


def _words(draws: list[_Counted]) -> tuple[Array, Array]:
    """Both words that Threefry gives in a row that some draws share.

    The counts of several draws are places in the row less the place of 0. Were they written one behind the
    other, each element of what reads them would make them anew, by a branch for each draw. A single draw has
    no branches, and its row may be long: it needs no third column.
    """
    if len(draws) == 1:
        (draw,) = draws
        row = _repeat(draw.keys, draw.each)
        counts = (draw.begins[:, None] + jnp.arange(draw.each, dtype=jnp.uint32)[None]).ravel()
    else:
        size, zeros = 0, []
        for draw in draws:
            zeros.append(size + jnp.arange(0, draw.size, draw.each, dtype=jnp.uint32) - draw.begins)
            size += draw.size
        keys = jnp.concatenate([draw.keys for draw in draws])
        table = jnp.concatenate([keys, jnp.concatenate(zeros)[:, None]], axis=1)
        last = list(itertools.accumulate(len(draw.keys) for draw in draws))
        parts = zip(jnp.split(table, last[:-1]), draws, strict=True)
        row = jnp.concatenate([_repeat(part, draw.each) for part, draw in parts])
        counts = jnp.arange(size, dtype=jnp.uint32) - row[:, 2]
    return threefry2x32_p.bind(row[:, 0], row[:, 1], jnp.zeros_like(counts), counts)


def _repeat(rows: Array, times: int) -> Array:
    """Each of the rows so many times, one behind the other."""
    return lax.broadcast_in_dim(rows, (len(rows), times, rows.shape[1]), (0, 2)).reshape(-1, rows.shape[1])


def _draw_all(eqns: list[core.JaxprEqn], known: _jaxpr.Values) -> None:
    """Draw what some equations want, in one row where their numbers are counted."""
    row: list[tuple[core.JaxprEqn, _Counted]] = []
    for eqn in eqns:
        counted = _count(eqn, *(_jaxpr.read(known, v) for v in eqn.invars))
        if counted is None or not counted.size:
            _jaxpr.run([eqn], known)
        else:
            row.append((eqn, counted))
    if not row:
        return
    first, second = _words([counted for _, counted in row])
    start = 0
    for eqn, counted in row:
        stop = start + counted.size
        known[eqn.outvars[0]] = counted.finish(first[start:stop], second[start:stop])
        start = stop
