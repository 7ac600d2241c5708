"""From a run's folder back to where the run stood, or a list of what is in the way."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pgjax.experiment import checkpoints, files, presets, programs, store
from pgjax.experiment.presets import Preset
from pgjax.experiment.store import Settings


class Times(NamedTuple):
    """What a run has taken, over all its parts.

    Attributes:
        seconds: from the first iteration to the last, less what lies between two parts.
        host_seconds: of these, those in which no program ran.
        compile_seconds: before the first iteration of each part.
    """

    seconds: float = 0.0
    host_seconds: float = 0.0
    compile_seconds: float = 0.0


class Start(NamedTuple):
    """Where a run stands between two iterations.

    Attributes:
        iteration: iterations done.
        history: the sums of each, `[S, iteration]` by name.
        times: they took.
        tree: `keys` and `progress` for `programs.compile_programs`; None at the very beginning.
        diverged_at: `[S]`, −1 for none.
    """

    iteration: int
    history: dict[str, np.ndarray[Any, Any]]
    times: Times
    tree: Any
    diverged_at: np.ndarray[Any, Any]


def beginning(seeds: int) -> Start:
    """Where every run starts.

    Args:
        seeds: how many.

    Returns:
        Nothing done.
    """
    history = {name: np.zeros((seeds, 0)) for name in store.SUMS}
    return Start(0, history, Times(), None, np.full(seeds, -1))


def read(
    folder: Path,
    *,
    changes: Mapping[str, Any],
    allow_inexact: bool,
    warn: Callable[[str], None],
) -> tuple[Settings, Start]:
    """The settings of a run that goes on, and where from: its latest checkpoint that is whole.

    Args:
        folder: the run's.
        changes: fields of `Settings` that are asked for. `preset` may have other steps, not fewer than are
            done, and is otherwise that of the run, as are `seeds` and `seed`; the others may change.
        allow_inexact: go on where versions or devices differ.
        warn: told of everything that is not as it was.

    Returns:
        The settings and the start.

    Raises:
        FileNotFoundError: if this is not a run's folder.
        ValueError: says what differs and what to do about it.
    """
    config = store.read_config(folder)
    kept = Settings(**{name: config[name] for name in Settings._fields})._replace(devices=None)
    settings = kept._replace(**changes)
    _refuse(folder, _differences(_plain(kept), _plain(settings)), "the run has")
    if presets.is_on_host(presets.environment(settings.preset)):
        raise ValueError(
            f"{folder} cannot go on: the environments of {settings.preset.environment} live on the host, and "
            "what they were in the middle of is not in any checkpoint."
        )
    try:
        iteration, about, complaints = checkpoints.newest(folder)
    except FileNotFoundError:
        warn(f"{folder} has no checkpoint yet: the run begins anew.")
        _check_surroundings(folder, config, store.surroundings(), allow_inexact, warn)
        return settings, beginning(settings.seeds)
    for complaint in complaints:
        warn(f"{complaint} Going back to the checkpoint of iteration {iteration}.")
    written = about["settings"]
    _refuse(folder, _differences(written, _plain(settings)), "the checkpoint has")
    _check_steps(folder, written["preset"]["steps"], settings.preset)
    rows, devices = programs.layout(settings)
    _check_surroundings(folder, about, store.surroundings() | {"devices": devices}, allow_inexact, warn)
    algorithm, seeds = presets.build(settings.preset), settings.seeds
    like = store.abstract_run(algorithm, rows=about["rows"], seeds=seeds, iteration=iteration)
    checkpoints.check_room(folder, checkpoints.size(like))  # for the next one, before an old one goes
    tree = checkpoints.restore(folder, iteration, like)
    history = tree.pop("history") or beginning(seeds).history
    done, wanted = int(history["env_steps"].sum(axis=1).max()), settings.preset.steps
    if wanted < kept.preset.steps and wanted < done:
        raise ValueError(f"{folder} has made {done:,} steps already: give at least as many, not {wanted:,}.")
    diverged_at = np.atleast_1d(tree["progress"].diverged_at)[:seeds]
    if rows != about["rows"]:
        tree = programs.fit_rows(tree, seeds, rows)
    return settings, Start(iteration, history, _times(folder, iteration, about), tree, diverged_at)


def describe(settings: Settings, rows: int, devices: int, times: Times) -> dict[str, Any]:
    """What a checkpoint says of its run.

    Args:
        settings: of the run.
        rows: that run.
        devices: that are used.
        times: that it took so far.

    Returns:
        JSON.
    """
    where = store.surroundings() | {"devices": devices}
    return {"settings": _plain(settings), "rows": rows, **times._asdict(), **where}


def _times(folder: Path, iteration: int, about: Mapping[str, Any]) -> Times:
    """What a run took until a checkpoint; those in its summary, if it stopped there: they end later."""
    with contextlib.suppress(OSError, ValueError):  # it is written anew
        summary = files.read_json(folder / "summary.json")
        if summary.get("iterations") == iteration:
            about = summary
    return Times(**{name: about.get(name, 0.0) for name in Times._fields})


def _plain(settings: Settings) -> dict[str, Any]:
    """What makes a run the run that it is."""
    return {
        "preset": presets.to_json(settings.preset),
        "seeds": settings.seeds,
        "seed": settings.seed,
        "shard": settings.shard,
    }


def _differences(kept: Any, asked: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two trees of plain data differ: name, the one value, the other. Steps are another matter."""
    if isinstance(kept, Mapping) and isinstance(asked, Mapping):
        names = [k for k in {**kept, **asked} if k != "steps"]
        prefix = f"{name}." if name else ""
        return [d for k in names for d in _differences(kept.get(k), asked.get(k), prefix + k)]
    return [] if kept == asked else [(name.removeprefix("preset.").removeprefix("options."), kept, asked)]


def _refuse(folder: Path, differences: list[tuple[str, Any, Any]], whose: str) -> None:
    if differences:
        said = ", ".join(f"{name} is {asked} now, {whose} {kept}" for name, kept, asked in differences)
        raise ValueError(f"{folder} cannot go on with other settings: {said}. Begin a new run for that.")


def _check_steps(folder: Path, before: int, preset: Preset) -> None:
    scheduled = [name for name, spec in preset.optimizers.items() if spec.schedule != "constant"]
    if preset.steps != before and scheduled:
        raise ValueError(
            f"{folder} was started with {before:,} steps, and the schedule of {' and '.join(scheduled)} ends "
            f"with them: with {preset.steps:,} steps it would be another run. Begin a new one."
        )


def _check_surroundings(
    folder: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    allow_inexact: bool,
    warn: Callable[[str], None],
) -> None:
    names = ("versions", "device", "devices", "processes", *(["threads"] if "threads" in before else []))
    was, is_now = ({name: where.get(name) for name in names} for where in (before, now))
    said = ", ".join(
        f"{name.removeprefix('versions.')} was {old}, is {new}"
        for name, old, new in _differences(was, is_now)
        if name != "versions.python"  # computes nothing
    )
    if said and not allow_inexact:
        raise ValueError(
            f"{folder} would not go on bit for bit: {said}. Restore what was, or say --allow-inexact "
            "(allow_inexact=True)."
        )
    if said:
        warn(f"From here on the run is no longer bit for bit what it would have been: {said}.")
