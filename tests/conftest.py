"""Strict numerics for every test, and what several of them share."""

import importlib.metadata
import os

# Compiling is what the suite spends its time on; 0 tests the programs that users run.
plain = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
if plain and importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    # kernels as XLA made them before: a third of the time to compile, twice as long to run
    quick = "--xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()
# what commands compile that tests start stays out of the user's folders
os.environ.setdefault("PGJAX_COMPILATION_CACHE", "0")

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")

# The x64 fixture holds for all examples of a test alike, so a fixture beside `given` is no mistake here.
settings.register_profile(
    "pgjax",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("pgjax")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drop what a module compiled: each program takes memory maps, and Linux grants a process 65,530.

    Beyond that the compiler crashes; the whole suite in two processes comes near.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    """The same random numbers for every test that asks."""
    return np.random.default_rng(0)
