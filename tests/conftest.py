"""Strict numerics for every test, and what several of them share."""

import functools
import gc
import importlib.metadata
import os
import subprocess
import sys

# Compiling is what the suite spends its time on; 0 tests the programs that users run.
plain = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
# Kernels as XLA made them before: a third of the time to compile, twice as long to run. jaxlib 0.11 has none.
OLD_KERNELS = "--xla_cpu_use_fusion_emitters=false"
known = importlib.metadata.version("jaxlib").startswith("0.10.")
if plain and known and "PGJAX_NEW_KERNELS" not in os.environ:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {OLD_KERNELS}".strip()
# what commands compile that tests start stays out of the user's folders
os.environ.setdefault("PGJAX_COMPILATION_CACHE", "0")

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes so many objects that looking for garbage among them takes a tenth of the suite's time, and
# writing down for each operation which line called which takes some more.
gc.freeze()
gc.set_threshold(100_000, 50, 1000)
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.devices()  # before a test of the command asks for one a core

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


# Few tests, and long ones: at the end one process would wait for the other.
FIRST = ("test_notebooks", "test_processes", "test_placement", "test_resuming", "test_learning_table")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in FIRST)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Tests of equality to the last bits have the kernels that users have, in a process of their own.

    Those that stand together share it; where one of them fails, each is asked alone.
    """
    if OLD_KERNELS not in os.environ.get("XLA_FLAGS", "") or not pyfuncitem.get_closest_marker("last_bits"):
        return None
    together = tuple(
        item.nodeid
        for item in pyfuncitem.session.items
        if item.parent is pyfuncitem.parent and item.get_closest_marker("last_bits")
    )
    root = pyfuncitem.config.rootpath
    if _with_new_kernels(root, together).returncode != 0:
        done = _with_new_kernels(root, (pyfuncitem.nodeid,))
        assert done.returncode == 0, done.stdout + done.stderr
    return True


@functools.cache
def _with_new_kernels(root, tests):
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if flag != OLD_KERNELS]
    environment = os.environ | {"XLA_FLAGS": " ".join(kept), "PGJAX_NEW_KERNELS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


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
