"""What to say of a name that nobody knows."""

import difflib
from collections.abc import Sequence


def advice(name: str, known: Sequence[str]) -> str:
    """Near matches, or else all there is.

    Args:
        name: what was given.
        known: what could have been.

    Returns:
        A sentence.

    Example:
        >>> advice("CartPole-v2", ["CartPole-v1", "Pendulum-v1"])
        'Did you mean CartPole-v1?'
    """
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(lowered[n] for n in near) + "?"
    return "Known are " + ", ".join(known) + "."
