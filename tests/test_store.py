import json
import shutil

import jax
import numpy as np
import pytest
from experiment_fixtures import STEPS, tiny_preset, tiny_run

from pgjax import experiment
from pgjax.experiment import files, presets, store


@pytest.fixture
def copy(tmp_path):
    """The run's folder, to be damaged."""
    return shutil.copytree(tiny_run().folder, tmp_path / "copy")


def test_a_run_leaves_its_files():
    folder = tiny_run().folder
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "metrics.csv", "summary.json", "checkpoints", "curve.png"}
    config = json.loads((folder / "config.json").read_text())
    assert presets.from_json(config["preset"]) == tiny_preset()
    assert (config["seeds"], config["seed"]) == (3, 5)
    assert {"jax", "pgjax", "python"} <= set(config["versions"])


def test_csv_has_one_row_a_seed_and_iteration():
    lines = (tiny_run().folder / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("seed,iteration,env_steps,episodes,episode_return,episode_length,")
    assert len(lines) == 1 + 3 * 11
    metrics = store.read_metrics(tiny_run().folder)
    np.testing.assert_array_equal(metrics["seed"], np.tile([5, 6, 7], 11))
    np.testing.assert_array_equal(metrics["iteration"], np.repeat(np.arange(11), 3))
    np.testing.assert_array_equal(metrics["env_steps"], 64 * (metrics["iteration"] + 1))
    np.testing.assert_array_equal(np.isnan(metrics["episode_return"]), metrics["episodes"] == 0)
    assert not any("nan" in line for line in lines)


def test_summary_agrees_with_the_rows():
    summary = json.loads((tiny_run().folder / "summary.json").read_text())
    metrics = store.read_metrics(tiny_run().folder)
    for seed, value, episodes in zip(
        summary["seeds"], summary["final_return"], summary["final_episodes"], strict=True
    ):
        rows = metrics["seed"] == seed
        count, mean = metrics["episodes"][rows], np.nan_to_num(metrics["episode_return"][rows])
        assert episodes == count.sum() < 100  # so few that all of them count
        assert value == pytest.approx((count * mean).sum() / count.sum(), rel=1e-5)
    assert summary["iqm"] == pytest.approx(np.mean(summary["final_return"]))
    assert summary["iqm_interval"][0] <= summary["iqm"] <= summary["iqm_interval"][1]
    assert summary["status"] == "finished"
    assert summary["env_steps"] == [64 * 11] * 3
    assert summary["steps"] == STEPS
    assert summary["steps_per_second"] > 0
    assert summary["compile_seconds"] > 0


def test_load_gives_back_algorithm_state_config_and_metrics():
    algorithm, state, config, metrics = experiment.load(tiny_run().folder)
    assert config["preset"] == tiny_preset()
    assert set(store.COLUMNS) <= set(metrics)
    one = jax.tree.map(lambda x: x[1], state)
    again, measured = algorithm.step(jax.random.key(0), one)
    assert jax.tree.structure(again) == jax.tree.structure(one)
    assert np.isfinite(measured["policy_loss"])


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "checkpoints"])
def test_a_missing_file_is_named(copy, name):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        experiment.load(copy)


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", '{"preset": {}, "seeds": 1, "seed": 0}'),
        ("metrics.csv", ""),
        ("metrics.csv", "seed,iteration\n"),
        ("metrics.csv", ",".join(store.COLUMNS) + "\n1,2,3\n"),
        ("metrics.csv", ",".join(store.COLUMNS) + "\n1,2,3,x,5,6\n"),
    ],
)
def test_a_damaged_file_is_named(copy, name, text):
    (copy / name).write_text(text)
    with pytest.raises(ValueError, match=name) as error:
        experiment.load(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lost", [1, 3, 30])
def test_a_last_line_that_was_cut_off_is_left_out_with_a_warning(copy, lost):
    """Even in its last cell, where the rest would pass for a number."""
    path = copy / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.warns(UserWarning, match="last line of .*metrics.csv is cut off"):
        found = store.read_metrics(copy)
    whole = store.read_metrics(tiny_run().folder)
    for name, column in whole.items():
        np.testing.assert_array_equal(found[name], column[:-1])


def test_a_sweep_is_no_run(tmp_path):
    for name in ("runs.csv", "metrics.csv"):
        (tmp_path / name).write_text("run\n")
    with pytest.raises(ValueError, match="is the folder of a sweep"):
        store.read_metrics(tmp_path)


def test_an_existing_folder_is_never_overwritten(tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        experiment.run("ppo", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]
    with pytest.raises(ValueError, match="Cannot make the folder"):
        experiment.run("ppo", out=tmp_path / "note" / "run")


def test_default_folders_of_one_second_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {store.create(None, tiny_preset()) for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent.name == "runs" for folder in folders)


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": np.float32(1.0), "b": [float("nan")], 3: np.arange(2)})
    assert files.read_json(path) == {"a": 1.0, "b": [None], "3": [0, 1]}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
