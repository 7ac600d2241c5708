"""One tiny run that several modules look at; it is trained once."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.experiment import presets, runner
from pgjax.experiment.programs import Programs
from pgjax.experiment.store import Settings

STEPS = 64 * 11 - 7  # eleven iterations, the last one not whole


def tiny_preset(**changes: Any) -> presets.Preset:
    sizes = {"num_envs": 4, "num_steps": 16, "steps": STEPS, "network": {"hidden": (8,)}}
    return presets.preset("a2c", "CartPole-v1", **(sizes | changes))


def tiny(seeds: int = 3, seed: int = 5, changes: dict[str, Any] | None = None, **kept: Any) -> Settings:
    return Settings(tiny_preset(**(changes or {})), seeds=seeds, seed=seed, **kept)


_compile_programs = runner.compile_programs


@functools.cache
def _compiled(preset: str, seed: int, seeds: int) -> Programs:
    return _compile_programs(Settings(presets.from_json(json.loads(preset)), seeds=seeds, seed=seed))


def compile_once(settings: Settings, start: Any = None) -> Programs:
    """In place of `runner.compile_programs`: compiling is most of a tiny run's time."""
    programs = _compiled(json.dumps(presets.to_json(settings.preset)), settings.seed, settings.seeds)
    # a chunk takes over what it is given
    progress = programs.progress if start is None else start["progress"]
    return programs._replace(progress=jax.tree.map(lambda x: jnp.array(x, copy=True), progress))


@functools.cache
def tiny_run() -> runner.Result:
    folder = Path(tempfile.mkdtemp(prefix="pgjax-test-")) / "run"
    runner.compile_programs = compile_once
    try:
        return runner.run(tiny(), out=folder)
    finally:
        runner.compile_programs = _compile_programs
