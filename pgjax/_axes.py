"""Arrays of different rank beside one another."""

from pgjax.types import Array


def beside(array: Array, like: Array) -> Array:
    """An array with axes of size 1 behind its own, so that it broadcasts against one of higher rank.

    Args:
        array: `[...]`, such as a flag for every step.
        like: `[..., *more]`, such as an observation for every step.

    Returns:
        `[..., 1, ...]`, of the rank of `like`.
    """
    return array.reshape(array.shape + (1,) * (like.ndim - array.ndim))
