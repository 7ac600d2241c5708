"""Several processes that run the same command: what they share, and what only the first of them does.

With one process every function here is the plain thing that its name says.
"""

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_HEARTBEAT_SECONDS = 20  # a process that is silent for so long is dead, and the others end
_SHUTDOWN_SECONDS = 60
_START_SECONDS = 300  # after which JAX ends the process, without an error that could be caught
_PATIENCE_SECONDS = 10.0


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    index: int | None = None,
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> bool:
    """Join the others, if there are others; must come before JAX's backend starts.

    Args:
        coordinator: `host:port` of process 0; None for JAX_COORDINATOR_ADDRESS, or no others at all.
        num_processes: None for JAX_NUM_PROCESSES, or what the cluster's manager says.
        index: of this process; None for JAX_PROCESS_ID, or what the cluster's manager says.
        warn: told if the others are not there after ten seconds; after five minutes JAX ends the process.

    Returns:
        Whether there are others.

    Raises:
        ValueError: if only some of it is given, if a number is out of its range, or if the port is taken.
        RuntimeError: if JAX's backend has started, or the others were joined before.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is None:
        num_processes = _number("JAX_NUM_PROCESSES")
    if index is None:
        index = _number("JAX_PROCESS_ID")
    if coordinator is None:
        if num_processes is not None or index is not None:
            raise ValueError("Several processes need the address of the first: --coordinator HOST:PORT.")
        return False
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) < 2**16:
        raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--processes must be at least 1, got {num_processes}.")
    if num_processes is not None and index is not None and not 0 <= index < num_processes:
        raise ValueError(f"--process-index must be between 0 and {num_processes - 1}, got {index}.")
    if index == 0 and _is_taken(int(port)):
        raise ValueError(f"Port {port} of this machine is taken: give every process another --coordinator.")
    which = "This process" if index is None else f"Process {index}"
    text = f"{which} still waits for the others at {coordinator}; JAX ends it after {_START_SECONDS} seconds."
    waiting = threading.Timer(_PATIENCE_SECONDS, warn, [text])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            index,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    finally:
        waiting.cancel()
    return True


def is_first() -> bool:
    """Whether this process reports and writes what is written once.

    Returns:
        True for process 0.
    """
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until every process is here.

    Args:
        name: of this place, for the error if one does not come.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(values: Any) -> Any:
    """What the first process says.

    Args:
        values: arrays of numbers, of the same shapes in every process.

    Returns:
        Those of process 0.
    """
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(values)


def agree_on_text(text: str) -> str:
    """What the first process says.

    Args:
        text: at most 4096 bytes.

    Returns:
        That of process 0.
    """
    data = text.encode()
    padded = np.frombuffer(data.ljust(4096, b"\0"), np.uint8)
    return bytes(np.asarray(agree(padded))).rstrip(b"\0").decode()


def any_of(flag: bool) -> bool:
    """Whether it holds in any process.

    Args:
        flag: in this one.

    Returns:
        The same in all.
    """
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def gather(tree: Any) -> Any:
    """Arrays that may lie on the devices of several processes, whole in each.

    Args:
        tree: of arrays.

    Returns:
        The same as NumPy arrays.
    """
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def place(tree: Any, shardings: Any) -> Any:
    """Put arrays that every process has onto the devices of all.

    Args:
        tree: of arrays, typed keys included; the same in every process.
        shardings: one for all leaves, or a tree like it.

    Returns:
        The arrays, each process holding its part.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x: Any, sharding: Any) -> Any:
        if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: put(x, shardings), tree)
    return jax.tree.map(put, tree, shardings)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"The environment variable {variable} must be a number, got {text!r}.")
    return int(text)


def _is_taken(port: int) -> bool:
    """Whether another program listens there: JAX logs that and raises nothing."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # it may have been taken a moment ago
        try:
            listening.bind(("", port))
        except OSError:
            return True
    return False
