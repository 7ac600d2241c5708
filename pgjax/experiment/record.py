"""What is written of a run, and what happens where it cannot be written."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pgjax.experiment import checkpoints, processes, programs, resuming, store
from pgjax.experiment.resuming import Start, Times
from pgjax.experiment.store import Settings

_CHECKPOINT_SECONDS = 600.0


class Record:
    """What is written of a run, and what happens where it cannot be written.

    Once it is made nothing that goes wrong here ends a run: it is reported once, tried again, and in the end
    everything goes into a folder of the system's temporary ones. With several processes a failure ends all of
    them instead, for they would wait for each other.
    """

    def __init__(self, folder: Path, settings: Settings, start: Start, warn: Callable[[str], None]):
        self.folder, self.settings, self.warn = folder, settings, warn
        self.layout = programs.layout(settings)
        self.saved_at = start.iteration if start.tree is not None else None
        self.saved_time = time.perf_counter()
        self.kept: Any = None
        self.reported: set[str] = set()
        self.metrics: store.MetricsFile | None = None
        if processes.is_first():
            until = np.where(start.diverged_at < 0, start.iteration, start.diverged_at + 1)
            self.metrics = store.MetricsFile(folder, until=start.iteration, rows=int(until.sum()))
            store.write_config(folder, settings, self.layout.devices)

    def append(self, columns: Mapping[str, Any]) -> None:
        """Rows for metrics.csv."""
        if self.metrics is not None:
            with self._surviving("metrics.csv"):
                self.metrics.append(columns)

    def until_checkpoint(self, iteration: int) -> int:
        """Iterations until the next one that is due by their number."""
        every = self.settings.checkpoint_every
        return programs.MAX_CHUNK if every is None else every - iteration % every

    def checkpoint_if_due(self, compiled: Any, progress: Any, history: Any, times: Times) -> None:
        """A checkpoint, every so many iterations or every ten minutes."""
        every, iteration = self.settings.checkpoint_every, history["env_steps"].shape[1]
        late = time.perf_counter() - self.saved_time >= _CHECKPOINT_SECONDS
        if iteration % every == 0 if every else bool(processes.agree(np.asarray(late))):
            self.checkpoint(compiled, progress, history, times)

    def checkpoint(
        self, compiled: Any, progress: Any, history: Any, times: Times, *, last: bool = False
    ) -> None:
        """A checkpoint now; the last one is kept in memory if it cannot be written."""
        iteration, self.saved_time = history["env_steps"].shape[1], time.perf_counter()
        if iteration == self.saved_at:
            return
        tree = {"keys": compiled.keys, "progress": progress, "history": history if iteration else {}}
        about = resuming.describe(self.settings, *self.layout, times)
        rows_are_there = False
        with self._surviving("metrics.csv"):  # a checkpoint is worth nothing without the rows before it
            if self.metrics is not None:
                self.metrics.journal.flush()
                self.metrics.journal.sync()
            rows_are_there = True
        with self._surviving(f"the checkpoint of iteration {iteration}", "checkpoint"):
            if rows_are_there:
                checkpoints.save(self.folder, iteration, tree, about, keep=self.settings.keep)
                self.saved_at = iteration
        if last and self.saved_at != iteration:
            self.kept = iteration, tree, about

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """The summary; and everything elsewhere, if the folder does not take it. Returns the folder."""
        if self.metrics is None:
            return self.folder
        try:
            self.metrics.journal.flush()
            if self.kept is not None:
                checkpoints.save(self.folder, *self.kept, keep=self.settings.keep)
            store.write_json(self.folder / "summary.json", summary)
            return self.folder
        except OSError as error:
            if jax.process_count() > 1:
                raise
            elsewhere = Path(tempfile.mkdtemp(prefix="pgjax-"))
            store.write_config(elsewhere, self.settings, self.layout.devices)
            self.metrics.journal.copy_to(elsewhere / "metrics.csv")
            if self.kept is not None:
                checkpoints.save(elsewhere, *self.kept, keep=self.settings.keep)
            store.write_json(elsewhere / "summary.json", summary)
            self.warn(f"{self.folder} cannot be written ({error}): the run is kept in {elsewhere}.")
            return elsewhere

    def close(self) -> None:
        """Let go of the folder."""
        if self.metrics is not None:
            self.metrics.journal.close()

    @contextmanager
    def _surviving(self, what: str, kind: str | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if jax.process_count() > 1:
                raise
            if (kind or what) not in self.reported:
                self.reported.add(kind or what)
                self.warn(f"{what} cannot be written ({error}); the run goes on, and tries again.")
