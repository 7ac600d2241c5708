"""What is said in the same words wherever it is checked."""

import operator
from numbers import Real
from typing import Any


def whole(**numbers: Any) -> None:
    """Refuse what is no whole number.

    Args:
        **numbers: by the name that the caller knows them by.

    Raises:
        ValueError: naming the first that is something else.
    """
    for name, number in numbers.items():
        try:
            is_whole = not isinstance(number, bool) and operator.index(number) is not None
        except TypeError:
            is_whole = False
        if not is_whole:
            raise ValueError(f"{name} must be a whole number, got {number!r}.")


def real(**numbers: Any) -> None:
    """Refuse what is no number.

    Args:
        **numbers: by the name that the caller knows them by.

    Raises:
        ValueError: naming the first that is something else, or NaN.
    """
    for name, number in numbers.items():
        if not isinstance(number, Real) or isinstance(number, bool) or number != number:
            raise ValueError(f"{name} must be a number, got {number!r}.")


def at_least_one(**numbers: Any) -> None:
    """Refuse a number of something that is below 1.

    Args:
        **numbers: by the name that the caller knows them by.

    Raises:
        ValueError: naming the first that is below 1, or no whole number.
    """
    whole(**numbers)
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
