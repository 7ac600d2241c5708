"""Files that are whole or not there, and files that grow."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write all of it or nothing: whoever reads meanwhile sees the old file.

    Args:
        path: the file.
        data: JSON; NaN and infinities become null.

    Raises:
        OSError: if it cannot be written.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple | np.ndarray):
            return [plain(v) for v in value]
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write(path, (json.dumps(plain(data), indent=2, allow_nan=False) + "\n").encode())


def write(path: Path, data: bytes) -> None:
    """Write all of it or nothing, and have it on the disk.

    Args:
        path: the file.
        data: its content.

    Raises:
        OSError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        sync(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk and not only on the way to it.

    Args:
        path: the file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The reverse of `write_json`.

    Args:
        path: the file.

    Returns:
        What is in it.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a run's folder, or not whole.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it holds no object.")
    return data


class Journal:
    """A file that grows, held against other processes until it is closed.

    What cannot be written now stays in memory, and is written with the next that can.
    """

    def __init__(self, path: Path):
        """Open it, or make it.

        Args:
            path: the file; its folder is named if another process holds it.

        Raises:
            ValueError: if another process holds it.
            OSError: if it cannot be opened.
        """
        self.path = path
        self.file: Any = path.open("ab", buffering=0)
        self._end = self.file.tell()
        self._pending = b""
        try:
            _hold(self.file, path.parent)
        except BaseException:
            self.file.close()
            raise

    def cut(self, end: int) -> None:
        """Drop what stands behind a place.

        Args:
            end: bytes that stay.
        """
        self._end = end
        with contextlib.suppress(OSError):  # a device cannot be shortened
            self.file.truncate(end)

    def append(self, data: bytes) -> None:
        """Take something in, and write it as soon as `flush` can.

        Args:
            data: what follows.
        """
        self._pending += data

    def flush(self) -> None:
        """Hand what is kept to the system, so that it outlives this process.

        Raises:
            OSError: if it cannot be written; it is kept, and the file as it was.
        """
        try:
            left = memoryview(self._pending)
            while left:
                left = left[self.file.write(left) :]
        except OSError:
            self.cut(self._end)
            raise
        self._end += len(self._pending)
        self._pending = b""

    def sync(self) -> None:
        """Have it on the disk, so that it outlives the machine."""
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(self.file.fileno())

    def copy_to(self, path: Path) -> None:
        """Write everything to another file, what is kept included.

        Args:
            path: the file.
        """
        with self.path.open("rb") as file:
            path.write_bytes(file.read(self._end) + self._pending)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def _hold(file: Any, folder: Path) -> None:
    """Against other processes, as long as this one lives and the file is open."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder} is being written by another process: wait for it, or end it.") from None
    except OSError:  # a file system without locks
        return
