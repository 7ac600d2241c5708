import os
import pathlib
import re
import shutil
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest

from pgjax import experiment
from pgjax.experiment import compilation

TRAIN = ["train", "a2c", "--num-envs", "4", "--num-steps", "16", "--network.hidden", "8", "--steps", "640"]
TRAIN += ["--checkpoint-every", "2", "--keep", "9"]
OPTIONS = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
OPTIONS += ("jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes")


def pgjax(*args, cache):
    """The command in a process of its own, as a user has it."""
    ours = ("PGJAX_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in ours} | {"XDG_CACHE_HOME": str(cache)}
    call = [sys.executable, "-m", "pgjax", *map(str, args)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = re.search(r"programs: (\d+) of (\d+) had been compiled before", done.stdout)
    return tuple(map(int, found.groups())) if found else None


def programs(cache, name=""):
    return sorted(pathlib.Path(cache).rglob(f"jit_{name}*-cache"))


def same_state(run, other):
    trees = [experiment.load(folder)[1] for folder in (run, other)]
    leaves = [
        [
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in jax.tree.leaves(tree)
        ]
        for tree in trees
    ]
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of ten iterations, and the folder of the programs that were compiled for it."""
    folder = tmp_path_factory.mktemp("first")
    assert pgjax(*TRAIN, "--out", folder / "run", cache=folder / "cache") is None
    return folder


@pytest.mark.slow
def test_the_second_start_compiles_nothing_and_gives_the_same_run(first, tmp_path):
    kept = programs(first / "cache")
    assert programs(first / "cache", "init-")
    assert programs(first / "cache", "advance-")
    assert len({path.parent for path in kept}) == 1
    assert kept[0].parent.stat().st_mode & 0o077 == 0
    loaded, of = pgjax(*TRAIN, "--out", tmp_path / "run", cache=first / "cache")
    assert loaded == of > 2
    assert programs(first / "cache") == kept
    metrics = [(folder / "run" / "metrics.csv").read_bytes() for folder in (first, tmp_path)]
    assert metrics[0] == metrics[1]
    assert same_state(first / "run", tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_goes_on_with_a_loaded_program_is_the_whole_run_bit_for_bit(first, tmp_path):
    shutil.copytree(first / "run", tmp_path / "run")
    steps = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: path.name)
    assert len(steps) == 5
    for later in steps[1:]:
        shutil.rmtree(later)
    (advance,) = programs(first / "cache", "advance-")
    written = advance.stat().st_mtime_ns
    assert pgjax("train", "--resume", tmp_path / "run", cache=first / "cache")[0] > 0
    assert programs(first / "cache", "advance-") == [advance]  # what resuming runs is what was there
    assert advance.stat().st_mtime_ns == written
    metrics = [(folder / "run" / "metrics.csv").read_bytes() for folder in (first, tmp_path)]
    assert metrics[0] == metrics[1]
    assert same_state(first / "run", tmp_path / "run")


@pytest.mark.slow
def test_a_program_whose_writing_was_cut_off_is_compiled_anew(first, tmp_path):
    (advance,) = programs(first / "cache", "advance-")
    whole = advance.stat().st_size
    advance.write_bytes(advance.read_bytes()[: whole // 2])
    loaded, of = pgjax(*TRAIN, "--out", tmp_path / "run", cache=first / "cache")  # and no word on stderr
    assert loaded == of - 1
    assert advance.stat().st_size > whole // 2


def test_the_damaged_go_once(tmp_path):
    good, bad, empty = (tmp_path / f"jit_{name}-cache" for name in ("good", "bad", "empty"))
    foreign = tmp_path / "jit_zstd-cache"
    good.write_bytes(zlib.compress(b"program" * 100))
    bad.write_bytes(zlib.compress(b"program" * 100)[:-1])
    empty.write_bytes(b"")
    foreign.write_bytes(b"\x28\xb5\x2f\xfd and what only zstd can read")
    compilation.drop_damaged(tmp_path)
    assert {path.name for path in tmp_path.glob("*-cache")} == {good.name, foreign.name}
    bad.write_bytes(b"\x78 neither")
    os.utime(bad, (1.0, 1.0))  # from before the last look
    compilation.drop_damaged(tmp_path)
    assert bad.exists()
    os.utime(bad)
    compilation.drop_damaged(tmp_path)
    assert not bad.exists()


def test_what_was_used_longest_ago_goes_first(tmp_path):
    (tmp_path / "inner").mkdir()
    names = ["a-cache", "inner/b", "c-cache", "d-cache"]
    for age, name in enumerate(names):
        (tmp_path / name).write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000.0 - age, 1000.0 - age))
    os.utime(tmp_path / "d-cache", (2000.0, 1.0))  # written first, read last
    compilation.trim(tmp_path, 400)
    assert all((tmp_path / name).exists() for name in names)
    compilation.trim(tmp_path, 250)
    assert [name for name in names if (tmp_path / name).exists()] == ["a-cache", "d-cache"]


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """No choice of the user's, and jax as it was afterwards."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    for name in (*OPTIONS, "pgjax_compilation_cache"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield before
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.usefixtures("clean")
def test_where_programs_are_kept(tmp_path, monkeypatch):
    said = []
    folder = compilation.keep_programs(said.append)
    assert folder.parent == tmp_path / "pgjax"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compilation.keep_programs(said.append).parent == tmp_path / "home" / ".cache" / "pgjax"
    assert said == []


@pytest.mark.usefixtures("clean")
def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    assert compilation.keep_programs(pytest.fail) == tmp_path / "mine"
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("clean")
def test_it_can_be_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("PGJAX_COMPILATION_CACHE", "0")
    assert compilation.keep_programs(pytest.fail) is None
    assert not jax.config.jax_enable_compilation_cache
    monkeypatch.delenv("PGJAX_COMPILATION_CACHE")
    assert compilation.keep_programs(pytest.fail) is None  # as JAX_ENABLE_COMPILATION_CACHE=0 leaves it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("clean")
def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "pgjax").write_text("in the way")
    said = []
    assert compilation.keep_programs(said.append) is None
    (line,) = said
    assert str(tmp_path / "pgjax") in line
    assert "JAX_COMPILATION_CACHE_DIR" in line
    assert "\n" not in line
    assert jax.config.jax_compilation_cache_dir is None


def test_another_processor_has_a_folder_of_its_own(monkeypatch):
    here = compilation._processor()
    assert compilation._processor() == here
    read = pathlib.Path.read_text
    flags = "processor : 0\nmodel name : Other\nflags : fpu sse\n\nprocessor : 1\nmodel name : Other\n"
    monkeypatch.setattr(
        pathlib.Path, "read_text", lambda path: flags if path.name == "cpuinfo" else read(path)
    )
    other = compilation._processor()
    flags = flags.replace("sse", "sse avx512f")
    assert len({here, other, compilation._processor()}) == 3


def test_only_the_command_keeps_programs():
    call = "import jax, pgjax; from pgjax import experiment; from pgjax.experiment import cli; "
    call += "cli.main(['list']); print(jax.config.jax_compilation_cache_dir)"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "None"
