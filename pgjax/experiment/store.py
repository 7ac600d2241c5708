"""The folder of a run: config.json, metrics.csv, checkpoints/, summary.json and curve.png."""

import contextlib
import csv
import importlib.metadata
import io
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax import __version__, training
from pgjax.experiment import checkpoints, presets, threads
from pgjax.experiment.files import Journal, read_json, write_json
from pgjax.placement import Axis
from pgjax.types import Algorithm


class Settings(NamedTuple):
    """What config.json keeps of how a run is made.

    Attributes:
        preset: what is trained.
        seeds: how many runs side by side.
        seed: of the first.
        stop_return: the run ends where the mean of the seeds' returns reaches this.
        checkpoint_every: iterations between two checkpoints; None: ten minutes.
        keep: how many checkpoints stay.
        shard: what is spread over devices.
        devices: how many at most; None: all.
    """

    preset: presets.Preset
    seeds: int = 1
    seed: int = 0
    stop_return: float | None = None
    checkpoint_every: int | None = None
    keep: int = 2
    shard: Axis = "seed"
    devices: int | None = None


# The columns that every algorithm has; what else it measures follows.
COLUMNS = ("seed", "iteration", "env_steps", "episodes", "episode_return", "episode_length")
# What is counted of every iteration, and summed.
SUMS = ("env_steps", "episodes", "episode_return_sum", "episode_length_sum")
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
    environment = re.sub(r"[^\w.-]+", "-", preset.environment)
    name = f"{preset.algorithm}-{environment}-{time.strftime('%Y%m%d-%H%M%S')}"
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


