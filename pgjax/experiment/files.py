"""Files that are whole or not there."""

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
