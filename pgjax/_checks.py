"""What is said in the same words wherever it is checked."""


def at_least_one(**numbers: int | None) -> None:
    """Refuse a number of something that is below 1; None is no number, and passes.

    Args:
        **numbers: by the name that the caller knows them by.

    Raises:
        ValueError: naming the first that is below 1.
    """
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
