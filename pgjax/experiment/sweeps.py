"""Sweeps: many settings, many seeds, one compiled program for all that need no other."""

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pgjax._checks import at_least_one, real, whole
from pgjax.experiment import (
    batches,
    files,
    grid,
    plots,
    presets,
    ranking,
    runner,
    store,
    tidy,
)
from pgjax.experiment.batches import Chunk
from pgjax.experiment.grid import Group, Setting
from pgjax.experiment.presets import Preset
from pgjax.experiment.runner import Result
from pgjax.experiment.tidy import RunRecord


class Sweep(NamedTuple):
    """What config.json keeps of a sweep.

    Attributes:
        preset: what all runs share.
        settings: what differs, each with the same names; run `i * seeds + j` is seed j of setting i.
        drawn: whether they were drawn at random; else they are all combinations.
        seeds: runs of every setting.
        seed: of the first of them; the same seeds for every setting.
        memory: bytes that the runs of a batch may fill, on all devices together; None: most of what is free.
        devices: how many at most; None: all.
        format: of the metrics: "csv" or "parquet".
    """

    preset: Preset
    settings: list[Setting]
    drawn: bool = False
    seeds: int = 1
    seed: int = 0
    memory: float | None = None
    devices: int | None = None
    format: str = "csv"

    def steps_of_settings(self) -> list[int]:
        """How many environment steps a run of each setting is to make.

        Returns:
            One number a setting.
        """
        return [int(setting.get("steps", self.preset.steps)) for setting in self.settings]


class SweepSnapshot(NamedTuple):
    """What there is to say between two chunks.

    Attributes:
        runs: that have ended.
        num_runs: of the sweep.
        env_steps: `[1]`, so far, of all runs.
        steps: wanted of all runs together.
        steps_per_second: over all runs, compiling not counted.
        best: the best interquartile mean so far; None before the first.
        diverged: how many runs did.
    """

    runs: int
    num_runs: int
    env_steps: np.ndarray[Any, Any]
    steps: int
    steps_per_second: float
    best: float | None
    diverged: int


Report = Callable[[SweepSnapshot], None]
Warn = Callable[[str], None]


def run(
    sweep: Sweep,
    *,
    out: str | Path | None = None,
    report: Report = lambda snapshot: None,
    warn: Warn | None = None,
) -> Result:
    """Train all settings and keep everything in a folder.

    Ctrl-C ends the sweep after the chunk under way; the runs that have ended are kept, and `resume` does the
    others.

    Args:
        sweep: what to run.
        out: the folder; None for `runs/sweep-<algorithm>-<environment>-<time>`.
        report: called after every chunk; one that fails is silent from then on, and ends nothing.
        warn: told of what goes wrong without ending the sweep; by default Python's warnings are.

    Returns:
        The folder and the summary.

    Raises:
        ValueError: if a setting cannot be trained, if a run does not fit into the memory, or if the folder
            exists.
    """
    plan = check(sweep)
    named = sweep.preset._replace(algorithm=f"sweep-{sweep.preset.algorithm}")
    folder = store.create(out, named)
    try:
        write_config(folder, sweep)
        return _run(sweep, plan, folder, [], report, warn or _warn)
    except ValueError:
        if not (folder / "runs.csv").exists():  # nothing has ended: nothing to keep
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(
    folder: str | Path,
    *,
    memory: float | None = None,
    devices: int | None = None,
    report: Report = lambda snapshot: None,
    warn: Warn | None = None,
) -> Result:
    """Do what is left of a sweep that was cut off: the runs that have not ended, from their beginning.

    Args:
        folder: the sweep's.
        memory: as in `Sweep`; None: as before.
        devices: as in `Sweep`.
        report: as in `run`.
        warn: as in `run`; also told if versions or the device have changed.

    Returns:
        As `run`; of a sweep that has finished what there is.

    Raises:
        FileNotFoundError: if this is not a sweep's folder.
        ValueError: if it is damaged, or as `run`.
    """
    folder, tell = Path(folder), warn or _warn
    sweep, config = read_config(folder)
    ended = tidy.read_runs(folder)
    if (folder / "summary.json").exists():
        summary = files.read_json(folder / "summary.json")
        if summary.get("runs") == len(sweep.settings) * sweep.seeds:
            return Result(folder, summary["status"], summary)
    sweep = sweep._replace(devices=devices, memory=sweep.memory if memory is None else memory)
    now = store.surroundings()
    changed = [name for name in ("versions", "device") if config.get(name) != now[name]]
    if changed:
        tell(f"The runs that follow have other {' and '.join(changed)} than those before.")
    return _run(sweep, check(sweep), folder, ended, report, tell)


class Plan(NamedTuple):
    """A sweep that was checked.

    Attributes:
        groups: of its settings.
        metrics: names of what the iterations of any of them measure.
    """

    groups: list[Group]
    metrics: list[str]


