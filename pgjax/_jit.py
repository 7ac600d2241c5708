"""The one way in which this library compiles its public functions."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

F = TypeVar("F", bound=Callable[..., Any])


def compiled(*static: str) -> Callable[[F], F]:
    """Compile a function, keep its signature for readers and type checkers.

    Inside an outer `jit` the function is inlined, so composing costs nothing.

    Args:
        *static: names of the arguments that are compile-time constants (sizes, callables, networks).

    Returns:
        A decorator that leaves name, docstring and type as they were.
    """

    def decorate(function: F) -> F:
        return cast(F, jax.jit(function, static_argnames=static, inline=True))

    return decorate