class MetricsFile:
    """metrics.csv of a run, open for appending and held against other processes."""

    def __init__(self, folder: Path, *, until: int = 0, rows: int = 0):
        """Open it, keeping only the rows of iterations before `until`.

        Args:
            folder: the run's.
            until: iterations that stay.
            rows: how many rows that should be.

        Raises:
            ValueError: if another process writes this run, or if rows that should be there are not.
            OSError: if it cannot be opened.
        """
        self.path = folder / "metrics.csv"
        self.journal = Journal(self.path)
        self._header: list[str] = []
        try:
            self.journal.cut(self._find(until, rows) if until else 0)
        except BaseException:
            self.journal.close()
            raise

    def append(self, columns: Mapping[str, Any]) -> None:
        """Write rows and have them with the system, so that they outlive this process.

        Args:
            columns: of equal length. NaN in those about episodes is an empty cell: no episode ended.

        Raises:
            OSError: if they cannot be written; they are kept, and written with the next.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._header:
            self._header = [*COLUMNS, *sorted(set(columns) - set(COLUMNS))]
            writer.writerow(self._header)
        writer.writerows(zip(*(cells(name, columns[name]) for name in self._header), strict=True))
        self.journal.append(text.getvalue().encode())
        self.journal.flush()

    def _find(self, until: int, rows: int) -> int:
        """Where the rows of iteration `until` begin."""
        end, found = 0, -1
        with self.path.open("rb") as file:
            for line in file:
                cells = line.decode(errors="replace").split(",")
                if found < 0:
                    self._header = line.decode(errors="replace").strip().split(",")
                elif (
                    not line.endswith(b"\n")
                    or not cells[1:]
                    or not cells[1].isdigit()
                    or int(cells[1]) >= until
                ):
                    break
                found += 1
                end += len(line)
        if tuple(self._header[: len(COLUMNS)]) != COLUMNS or found != rows:
            raise ValueError(
                f"{self.path} is damaged: of the {until} iterations that the checkpoint has behind it there "
                f"should be {rows} rows, but {max(0, found)} are there."
            )
        return end


def cells(name: str, values: Any) -> list[str]:
    """A column as text.

    Args:
        name: of the column.
        values: of its rows.

    Returns:
        Cells. Where no episode ended there is no return, and the cell is empty; elsewhere a NaN is what was
        measured.
    """
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        return [str(value) for value in values.tolist()]
    missing = "" if name in COLUMNS else "nan"
    return [missing if v != v else f"{v:.7g}" for v in values.tolist()]


def read_metrics(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of metrics.csv.

    Args:
        folder: the run's.

    Returns:
        Arrays by name; an empty cell is NaN. A last line that was cut off is left out, with a warning.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} is not a run's folder, or not whole.")
    if (folder / "runs.csv").is_file():
        raise ValueError(f"{folder} is the folder of a sweep: its picture is {folder / 'heat_map.png'}.")
    with path.open(newline="", encoding="utf-8") as file:
        lines = file.readlines()
    if len(lines) > 1 and not lines[-1].endswith("\n"):  # a run that goes on writes it anew
        warnings.warn(f"The last line of {path} is cut off, and left out.", stacklevel=2)
        lines.pop()
    reader = csv.reader(lines)
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


def load(run: str | os.PathLike[str]) -> tuple[Algorithm[Any], Any, dict[str, Any], dict[str, Any]]:
    """Everything that a run left behind, or has written so far.

    Args:
        run: its folder.

    Returns:
        The algorithm; the state of the latest checkpoint, leaves `[S, ...]`; the content of config.json; the
        columns of metrics.csv.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged. A damaged checkpoint is passed over with a warning if an older one is
            whole.
    """
    algorithm, state, config = load_state(run)
    return algorithm, state, config, read_metrics(Path(run))


def load_state(run: str | os.PathLike[str]) -> tuple[Algorithm[Any], Any, dict[str, Any]]:
    """What `load` gives, but for the metrics.

    Args:
        run: its folder.

    Returns:
        The algorithm, the state and the content of config.json.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as `load`.
    """
    folder = Path(run)
    config = read_config(folder)
    algorithm = presets.build(config["preset"])
    iteration, about, complaints = checkpoints.newest(folder)
    for complaint in complaints:
        warnings.warn(f"{complaint} Taking that of iteration {iteration} instead.", stacklevel=3)
    seeds = config["seeds"]
    like = abstract_run(algorithm, rows=about["rows"], seeds=seeds, iteration=iteration)
    state = jax.device_put(checkpoints.restore(folder, iteration, like)["progress"].state, jax.devices()[0])
    state = jax.tree.map(lambda x: x[None] if seeds == 1 else x[:seeds], state)
    return algorithm, state, config


def abstract_run(algorithm: Algorithm[Any], *, rows: int, seeds: int, iteration: int) -> dict[str, Any]:
    """The shapes of what a checkpoint holds.

    Args:
        algorithm: of the run.
        rows: seeds that run, those that only fill devices included.
        seeds: wanted; a single one has no axis.
        iteration: iterations done.

    Returns:
        `keys` and `progress` of every row, and `history`, the sums of every seed and iteration, as
        `jax.ShapeDtypeStruct`.
    """
    keys = jax.eval_shape(lambda: seed_keys(0, rows) if seeds > 1 else seed_keys(0, 1)[0])
    start = jax.eval_shape(lambda k: training.init_progress(k, algorithm), keys)
    # what has no elements cannot be stored
    names = SUMS if iteration else ()
    history = {name: jax.ShapeDtypeStruct((seeds, iteration), np.float64) for name in names}
    return {"keys": keys, "progress": start, "history": history}


def write_config(folder: Path, settings: Settings, devices: int) -> None:
    """Write config.json: the settings, and where the run began or went on.

    Args:
        folder: the run's.
        settings: of the run.
        devices: that it uses.
    """
    plain = settings._asdict() | {"preset": presets.to_json(settings.preset)}
    where = surroundings()
    # the number asked for may be None; the number in use stands in its place
    write_json(folder / "config.json", plain | where | {"devices": devices})


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json, its preset as a `Preset`.

    Args:
        folder: the run's.

    Returns:
        The fields of `Settings` and what else was noted.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged.
    """
    config = read_json(folder / "config.json")
    if "settings" in config:
        raise ValueError(f"{folder} is the folder of a sweep: pgjax sweep --resume {folder} goes on with it.")
    try:
        config |= {"preset": presets.from_json(config["preset"])}
        config |= {name: int(config[name]) for name in ("seeds", "seed", "keep", "devices")}
        return config | {name: config[name] for name in Settings._fields}
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
        Versions, the device, how many there are, in how many processes, and how many threads a CPU was asked
        to compute with.
    """
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "versions": {"pgjax": __version__, "python": platform.python_version(), **versions},
        "device": f"{device.platform}: {kind}",
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "threads": threads.asked_for() if device.platform == "cpu" else None,
    }


def _processor() -> str:
    """Its model and the cores that this process may use: both decide how sums are ordered."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{model}, {cores} cores"
