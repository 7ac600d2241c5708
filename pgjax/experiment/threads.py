"""How many threads XLA computes with on a CPU."""

import os

SMALL = 512
"""Environments, of all seeds together, below which a run is faster with one thread."""

_NAMES = ("PJRT_NPROC", "NPROC")  # XLA reads them where its CPU client starts


def choose_threads(num_envs: int, *, images: bool = False) -> None:
    """One thread for a small run, unless `PJRT_NPROC` or `NPROC` is set.

    XLA hands parts of a program to other threads wherever more than eight of its operations could begin.
    Where each takes a microsecond, as in the loops of a small run, handing over costs more than it brings: on
    two cores DQN with 8 environments makes 1.3 to 1.4 times as many steps a second with one thread as with
    two, PPO with 4 environments 1.25 to 1.3 times. With 2,048 environments, or with a CNN, two threads are 6
    to 12 % faster; such runs keep all cores. Several CPU devices have one thread each in any case.

    It must come before JAX's backend starts; after that it changes nothing.

    Args:
        num_envs: environments of all seeds together.
        images: whether a CNN looks at them.
    """
    if num_envs < SMALL and not images:
        keep_threads(1)


def keep_threads(number: int) -> None:
    """So many threads, unless `PJRT_NPROC` or `NPROC` is set: a run that goes on has as many as before.

    It must come before JAX's backend starts; after that it changes nothing.

    Args:
        number: of threads.
    """
    if not any(os.environ.get(name) for name in _NAMES):
        os.environ[_NAMES[0]] = str(number)


def asked_for() -> str:
    """How many threads XLA computes with; it decides how sums are ordered.

    Returns:
        What `PJRT_NPROC` or `NPROC` says, or "one a core".
    """
    return next((os.environ[name] for name in _NAMES if os.environ.get(name)), "one a core")
