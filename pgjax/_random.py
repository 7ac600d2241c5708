"""Random arrays drawn as one vector: the numbers of `jax.random` in programs that compile faster."""

import math
from collections.abc import Callable
from typing import Any

from pgjax.types import Array, PRNGKey


def flat_draw(draw: Callable[..., Array], key: PRNGKey, shape: tuple[int, ...], *options: Any) -> Array:
    """`draw(key, shape, *options)`, with the shape given to what was drawn.

    Where an array has several axes, jax computes the place of every entry from its indices, in 64 bits and
    inside the generator. That takes XLA two to three times as long to compile as for a vector, and every call
    of a random function compiles its own generator.

    Args:
        draw: of `jax.random`, such as `normal`.
        key: consumed.
        shape: of the array.
        *options: what `draw` takes after the shape, such as a dtype.

    Returns:
        The array.

    Example:
        >>> import jax
        >>> key = jax.random.key(0)
        >>> bool((flat_draw(jax.random.bits, key, (2, 3)) == jax.random.bits(key, (2, 3))).all())
        True
    """
    return draw(key, (math.prod(shape),), *options).reshape(shape)