def check(sweep: Sweep) -> Plan:
    """Trace an iteration of every group: what does not fit together shows before anything is compiled.

    Args:
        sweep: what to run.

    Returns:
        The plan.

    Raises:
        ValueError: names the setting and says what does not fit.
    """
    if jax.process_count() > 1:
        raise ValueError("A sweep runs in one process: give each process a sweep of its own.")
    if sweep.format not in ("csv", "parquet"):
        raise ValueError(f'format must be "csv" or "parquet", got {sweep.format!r}.')
    if sweep.format == "parquet":
        tidy.require_parquet()
    if sweep.memory is not None:
        real(memory=sweep.memory)
        if not sweep.memory > 0:
            raise ValueError(f"memory must be above 0 bytes, got {sweep.memory}.")
    if presets.is_on_host(presets.environment(sweep.preset)):
        raise ValueError(
            f"The environments of {sweep.preset.environment} live on the host, which cannot map them over "
            "settings: train one at a time."
        )
    at_least_one(seeds=sweep.seeds)
    whole(seed=sweep.seed)
    if sweep.devices is not None:
        whole(devices=sweep.devices)
    groups = grid.groups(sweep.preset, sweep.settings)
    first = store.Settings(groups[0].preset, sweep.seeds, sweep.seed, devices=sweep.devices)
    grid.with_name(lambda: runner.check(first), sweep.settings[groups[0].numbers[0]])
    metrics: set[str] = set()
    for group in groups:
        setting = sweep.settings[group.numbers[0]]
        outline = grid.with_name(lambda group=group: batches.outline(group), setting)
        devices = min(_num_devices(sweep), len(group.numbers) * sweep.seeds)
        grid.with_name(lambda x=outline, n=devices: batches.check_room(x, sweep.memory, n), setting)
        metrics |= set(outline.metrics)
    return Plan(groups, sorted(metrics - set(store.SUMS)))


def write_config(folder: Path, sweep: Sweep) -> None:
    """Write config.json.

    Args:
        folder: the sweep's.
        sweep: what runs in it.
    """
    plain = {"preset": presets.to_json(sweep.preset), "settings": grid.to_json(sweep.settings)}
    devices = {"devices": _num_devices(sweep)}
    files.write_json(folder / "config.json", sweep._asdict() | plain | store.surroundings() | devices)


def read_config(folder: Path) -> tuple[Sweep, dict[str, Any]]:
    """What was written of a sweep.

    Args:
        folder: the sweep's.

    Returns:
        The sweep, and all of config.json.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged or that of a single run.
    """
    config = files.read_json(folder / "config.json")
    if "settings" not in config:
        raise ValueError(
            f"{folder} is the folder of a single run, not of a sweep: pgjax train --resume {folder}."
        )
    try:
        plain = {name: config[name] for name in Sweep._fields}
        read = {
            "preset": presets.from_json(config["preset"]),
            "settings": grid.from_json(config["settings"]),
            "devices": None,
        }
        return Sweep(**plain | read), config
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(f"{folder / 'config.json'} is damaged: {detail}.") from None


def _num_devices(sweep: Sweep) -> int:
    return jax.device_count() if sweep.devices is None else sweep.devices


def _run(
    sweep: Sweep, plan: Plan, folder: Path, ended: list[RunRecord], report: Report, warn: Warn
) -> Result:
    record = _Record(folder, sweep, plan, ended, warn)
    try:
        with runner.deferred_interrupt() as interrupted:
            status, failure = "finished", None
            try:
                report = runner.lasting(report, warn)
                for chunk in record.chunks(plan):
                    report(record.snapshot(chunk))
                    if interrupted() and not record.is_complete():
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                status = "interrupted"
            except Exception as error:
                status, failure = "failed", error
            summary = record.summary(status)
            if record.ended:
                folder = record.finish(summary)
    finally:
        record.close()
    if failure is not None:
        raise failure
    return Result(folder, status, summary)


