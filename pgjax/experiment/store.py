"""The folder of a run: config.json, metrics.csv, summary.json, state/ and curve.png."""

import csv
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pgjax import __version__, training
from pgjax.experiment import presets
from pgjax.types import Algorithm

# The columns that every algorithm has; what else it measures follows.
COLUMNS = ("seed", "iteration", "env_steps", "episodes", "episode_return", "episode_length")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


def create(out: str | os.PathLike[str] | None, preset: presets.Preset) -> Path:
    """Make the run's folder; one that exists is left alone.

    Args:
        out: where; None for `runs/<algorithm>-<environment>-<time>`.
        preset: names the default.

    Returns:
        The folder, empty.

    Raises:
        ValueError: if it exists already or cannot be made.
    """
    name = f"{preset.algorithm}-{preset.environment}-{time.strftime('%Y%m%d-%H%M%S')}"
    wanted = Path("runs", name) if out is None else Path(out)
    for number in range(1, 100):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if out is None and folder.is_dir():  # another run of the same second
                continue
            raise ValueError(
                f"{folder} exists already and is never overwritten: name another --out."
            ) from None
        except OSError as error:
            raise ValueError(f"Cannot make the folder {folder}: {error.strerror}.") from None
        return folder
    raise ValueError(f"{wanted} and its next names exist already: name another --out.")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write all of it or nothing: whoever reads meanwhile sees the old file.

    Args:
        path: the file.
        data: JSON; NaN and infinities become null.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple | np.ndarray):
            return [plain(v) for v in value]
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(plain(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


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


@contextmanager
def open_metrics(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open metrics.csv for writing.

    Args:
        folder: the run's.

    Yields:
        A function that appends rows, given as columns of equal length, and flushes them. NaN in the
        columns about episodes is an empty cell: no episode ended.
    """
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        header: list[str] = []

        def append(columns: Mapping[str, Any]) -> None:
            if not header:
                header.extend([*COLUMNS, *sorted(set(columns) - set(COLUMNS))])
                writer.writerow(header)
            writer.writerows(zip(*(_cells(name, columns[name]) for name in header), strict=True))
            file.flush()

        yield append
        if not header:  # ended before its first iteration
            writer.writerow(COLUMNS)


def _cells(name: str, values: Any) -> list[str]:
    values = np.asarray(values)
    if np.issubdtype(values.dtype, np.integer):
        return [str(v) for v in values.tolist()]
    missing = "" if name in COLUMNS else "nan"
    return [missing if v != v else f"{v:.7g}" for v in values.tolist()]


def read_metrics(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of metrics.csv.

    Args:
        folder: the run's.

    Returns:
        Arrays by name; an empty cell is NaN.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is not a run's folder, or not whole.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if tuple(header[: len(COLUMNS)]) != COLUMNS:
            raise ValueError(f"{path} is damaged: its first line does not name the columns.")
        rows = []
        try:
            for row in reader:
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} cells instead of {len(header)}")
                rows.append([float(cell) if cell else math.nan for cell in row])
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path} is damaged in line {reader.line_num}: {error}.") from None
    table = np.asarray(rows, float).reshape(-1, len(header))
    whole = ("seed", "iteration", "env_steps", "episodes")
    return {
        name: column.astype(np.int64) if name in whole else column
        for name, column in zip(header, table.T, strict=True)
    }


def save_state(folder: Path, state: Any) -> None:
    """Save the final state with orbax.

    Args:
        folder: the run's.
        state: leaves `[S, ...]`.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "state").resolve(), state)


def load(run: str | os.PathLike[str]) -> tuple[Algorithm[Any], Any, dict[str, Any], dict[str, Any]]:
    """Everything that a run left behind.

    Args:
        run: its folder.

    Returns:
        The algorithm; the final state, leaves `[S, ...]`; the content of config.json; the columns of
        metrics.csv.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged.
    """
    folder = Path(run)
    config = read_config(folder)
    algorithm = presets.build(config["preset"])
    metrics = read_metrics(folder)
    path = (folder / "state").resolve()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing: the run has not saved its final state.")

    import orbax.checkpoint as ocp

    keys = jax.eval_shape(lambda: seed_keys(config["seed"], config["seeds"]))
    shapes = jax.eval_shape(lambda keys: training.init_progress(keys, algorithm).state, keys)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            state = checkpointer.restore(path, abstract)
    except Exception as error:  # orbax raises whatever its many layers do
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    return algorithm, state, config, metrics


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json, its preset as a `Preset`.

    Args:
        folder: the run's.

    Returns:
        `preset`, `seeds`, `seed` and what else was noted.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged.
    """
    config = read_json(folder / "config.json")
    try:
        return config | {
            "preset": presets.from_json(config["preset"]),
            "seeds": int(config["seeds"]),
            "seed": int(config["seed"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(f"{folder / 'config.json'} is damaged: {detail}.") from None


def seed_keys(seed: int, seeds: int) -> Any:
    """The keys of seeds `seed`, `seed + 1` and so on.

    Args:
        seed: the first.
        seeds: how many.

    Returns:
        Keys `[seeds]`; each is the same however many there are.
    """
    return jax.numpy.stack([jax.random.key(seed + i) for i in range(seeds)])


def surroundings() -> dict[str, Any]:
    """What a figure depends on beside its settings.

    Returns:
        Versions and the device.
    """
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "versions": {"pgjax": __version__, "python": platform.python_version(), **versions},
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
    }
