"""What is said in the same words wherever it is checked."""

import operator
from numbers import Real
from typing import Any


def whole(**numbers: Any) -> None:
    """Refuse what is no whole number; None is no number, and passes.

    Args:
        **numbers: by the name that the caller knows them by.

    Raises:
        ValueError: naming the first that is something else.
    """
    for name, number in numbers.items():
        try:
            refused = isinstance(number, bool) or (number is not None and operator.index(number) != number)
        except TypeError:
            refused = True
        if refused:
            raise ValueError(f"{name} must be a whole number, got {number!r}.")


def real(**numbers: Any) -> None:
    """Refuse what is no number; None passes.

    Args:
        **numbers: by the name that the caller knows them by.

    Raises:
        ValueError: naming the first that is something else, or NaN.
    """
    for name, number in numbers.items():
        is_real = isinstance(number, Real) and not isinstance(number, bool) and number == number
        if number is not None and not is_real:
            raise ValueError(f"{name} must be a number, got {number!r}.")


def at_least_one(**numbers: Any) -> None:
    """Refuse a number of something that is below 1; None is no number, and passes.

    Args:
        **numbers: by the name that the caller knows them by.

    Raises:
        ValueError: naming the first that is below 1, or no whole number.
    """
    whole(**numbers)
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
