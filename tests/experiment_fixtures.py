"""One tiny run that several modules look at; it is trained once."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pgjax.experiment import presets, runner

STEPS = 64 * 11 - 7  # eleven iterations, the last one not whole


def tiny_preset(**changes: Any) -> presets.Preset:
    sizes = {"num_envs": 4, "num_steps": 16, "steps": STEPS, "network": {"hidden": (8,)}}
    return presets.preset("a2c", "CartPole-v1", **(sizes | changes))


_compile_programs = runner.compile_programs


@functools.cache
def _compiled(preset: str, seed: int, seeds: int) -> runner.Programs:
    return _compile_programs(presets.from_json(json.loads(preset)), seed, seeds)


def compile_once(preset: presets.Preset, seed: int, seeds: int) -> runner.Programs:
    """In place of `runner.compile_programs`: compiling is most of a tiny run's time."""
    programs = _compiled(json.dumps(presets.to_json(preset)), seed, seeds)
    return programs._replace(progress=jax.tree.map(jnp.copy, programs.progress))  # a chunk takes it over


@functools.cache
def tiny_run() -> runner.Result:
    folder = Path(tempfile.mkdtemp(prefix="pgjax-test-")) / "run"
    runner.compile_programs = compile_once
    try:
        return runner.run(tiny_preset(), seeds=3, seed=5, out=folder)
    finally:
        runner.compile_programs = _compile_programs