class _Record:
    """What is done and written of a sweep, and what happens where it cannot be written, as with a run."""

    def __init__(self, folder: Path, sweep: Sweep, plan: Plan, ended: Sequence[RunRecord], warn: Warn):
        self.folder, self.sweep, self.ended, self.warn = folder, sweep, [*ended], warn
        others = {*plan.metrics, *store.COLUMNS, *RunRecord._fields}
        self.texts = tidy.setting_columns(sweep.settings, others)
        self.kinds = tidy.setting_kinds(sweep.settings, others)
        header = ["run", *self.texts, *store.COLUMNS, *plan.metrics]
        self.table = tidy.MetricsTable(folder, header, runs={record.run for record in ended})
        self.num_runs = len(sweep.settings) * sweep.seeds
        self.best = ranking.best_score(ended, sweep.seeds)
        self.reported: set[str] = set()
        self.programs, self.batches = 0, 0
        self.begin, self.compile_seconds, self.env_steps = time.perf_counter(), 0.0, 0.0

    def chunks(self, plan: Plan) -> Iterator[Chunk]:
        """Do what is left, and write it: group by group, batch by batch, a second at a time."""
        sweep, done = self.sweep, [record.run for record in self.ended]
        for group in plan.groups:
            runs = np.asarray(group.numbers)[:, None] * sweep.seeds + np.arange(sweep.seeds)
            runs = np.setdiff1d(runs, done)
            if not len(runs):
                continue
            where = {"memory": sweep.memory, "devices": _num_devices(sweep)}
            program = grid.with_name(
                lambda g=group, n=len(runs), where=where: batches.compile_group(g, n, **where),
                sweep.settings[group.numbers[0]],
            )
            self.programs, self.compile_seconds = (
                self.programs + 1,
                self.compile_seconds + program.compile_seconds,
            )
            for first in range(0, len(runs), program.rows):
                mine, self.batches = runs[first : first + program.rows], self.batches + 1
                for chunk in batches.train_batch(group, program, mine, seeds=sweep.seeds, seed=sweep.seed):
                    self._append(chunk)
                    if chunk.ended:
                        self._end(chunk.ended)
                    yield chunk

    def _append(self, chunk: Chunk) -> None:
        """Rows for metrics.csv."""
        self.env_steps += chunk.env_steps
        setting = chunk.columns["run"] // self.sweep.seeds
        values = {name: texts[setting] for name, texts in self.texts.items()}
        with self._surviving("metrics.csv"):
            self.table.append(chunk.columns | values)

    def _end(self, records: Sequence[RunRecord]) -> None:
        """The runs of a batch, once their rows are on the disk."""
        self.ended += records
        settings = {record.setting for record in records}
        mine = [record for record in self.ended if record.setting in settings]
        self.best = ranking.best_score(mine, self.sweep.seeds, self.best)
        with self._surviving("runs.csv"):
            self.table.journal.flush()
            self.table.journal.sync()
            tidy.write_runs(self.folder, self.texts, self.ended)

    def is_complete(self) -> bool:
        """Whether every run has ended."""
        return len(self.ended) == self.num_runs

    def seconds(self) -> float:
        """Since the beginning, compiling not counted."""
        return time.perf_counter() - self.begin - self.compile_seconds

    def snapshot(self, chunk: Chunk) -> SweepSnapshot:
        """What to say after a chunk."""
        steps = self.sweep.seeds * sum(self.sweep.steps_of_settings())
        done = len(self.ended) + (0.0 if chunk.ended else chunk.done)
        return SweepSnapshot(
            runs=len(self.ended),
            num_runs=self.num_runs,
            env_steps=np.array([done / self.num_runs * steps]),
            steps=steps,
            steps_per_second=self.env_steps / self.seconds(),
            best=self.best,
            diverged=sum(record.diverged_at >= 0 for record in self.ended),
        )

    def summary(self, status: str) -> dict[str, Any]:
        """What summary.json says."""
        preset, seconds = self.sweep.preset, self.seconds()
        steps = sorted(set(self.sweep.steps_of_settings()))
        return {
            "algorithm": preset.algorithm,
            "environment": preset.environment,
            "steps": steps[0] if len(steps) == 1 else steps,
            "seeds": self.sweep.seeds,
            "seed": self.sweep.seed,
            "status": status,
            "runs": len(self.ended),
            **ranking.rank(self.sweep.settings, self.ended, self.sweep.seeds),
            "programs": self.programs,
            "batches": self.batches,
            "seconds": seconds,
            "compile_seconds": self.compile_seconds,
            "steps_per_second": self.env_steps / seconds,
            **store.surroundings(),
        }

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Write what there is to the end; elsewhere, if the folder does not take it. Returns the folder."""
        try:
            self.table.journal.flush()
            self._write(self.folder, summary)
            return self.folder
        except OSError as error:
            elsewhere = Path(tempfile.mkdtemp(prefix="pgjax-"))
            write_config(elsewhere, self.sweep)
            self.table.journal.copy_to(elsewhere / "metrics.csv")
            self._write(elsewhere, summary)
            self.warn(f"{self.folder} cannot be written ({error}): the sweep is kept in {elsewhere}.")
            return elsewhere

    def _write(self, folder: Path, summary: Mapping[str, Any]) -> None:
        tidy.write_runs(folder, self.texts, self.ended)
        parquet = self.sweep.format == "parquet" and self.is_complete()
        if parquet:
            tidy.to_parquet(folder / "metrics.csv", folder / "metrics.parquet", self.kinds)
        rows = summary["settings"]
        rows = [row for row in rows if len(row["seeds"]) == self.sweep.seeds] or rows
        settings = [self.sweep.settings[row["number"]] for row in rows]
        returns = [row["final_return"] for row in rows]
        if settings[0] and self.sweep.drawn:
            plots.save(plots.scatter(settings, returns)[0], folder / "scatter.png")
        elif settings[0]:
            plots.save(plots.heat_map(settings, returns), folder / "heat_map.png")
        files.write_json(folder / "summary.json", summary)
        if parquet:  # not before: whoever goes on with this sweep looks for one or the other
            (folder / "metrics.csv").unlink()

    def close(self) -> None:
        """Let go of the folder."""
        self.table.journal.close()

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if what not in self.reported:
                self.reported.add(what)
                self.warn(f"{what} cannot be written ({error}); the sweep goes on, and tries again.")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
