"""A run that was cut off goes on as if it had not been, or says what is in the way."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_fixtures import STEPS, compile_once, tiny, tiny_preset, tiny_run

from pgjax import experiment
from pgjax.experiment import checkpoints, files, programs, resuming, runner, store


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch):
    monkeypatch.setattr(runner, "compile_programs", compile_once)


def cut_off(folder, iterations=4, **kept):
    """A run of which `iterations` are done, with a checkpoint of each."""
    seen = []

    def report(snapshot):
        seen.append(snapshot)
        if len(seen) == iterations:
            signal.raise_signal(signal.SIGINT)

    result = runner.run(tiny(checkpoint_every=1, **kept), out=folder, report=report)
    assert result.status == "interrupted"
    return folder


def assert_same_run(folder, whole):
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    ours, theirs = (experiment.load(f)[1] for f in (folder, whole))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)
    same = ("final_return", "final_episodes", "env_steps", "iterations", "iqm", "iqm_interval", "diverged")
    summaries = [files.read_json(f / "summary.json") for f in (folder, whole)]
    for name in same:
        assert summaries[0][name] == summaries[1][name], name


def no_warning(text):
    raise AssertionError(text)


def test_a_run_that_goes_on_is_the_run_that_was_never_cut(tmp_path):
    folder = cut_off(tmp_path / "run")
    result = runner.resume(folder, warn=no_warning)
    assert (result.status, result.summary["iterations"]) == ("finished", 11)
    assert_same_run(folder, tiny_run().folder)


def test_its_times_are_those_of_all_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(
        runner, "compile_programs", lambda *run: compile_once(*run)._replace(compile_seconds=2.0)
    )
    summaries = [files.read_json(cut_off(tmp_path / "run") / "summary.json")]
    for _ in range(2):  # the second time nothing is left to do
        runner.resume(tmp_path / "run", report=lambda snapshot: time.sleep(0.1), warn=no_warning)
        summaries.append(files.read_json(tmp_path / "run" / "summary.json"))
    first, whole, again = summaries
    assert [summary["compile_seconds"] for summary in summaries] == [2.0, 4.0, 4.0]
    assert whole["host_seconds"] >= first["host_seconds"] + 0.1
    assert whole["seconds"] - whole["host_seconds"] > first["seconds"] - first["host_seconds"] > 0
    times = ("seconds", "host_seconds", "steps_per_second")
    assert [again[name] for name in times] == [whole[name] for name in times]


def test_rows_beyond_the_checkpoint_and_torn_ones_are_cut(tmp_path):
    folder = cut_off(tmp_path / "run")
    lines = (tiny_run().folder / "metrics.csv").read_text().splitlines(keepends=True)
    torn = "".join(lines[: 1 + 3 * 6]) + lines[1 + 3 * 6][:9]
    (folder / "metrics.csv").write_text(torn)
    runner.resume(folder, warn=no_warning)
    assert_same_run(folder, tiny_run().folder)


def test_rows_that_are_missing_are_a_damage(tmp_path):
    folder = cut_off(tmp_path / "run")
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:-2]))
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: .* 12 rows, but 10 are there"):
        runner.resume(folder)


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    folder = cut_off(tmp_path / "run")
    (folder / "checkpoints" / "4" / "state" / "_METADATA").write_text("{}")
    said = []
    runner.resume(folder, warn=said.append)
    assert len(said) == 1
    assert "checkpoints/4/state/_METADATA is not what was written" in said[0]
    assert "Going back to the checkpoint of iteration 3" in said[0]
    assert_same_run(folder, tiny_run().folder)


def test_load_passes_over_a_damaged_checkpoint_with_a_warning(tmp_path):
    folder = cut_off(tmp_path / "run")
    (folder / "checkpoints" / "4" / "about.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"4/about\.json is damaged .* Taking that of iteration 3"):
        experiment.load(folder)


def test_a_run_without_a_checkpoint_begins_anew(tmp_path):
    folder = runner.create(tmp_path / "run", tiny())
    (folder / "metrics.csv").write_text("seed,iter")
    said = []
    runner.resume(folder, warn=said.append)
    assert said == [f"{folder} has no checkpoint yet: the run begins anew."]
    assert_same_run(folder, tiny_run().folder)


def test_a_run_that_has_finished_compiles_nothing(tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_run().folder, tmp_path / "run")

    def compile_programs(*args):
        raise AssertionError

    monkeypatch.setattr(runner, "compile_programs", compile_programs)
    result = runner.resume(folder, warn=no_warning)
    assert result.status == "finished"
    assert_same_run(folder, tiny_run().folder)


def test_what_has_diverged_stays_frozen_and_named(tmp_path, monkeypatch):
    def poisoned(settings, start=None):
        compiled = compile_once(settings, start)
        if start is not None:
            return compiled
        state = compiled.progress.state
        params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.learned.params)
        state = state._replace(learned=state.learned._replace(params=params))
        return compiled._replace(progress=compiled.progress._replace(state=state))

    monkeypatch.setattr(runner, "compile_programs", poisoned)
    whole = runner.run(tiny(), out=tmp_path / "whole").folder
    folder = cut_off(tmp_path / "run")
    result = runner.resume(folder, warn=no_warning)
    assert result.summary["diverged"] == {6: 0}
    np.testing.assert_array_equal(store.read_metrics(folder)["seed"], store.read_metrics(whole)["seed"])
    assert_same_run(folder, whole)


class TestRefused:
    def test_other_settings_with_what_differs(self, tmp_path):
        folder = cut_off(tmp_path / "run", 1)
        config = files.read_json(folder / "config.json")
        config["preset"]["options"]["gamma"] = 0.5
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"other settings: gamma is 0\.5 now, the checkpoint has 0\.99"):
            runner.resume(folder, allow_inexact=True)

    def test_settings_asked_for_that_are_not_the_runs(self, tmp_path):
        folder = cut_off(tmp_path / "run", 1)
        changes = {"preset": tiny_preset(optimizer={"learning_rate": 0.5}), "seeds": 4}
        with pytest.raises(
            ValueError, match=r"optimizers\.optimizer\.learning_rate is 0\.5 now, .*, seeds is 4"
        ):
            runner.resume(folder, changes=changes)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"versions": {"jax": "0.0.1"}}, r"jax was .*, is 0\.0\.1"),
            ({"device": "tpu: v9"}, r"device was cpu: .*, is tpu: v9"),
            ({"processes": 2}, r"processes was 1, is 2"),
            ({"threads": "7"}, r"threads was .*, is 7"),
        ],
    )
    def test_another_place_unless_it_may_be_inexact(self, tmp_path, monkeypatch, change, said):
        folder = cut_off(tmp_path / "run", 1)
        here = store.surroundings()
        changed = {k: (here[k] | v if isinstance(v, dict) else v) for k, v in change.items()}
        monkeypatch.setattr(store, "surroundings", lambda: here | changed)
        with pytest.raises(ValueError, match=f"would not go on bit for bit: {said}.*--allow-inexact"):
            runner.resume(folder)
        heard = []
        resuming.read(folder, changes={}, allow_inexact=True, warn=heard.append)
        assert len(heard) == 1
        assert "no longer bit for bit" in heard[0]

    def test_another_python_changes_nothing(self, tmp_path, monkeypatch):
        folder, here = cut_off(tmp_path / "run", 1), store.surroundings()
        other = here | {"versions": here["versions"] | {"python": "4.0"}}
        monkeypatch.setattr(store, "surroundings", lambda: other)
        resuming.read(folder, changes={}, allow_inexact=False, warn=no_warning)

    def test_another_number_of_devices(self, tmp_path, monkeypatch):
        folder = cut_off(tmp_path / "run", 1)
        monkeypatch.setattr(programs, "layout", lambda settings: programs.Layout(4, 2))
        with pytest.raises(ValueError, match="devices was 1, is 2"):
            runner.resume(folder)
        _, start = resuming.read(folder, changes={}, allow_inexact=True, warn=lambda text: None)
        rows = jax.tree.leaves(start.tree["progress"])
        assert {x.shape[0] for x in rows} == {4}
        np.testing.assert_array_equal(rows[0][3], rows[0][0])  # a place that nobody looks at

    def test_fewer_steps_than_it_has_made(self, tmp_path):
        preset = tiny_preset(optimizer={"schedule": "constant"})
        folder = runner.run(tiny()._replace(preset=preset), out=tmp_path / "run").folder
        before = {path: path.read_bytes() for path in folder.glob("*.*")}
        with pytest.raises(ValueError, match=r"has made 704 steps already: give at least as many, not 100\."):
            experiment.run(resume=folder, steps=100)
        assert {path: path.read_bytes() for path in folder.glob("*.*")} == before

    def test_more_steps_where_a_schedule_ends_with_them(self, tmp_path):
        folder = cut_off(tmp_path / "run", 1)
        with pytest.raises(ValueError, match="schedule of optimizer ends with them"):
            experiment.run(resume=folder, steps=2 * STEPS)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"gamma": 0.5}, r"gamma is 0\.5 now, the run has 0\.99"),
            ({"seeds": 4}, "seeds is 4 now, the run has 3"),
            ({"seed": 1, "shard": "data"}, "seed is 1 now, the run has 5, shard is data now"),
            ({"algorithm": "ppo"}, "is a run of a2c on CartPole-v1, not ppo"),
            ({"environment": "Acrobot-v1"}, "is a run of a2c on CartPole-v1, not Acrobot-v1"),
            ({"algorithm": "a2c", "num_envs": 8}, "num_envs is 8 now, the run has 4"),
            ({"out": "elsewhere"}, "stays in its folder: leave out= away"),
        ],
    )
    def test_what_python_asks_for_and_the_run_is_not(self, asked, message):
        with pytest.raises(ValueError, match=message):
            experiment.run(resume=tiny_run().folder, **asked)

    def test_naming_what_it_is_changes_nothing(self, tmp_path):
        """Options that are not named stay those of the run, not the preset's."""
        folder = shutil.copytree(tiny_run().folder, tmp_path / "run")
        assert experiment.run("a2c", "CartPole-v1", resume=folder, gamma=0.99).status == "finished"
        assert experiment.run("a2c", resume=folder).status == "finished"

    def test_what_is_said_of_no_run(self):
        with pytest.raises(ValueError, match="Name the algorithm"):
            experiment.run()
        with pytest.raises(ValueError, match="allow_inexact goes with resume"):
            experiment.run("a2c", allow_inexact=True)

    def test_a_folder_that_is_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
            runner.resume(tmp_path)

    def test_a_run_that_another_process_writes(self, tmp_path):
        folder = cut_off(tmp_path / "run", 1)
        held = store.MetricsFile(folder, until=1, rows=3)
        with pytest.raises(ValueError, match="is being written by another process"):
            runner.resume(folder)
        held.journal.close()
        runner.resume(folder)

    @pytest.mark.parametrize("name", ["checkpoint_every", "keep"])
    def test_no_checkpoints_at_all(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            runner.run(tiny(**{name: 0}), out=tmp_path / "run")


@pytest.mark.last_bits  # two programs, of which one has room for more rows
def test_more_steps_without_a_schedule_are_one_longer_run(tmp_path):
    constant = {"optimizer": {"schedule": "constant"}}
    short = runner.run(tiny(changes=constant | {"steps": 5 * 64}), out=tmp_path / "short").folder
    runner.run(tiny(changes=constant), out=tmp_path / "whole")
    result = experiment.run(resume=short, steps=STEPS)
    assert (result.status, result.summary["steps"]) == ("finished", STEPS)
    assert_same_run(short, tmp_path / "whole")
    assert store.read_config(short)["preset"].steps == STEPS


def test_going_on_compiles_no_more_than_beginning(tmp_path, monkeypatch):
    """The chunk once; the start is read instead of compiled."""
    monkeypatch.setattr(runner, "compile_programs", programs.compile_programs)
    compiled: list[str] = []

    def note(event, seconds, fun_name="", **kwargs):
        name = fun_name.removeprefix("jit(").removesuffix(")")
        if "backend_compile" in event and name in ("init", "advance"):
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    cut_off(tmp_path / "run", 1)
    assert compiled == ["init", "advance"]
    runner.resume(tmp_path / "run")
    assert compiled == ["init", "advance", "advance"]


class TestWhatCannotBeWritten:
    def test_rows_wait_for_room_and_then_follow(self, tmp_path, monkeypatch):
        write, calls, said = files.Journal.flush, [], []

        def flush(self):
            calls.append(1)
            if 2 <= len(calls) <= 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(self)

        monkeypatch.setattr(files.Journal, "flush", flush)
        runner.run(tiny(checkpoint_every=4), out=tmp_path / "run", warn=said.append)
        assert len(said) == 1
        assert said[0].startswith("metrics.csv cannot be written ([Errno 28] No space left on device)")
        assert_same_run(tmp_path / "run", tiny_run().folder)

    def test_a_torn_write_is_taken_back(self, tmp_path):
        file = store.MetricsFile(tmp_path)
        row = {name: np.arange(2) for name in store.COLUMNS}
        file.append(row)
        whole, real = file.path.read_bytes(), file.journal.file

        class Full:
            def write(self, data):
                if len(data) > 5:
                    return real.write(data[:5])
                raise OSError(errno.ENOSPC, "No space left on device")

            def __getattr__(self, name):
                return getattr(real, name)

        file.journal.file = Full()
        with pytest.raises(OSError, match="No space left"):
            file.append(row)
        assert file.path.read_bytes() == whole
        file.journal.file = real
        file.append(row)
        file.journal.close()
        assert len(store.read_metrics(tmp_path)["seed"]) == 6

    def test_a_checkpoint_that_fails_is_tried_again(self, tmp_path, monkeypatch):
        save, calls, said = checkpoints.save, [], []

        def failing(folder, iteration, *args, **kwargs):
            calls.append(iteration)
            if len(calls) <= 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            save(folder, iteration, *args, **kwargs)

        monkeypatch.setattr(checkpoints, "save", failing)
        runner.run(tiny(checkpoint_every=2), out=tmp_path / "run", warn=said.append)
        assert len(said) == 1
        assert said[0].startswith("the checkpoint of iteration 2 cannot be written")
        assert checkpoints.iterations(tmp_path / "run") == [10, 11]
        assert_same_run(tmp_path / "run", tiny_run().folder)

    def test_in_the_end_the_run_is_kept_elsewhere(self, tmp_path, monkeypatch):
        """A device that takes nothing stands for a full disk."""
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        folder = runner.create(tmp_path / "run", tiny())
        (folder / "metrics.csv").symlink_to("/dev/full")
        said = []
        start = resuming.beginning(3)
        result = runner.run_in(folder, tiny(), start, warn=said.append)
        assert result.folder.parent == tmp_path
        assert result.folder != folder
        assert [text.partition(" ")[0] for text in said] == ["metrics.csv", str(folder)]
        assert f"the run is kept in {result.folder}" in said[-1]
        assert_same_run(result.folder, tiny_run().folder)

    def test_a_folder_without_room_is_refused_before_anything_runs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoints, "size", lambda tree: 10**15)
        with pytest.raises(ValueError, match=r"GB free, but the checkpoints may take 3000000\.00 GB"):
            runner.run(tiny(), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_sinks_hear_of_every_chunk_and_one_that_fails_stops_nothing(tmp_path):
    heard, said = [], []

    def failing(step, metrics):
        raise ConnectionError("no network")

    result = runner.run(
        tiny(),
        out=tmp_path / "run",
        sinks=[lambda step, metrics: heard.append((step, dict(metrics))), failing],
        warn=said.append,
    )
    assert result.status == "finished"
    steps = [step for step, _ in heard]
    assert steps == sorted(set(steps))
    assert steps[-1] == 64 * 11
    assert {"policy_loss", "seed_5/policy_loss", "seed_7/entropy"} <= set(heard[0][1])
    assert len(said) == 1
    assert "no network" in said[0]
    assert_same_run(tmp_path / "run", tiny_run().folder)


def test_sigterm_ends_as_ctrl_c_does(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    result = runner.run(
        tiny(), out=tmp_path / "run", report=lambda snapshot: signal.raise_signal(signal.SIGTERM)
    )
    assert signal.getsignal(signal.SIGTERM) is before
    assert result.status == "interrupted"
    runner.resume(tmp_path / "run", warn=no_warning)
    assert_same_run(tmp_path / "run", tiny_run().folder)


def test_the_host_says_how_long_it_took_and_counts_no_computing(tmp_path, monkeypatch):
    tiny_run()  # compiles

    def slow(settings, start=None):
        compiled = compile_once(settings, start)

        def chunk(*args):
            time.sleep(1.0)
            return compiled.chunk(*args)

        return compiled._replace(chunk=chunk)

    monkeypatch.setattr(runner, "compile_programs", slow)
    monkeypatch.setattr(runner, "_CHUNK_SECONDS", 100.0)  # 1, 8 and 2 iterations
    begin = time.perf_counter()
    summary = runner.run(tiny(), out=tmp_path / "run", report=lambda snapshot: time.sleep(0.2)).summary
    assert 3 * 0.2 <= summary["host_seconds"] <= time.perf_counter() - begin - 3 * 1.0


def test_by_default_nothing_is_said_but_python_warns(tmp_path):
    folder = runner.create(tmp_path / "run", tiny())
    with pytest.warns(UserWarning, match="no checkpoint yet"):
        runner.resume(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.resume(folder)


def test_killed_at_random_moments_it_is_the_same_run(tmp_path):
    """A few kills; `python benchmarks/kill.py` does it twenty times."""
    script = Path(__file__).parents[1] / "benchmarks" / "kill.py"
    command = [sys.executable, str(script), "--kills", "2", "--seed", "1", "--folder", str(tmp_path / "kill")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout
    assert "bit for bit the same" in done.stdout
