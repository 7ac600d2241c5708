import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_fixtures import compile_once, tiny, tiny_preset, tiny_run

from pgjax import experiment, training
from pgjax.experiment import files, presets, programs, runner, store


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch):
    monkeypatch.setattr(runner, "compile_programs", compile_once)


def test_a_seed_has_the_same_stream_alone_and_among_others():
    alone = runner.compile_programs(tiny(seeds=1, seed=6))
    _, metrics = alone.chunk(alone.hyper, alone.run_keys, alone.progress, np.int32(0), np.int32(1))
    among = store.read_metrics(tiny_run().folder)
    first = (among["seed"] == 6) & (among["iteration"] == 0)
    for name in ("policy_loss", "value_loss", "entropy", "grad_norm"):
        np.testing.assert_allclose(among[name][first], metrics[name][0], rtol=1e-4, atol=1e-6)
    assert among["episodes"][first] == metrics["episodes"][0]


def test_the_run_is_what_train_does():
    key = store.seed_keys(6, 1)[0]
    state, _ = training.train(key, presets.build(tiny_preset()), 2)
    programs = runner.compile_programs(tiny(seeds=1, seed=6))
    progress, _ = programs.chunk(
        programs.hyper, programs.run_keys, programs.progress, np.int32(0), np.int32(2)
    )
    for ours, theirs in zip(
        jax.tree.leaves(progress.state.learned.params), jax.tree.leaves(state.learned.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_other_lengths_and_a_remainder_compile_nothing():
    programs = runner.compile_programs(tiny())
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    progress, start = programs.progress, 0
    for length in (1, 4, 3):
        progress, _ = programs.chunk(
            programs.hyper, programs.run_keys, progress, np.int32(start), np.int32(length)
        )
        start += length
    jax.block_until_ready(progress)
    assert not compiled


def run_with(tmp_path, report=lambda snapshot: None, **kwargs):
    return runner.run(tiny(**kwargs), out=tmp_path / "run", report=report)


def test_one_diverged_seed_is_frozen_and_named_and_the_others_go_on(tmp_path, monkeypatch):
    def poisoned(*args):
        programs = compile_once(*args)
        state = programs.progress.state
        params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.learned.params)
        state = state._replace(learned=state.learned._replace(params=params))
        return programs._replace(progress=programs.progress._replace(state=state))

    monkeypatch.setattr(runner, "compile_programs", poisoned)
    result = run_with(tmp_path)
    assert result.status == "finished"
    assert result.summary["diverged"] == {6: 0}
    metrics = store.read_metrics(result.folder)
    assert [(metrics["seed"] == s).sum() for s in (5, 6, 7)] == [11, 1, 11]
    assert np.isnan(result.summary["final_return"]).tolist() == [False, True, False]
    summary = files.read_json(result.folder / "summary.json")
    assert summary["final_return"][1] is None
    assert summary["iqm"] is not None


def test_a_run_of_which_all_diverge_stops_early(tmp_path):
    rate = {"name": "sgd", "learning_rate": 1e38, "max_grad_norm": None}
    result = runner.run(tiny(changes={"optimizer": rate}), out=tmp_path / "run")
    assert result.status == "diverged"
    assert set(result.summary["diverged"]) == {5, 6, 7}
    assert result.summary["iterations"] < 11
    assert (result.folder / "checkpoints").is_dir()


def test_ctrl_c_ends_after_the_chunk_and_keeps_the_run(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    result = run_with(tmp_path, report=lambda snapshot: signal.raise_signal(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert result.status == "interrupted"
    assert result.summary["iterations"] == 1
    _, state, _, metrics = experiment.load(result.folder)
    assert len(metrics["seed"]) == 3
    assert jax.tree.leaves(state)[0].shape[0] == 3


def test_an_interrupt_that_raises_is_kept_too(tmp_path):
    def report(snapshot):
        raise KeyboardInterrupt

    result = run_with(tmp_path, report=report)
    assert result.status == "interrupted"
    assert experiment.load(result.folder)[3]["iteration"].max() == 0


@pytest.mark.parametrize("error", [OSError("no terminal"), SystemExit(1)], ids=["error", "closed pipe"])
def test_a_report_that_fails_is_told_once_and_ends_nothing(tmp_path, error):
    said = []

    def report(snapshot):
        raise error

    result = runner.run(tiny(), out=tmp_path / "run", report=report, warn=said.append)
    assert result.status == "finished"
    (text,) = said
    assert "failed, and is silent from here on" in text
    assert repr(error) in text


def test_stop_return_ends_the_run(tmp_path):
    seen = []
    result = run_with(tmp_path, report=seen.append, stop_return=1.0)
    assert result.status == "stopped"
    assert result.summary["iterations"] < 11
    assert np.mean(seen[-1].returns) >= 1.0


def test_evaluate_plays_the_final_policies():
    means = experiment.evaluate(tiny_run().folder, episodes=3)
    assert list(means) == [5, 6, 7]
    assert all(1 <= mean <= 500 for mean in means.values())
    assert means == experiment.evaluate(tiny_run().folder, episodes=3)


def test_evaluate_looks_at_no_metrics(tmp_path):
    folder = shutil.copytree(tiny_run().folder, tmp_path / "copy")
    (folder / "metrics.csv").write_text("x")
    assert experiment.evaluate(folder, episodes=3) == experiment.evaluate(tiny_run().folder, episodes=3)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 2**32}, {"seed": 0.5}, {"episodes": 0}])
def test_an_evaluation_that_cannot_be_is_refused(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        experiment.evaluate(tiny_run().folder, **bad)


def test_whole_episodes_end_at_the_first_iteration_that_is_enough(tmp_path):
    sizes = {"num_episodes": 2, "max_steps": 20, "num_critic_steps": 1, "network": {"hidden": (4,)}}
    preset = presets.preset("reinforce", "CartPole-v1", steps=200, **sizes)
    result = runner.run(store.Settings(preset, seeds=2), out=tmp_path / "run")
    metrics = store.read_metrics(result.folder)
    reached = [metrics["env_steps"][metrics["seed"] == seed] for seed in (0, 1)]
    assert min(steps[-1] for steps in reached) >= 200
    assert min(steps[-2] for steps in reached) < 200


def test_seeds_over_devices_need_no_communication():
    code = """
import numpy as np
from experiment_fixtures import tiny
from pgjax.experiment import runner
import jax
assert jax.device_count() == 2
programs = runner.compile_programs(tiny())
text = programs.chunk.as_text()
assert not [word for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if word in text]
progress, metrics = programs.chunk(
    programs.hyper, programs.run_keys, programs.progress, np.int32(0), np.int32(1)
)
assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(progress)} == {2}
print(*np.asarray(metrics["policy_loss"])[:3, 0])
"""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.path.dirname(__file__),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    metrics = store.read_metrics(tiny_run().folder)
    expected = metrics["policy_loss"][metrics["iteration"] == 0]
    np.testing.assert_allclose([float(x) for x in done.stdout.split()], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": -1}, "seeds must be at least 1"),
        ({"seeds": "2"}, "seeds must be a whole number, got '2'"),
        ({"seeds": 2.0}, "seeds must be a whole number, got 2.0"),
        ({"seeds": True}, "seeds must be a whole number, got True"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"checkpoint_every": 1.5}, "checkpoint_every must be a whole number, got 1.5"),
        ({"devices": "1"}, "devices must be a whole number, got '1'"),
        ({"shard": "seeds"}, 'shard must be "seed" or "data", got \'seeds\''),
        ({"stop_return": "high"}, "stop_return must be a number, got 'high'"),
        ({"stop_return": float("nan")}, "stop_return must be a number, got nan"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(tmp_path, kept, message):
    with pytest.raises(ValueError, match=message):
        run_with(tmp_path, **kept)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kept", [{"seeds": 2}, {"shard": "data"}])
def test_environments_on_the_host_are_one_batch(kept):
    settings = store.Settings(presets.preset("ppo", "gymnasium:CartPole-v1"), **kept)
    with pytest.raises(ValueError, match="live on the host, which can neither map them"):
        runner.check(settings)


def test_a_run_on_the_host_is_evaluated_but_cannot_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "compile_programs", programs.compile_programs)
    sizes = {"num_envs": 4, "num_steps": 8, "steps": 64, "network": {"hidden": (4,)}}
    preset = presets.preset("a2c", "gymnasium:CartPole-v1", **sizes)
    folder = runner.run(store.Settings(preset), out=tmp_path / "run").folder
    assert len(store.read_metrics(folder)["seed"]) == 2
    assert experiment.evaluate(folder, episodes=2)[0] >= 1
    with pytest.raises(ValueError, match="cannot go on: the environments of gymnasium:CartPole-v1 live on"):
        runner.resume(folder)
