"""What the copies of a mapped program agree on."""

from typing import Any

from jax.custom_batching import custom_vmap

from pgjax.types import Array


@custom_vmap
def largest(x: Array) -> Array:
    """The largest entry, of all copies where it is mapped: one value, common to them.

    A loop that runs until then is the same loop for all copies. With a count or a condition for each of them
    every turn would select, for what has ended, the old carry, and so copy all of it. A turn more must do no
    harm to a copy that is done.

    Args:
        x: of any shape; bool gives whether any is True.

    Returns:
        A scalar.
    """
    return x.max()


@largest.def_vmap
def _of_all(axis_size: int, in_batched: Any, x: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return largest(x), False
