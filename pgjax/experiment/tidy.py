"""Tables of a sweep as files: metrics.csv, a row a run and iteration, and runs.csv, a row a run."""

import csv
import importlib
import importlib.util
import io
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pgjax.experiment import files, store
from pgjax.experiment.grid import Setting, show

WHOLE = ("run", "seed", "iteration", "env_steps", "episodes")
"""Columns of whole numbers."""


class RunRecord(NamedTuple):
    """What a run has come to.

    Attributes:
        run: its number in the sweep.
        setting: the number of its setting.
        seed: its seed.
        iterations: it took.
        env_steps: it took.
        final_return: over its last episodes, before it diverged if it did; NaN if none ended.
        final_episodes: how many those are.
        diverged_at: the iteration of its divergence; −1 for none.
    """

    run: int
    setting: int
    seed: int
    iterations: int
    env_steps: int
    final_return: float
    final_episodes: int
    diverged_at: int


class MetricsTable:
    """metrics.csv of a sweep, open for appending and held against other processes."""

    def __init__(self, folder: Path, header: Sequence[str], *, runs: Collection[int] = ()):
        """Open it, keeping only the rows of some runs.

        Args:
            folder: the sweep's.
            header: its columns; "run" is the first.
            runs: whose rows stay; they stand before all others.

        Raises:
            ValueError: if it has other columns, or if another process writes this sweep.
            OSError: if it cannot be opened.
        """
        self.path = folder / "metrics.csv"
        self.header = list(header)
        self.journal = files.Journal(self.path)
        try:
            end = self._find(runs) if runs else 0
            self.journal.cut(end)
        except BaseException:
            self.journal.close()
            raise
        if not end:
            self.journal.append(_lines([self.header]))

    def append(self, columns: Mapping[str, Any]) -> None:
        """Write rows and have them with the system, so that they outlive this process.

        Args:
            columns: of equal length, by name; those that are missing stay empty.

        Raises:
            OSError: if they cannot be written; they are kept, and written with the next.
        """
        length = len(columns["run"])
        texts = [
            store.cells(name, columns[name]) if name in columns else [""] * length for name in self.header
        ]
        self.journal.append(_lines(zip(*texts, strict=True)))
        self.journal.flush()

    def _find(self, runs: Collection[int]) -> int:
        """Where the rows of other runs begin."""
        wanted, end = {str(run).encode() for run in runs}, 0
        with self.path.open("rb") as file:
            if (first := file.readline()) != _lines([self.header]):
                raise ValueError(f"{self.path} is damaged: its first line does not name the sweep's columns.")
            end = len(first)
            for line in file:
                if line.partition(b",")[0] not in wanted or not line.endswith(b"\n"):
                    break
                end += len(line)
        return end


def setting_columns(settings: Sequence[Setting], others: Collection[str]) -> dict[str, Any]:
    """The columns in which the values of settings stand.

    Args:
        settings: of a sweep.
        others: names of the other columns.

    Returns:
        Texts `[len(settings)]` by the name of the column, in the order of the options: "options." stands
        before the name of one that is also measured.
    """
    return {
        f"options.{name}" if name in others else name: np.array([_cell(s[name]) for s in settings])
        for name in settings[0]
    }


def setting_kinds(settings: Sequence[Setting], others: Collection[str]) -> dict[str, type]:
    """What kind of values stand in those columns.

    Args:
        settings: of a sweep.
        others: names of the other columns.

    Returns:
        A type by the name of the column; `str` for everything but bools and numbers.
    """
    kinds = {}
    for name, column in zip(settings[0], setting_columns(settings, others), strict=True):
        found = {type(setting[name]) for setting in settings} - {type(None)}
        kinds[column] = found.pop() if len(found) == 1 and found <= {bool, int, float} else str
    return kinds


def write_runs(folder: Path, columns: Mapping[str, Any], records: Sequence[RunRecord]) -> None:
    """Write runs.csv, all of it or nothing.

    Args:
        folder: the sweep's.
        columns: from `setting_columns`.
        records: of the runs that have ended.

    Raises:
        OSError: if it cannot be written.
    """
    rows = [
        [*map(_cell, record), *(texts[record.setting] for texts in columns.values())] for record in records
    ]
    files.write(folder / "runs.csv", _lines([[*RunRecord._fields, *columns], *rows]))


def read_runs(folder: Path) -> list[RunRecord]:
    """The runs that have ended.

    Args:
        folder: the sweep's.

    Returns:
        Their records; none if there is no runs.csv yet.

    Raises:
        ValueError: if it is damaged.
    """
    path = folder / "runs.csv"
    if not path.exists():
        return []
    kinds = RunRecord.__annotations__
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                RunRecord(*(kind(row[name] or "nan") for name, kind in kinds.items()))
                for row in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None


def require_parquet() -> None:
    """Refuse where Parquet cannot be written.

    Raises:
        ValueError: says what to install.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            "Parquet is written by pyarrow, which is not here: pip install pyarrow, or take csv."
        )


def to_parquet(source: Path, path: Path, kinds: Mapping[str, type]) -> None:
    """Write a metrics.csv anew as Parquet, a block at a time.

    Args:
        source: the CSV file.
        path: the Parquet file.
        kinds: of the values in the columns of settings, from `setting_kinds`; all other columns are numbers.

    Raises:
        OSError: if it cannot be written.
    """
    pa = importlib.import_module("pyarrow")
    reading, writing = (importlib.import_module(f"pyarrow.{part}") for part in ("csv", "parquet"))
    with source.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file))
    types: dict[str, Any] = {name: pa.int64() if name in WHOLE else pa.float64() for name in header}
    known = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    types |= {name: known.get(kind, pa.string()) for name, kind in kinds.items()}
    options = reading.ConvertOptions(
        column_types=types,
        null_values=[""],
        strings_can_be_null=True,
        true_values=["True"],
        false_values=["False"],
    )
    partial = path.with_name(f".{path.name}.partial")
    try:
        with (
            reading.open_csv(source, convert_options=options) as reader,
            writing.ParquetWriter(partial, reader.schema) as writer,
        ):
            for batch in reader:
                writer.write_batch(batch)
        files.sync(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _lines(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    """Empty for what there is not: None, or NaN."""
    return "" if value is None or value != value else show(value)
