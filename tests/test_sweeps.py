import csv
import functools
import importlib.util
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import experiment, training
from pgjax.experiment import (
    batches,
    cli,
    files,
    grid,
    options,
    plots,
    presets,
    ranking,
    store,
    sweep_display,
    sweeps,
    tidy,
)
from pgjax.experiment.tidy import RunRecord

ITERATIONS = 11
SIZES = {"num_envs": 4, "num_steps": 16, "steps": 64 * ITERATIONS - 7, "network": {"hidden": (8,)}}
AXES = {"optimizer": {"learning_rate": [1e-3, 1e-2]}, "gamma": [0.9, 0.99]}
SEEDS, SEED = 2, 5

compile_group = batches.compile_group


@functools.cache
def compiled(preset, num_runs):
    preset = presets.from_json(json.loads(preset))
    values = jax.tree.map(lambda x: np.full(1, x), presets.hyper(preset))
    return compile_group(grid.Group(preset, (0,), values), num_runs, memory=None, devices=1)


def compile_once(group, num_runs, **where):
    """In place of `batches.compile_group`: compiling is most of a tiny sweep's time."""
    static = presets.change(group.preset, gamma=0.5, optimizer={"learning_rate": 0.5})
    return compiled(json.dumps(presets.to_json(static)), num_runs)._replace(compile_seconds=0.0)


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch):
    monkeypatch.setattr(batches, "compile_group", compile_once)


def tiny(axes=AXES, **kept):
    preset, settings = grid.plan("a2c", "CartPole-v1", SIZES | axes)
    return sweeps.Sweep(preset, settings, **{"seeds": SEEDS, "seed": SEED, **kept})


@functools.cache
def tiny_sweep():
    """Four settings of two seeds; nobody may write into its folder."""
    made, batches.compile_group = batches.compile_group, compile_once
    try:
        return sweeps.run(tiny(), out=pathlib.Path(tempfile.mkdtemp(prefix="pgjax-test-")) / "sweep")
    finally:
        batches.compile_group = made


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return np.array([float(row[name] or "nan") for row in rows])


def same_results(folder, other, rtol=1e-4):
    """The rows of two sweeps, whatever the order."""
    for name in ("metrics.csv", "runs.csv"):
        sort = lambda row: (int(row["run"]), int(row.get("iteration", 0)))  # noqa: E731
        ours, theirs = (sorted(rows_of(where / name), key=sort) for where in (folder, other))
        assert len(ours) == len(theirs)
        assert list(ours[0]) == list(theirs[0])
        for column_name in ours[0]:
            np.testing.assert_allclose(column(ours, column_name), column(theirs, column_name), rtol, 1e-5)


def test_every_run_is_what_training_alone_gives():
    rows = rows_of(tiny_sweep().folder / "metrics.csv")
    preset = grid.apply(tiny().preset, {"optimizer.learning_rate": 1e-2, "gamma": 0.9})
    keys = jnp.stack([jax.random.key(SEED + i) for i in range(SEEDS)])
    _, metrics = training.train(keys, presets.build(preset), 4)
    begin = [row for row in rows if int(row["iteration"]) < 4]
    for i in range(SEEDS):
        mine = [row for row in begin if int(row["run"]) == SEEDS * 2 + i]
        others = [row for row in begin if int(row["run"]) == SEEDS * 1 + i]
        assert [int(row["seed"]) for row in mine] == [SEED + i] * 4
        for name in ("policy_loss", "value_loss", "entropy", "grad_norm", "episodes"):
            np.testing.assert_allclose(column(mine, name), metrics[name][i], rtol=1e-4, atol=1e-5)
        assert not np.allclose(column(others, "value_loss"), metrics["value_loss"][i], rtol=1e-2)


def test_the_metrics_are_a_row_for_each_run_and_iteration():
    result = tiny_sweep()
    rows = rows_of(result.folder / "metrics.csv")
    names = list(rows[0])
    assert names[:9] == ["run", "optimizer.learning_rate", "gamma", *store.COLUMNS]
    assert names[9:] == sorted(names[9:])
    assert {"approx_kl", "entropy", "grad_norm", "policy_loss", "value_loss"} <= set(names[9:])
    runs = 4 * SEEDS
    assert sorted((int(r["run"]), int(r["iteration"])) for r in rows) == [
        (run, i) for run in range(runs) for i in range(ITERATIONS)
    ]
    for row in rows:
        setting, seed = divmod(int(row["run"]), SEEDS)
        rate, gamma = [(1e-3, 0.9), (1e-3, 0.99), (1e-2, 0.9), (1e-2, 0.99)][setting]
        assert (float(row["optimizer.learning_rate"]), float(row["gamma"])) == (rate, gamma)
        assert int(row["seed"]) == SEED + seed
        assert int(row["env_steps"]) == 64 * (int(row["iteration"]) + 1)
        assert (row["episode_return"] == "") == (row["episodes"] == "0")


def test_the_runs_and_the_summary_are_made_of_those_rows():
    result = tiny_sweep()
    rows, runs = (rows_of(result.folder / name) for name in ("metrics.csv", "runs.csv"))
    returns = []
    for number, run in enumerate(runs):
        mine = [row for row in rows if int(row["run"]) == number]
        episodes, total = column(mine, "episodes"), np.nan_to_num(column(mine, "episode_return"))
        last = next(i for i in range(ITERATIONS) if episodes[-1 - i :].sum() >= min(100, episodes.sum()))
        counted = episodes[-1 - last :]
        returns.append((counted * total[-1 - last :]).sum() / counted.sum())
        assert int(run["run"]) == number
        assert (int(run["iterations"]), int(run["env_steps"])) == (ITERATIONS, 64 * ITERATIONS)
        np.testing.assert_allclose(float(run["final_return"]), returns[-1], rtol=1e-6)
        assert int(run["final_episodes"]) == counted.sum()
    summary = files.read_json(result.folder / "summary.json")
    assert (summary["runs"], summary["programs"], summary["batches"]) == (8, 1, 1)
    scores = np.mean(np.reshape(returns, (4, SEEDS)), axis=1)
    assert [row["number"] for row in summary["settings"]] == list(np.argsort(-scores))
    assert summary["best"] == np.argmax(scores)
    np.testing.assert_allclose([row["iqm"] for row in summary["settings"]], np.sort(scores)[::-1], rtol=1e-6)


def test_config_repeats_the_sweep():
    sweep, config = sweeps.read_config(tiny_sweep().folder)
    assert sweep == tiny()
    assert config["versions"]["jax"] == jax.__version__
    assert config["devices"] == jax.device_count()


def events():
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **about: (
            found.append(about["fun_name"]) if "backend_compile" in event else None
        )
    )
    return found


@functools.cache
def diverging_sweep():
    """Two groups of two settings, one of which diverges in each, and the programs that were compiled."""
    tiny_sweep()
    rates = {"name": "sgd", "max_grad_norm": None, "learning_rate": [1e-3, 1e38]}
    seen, made = events(), batches.compile_group
    batches.compile_group = compile_group
    try:
        sweep = tiny({"optimizer": rates, "normalize_advantage": [True, False]})
        return sweeps.run(sweep, out=pathlib.Path(tempfile.mkdtemp(prefix="pgjax-test-")) / "sweep"), seen[:]
    finally:
        batches.compile_group = made


def test_one_program_for_each_set_of_static_shapes():
    result, seen = diverging_sweep()
    assert len(result.summary["settings"]) == 4
    assert sorted(seen) == sorted(2 * ["jit(advance)", "jit(start_rows)"])
    assert result.summary["programs"] == 2


@functools.cache
def limited_sweep():
    """The same sweep with memory for three runs at a time, its program and what was compiled."""
    memory = 0.42 * compile_once(group(), 8).num_bytes
    tiny_sweep()
    seen, made, before = events(), [], batches.compile_group

    def compile(*args, **kwargs):
        made.append(compile_group(*args, **kwargs))
        assert 0 < made[-1].num_bytes <= memory
        return made[-1]

    batches.compile_group = compile
    try:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="pgjax-test-")) / "sweep"
        return sweeps.run(tiny(memory=memory), out=folder), made[0], seen[:]
    finally:
        batches.compile_group = before


def three_rows(group, num_runs, **where):
    """In place of `batches.compile_group`: a program for three runs, whatever they are."""
    return limited_sweep()[1]._replace(compile_seconds=0.0)


def test_batches_that_fit_the_memory_give_the_same_results():
    result, program, seen = limited_sweep()
    assert program.rows == 3
    assert result.summary["batches"] == 3  # the last one is not full
    assert result.summary["runs"] == 8
    assert seen == ["jit(advance)", "jit(advance)", "jit(start_rows)"]  # the first was too large
    same_results(result.folder, tiny_sweep().folder)


def test_memory_for_not_even_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "compile_group", compile_group)
    size = batches.outline(grid.groups(tiny().preset, tiny().settings)[0]).num_bytes
    with pytest.raises(ValueError, match=r"state of a single run needs .* MB, and there are 0.0 MB"):
        sweeps.run(tiny(memory=size - 1), out=tmp_path / "sweep")
    with pytest.raises(ValueError, match=r"With optimizer.learning_rate=0.001, gamma=0.9: A single run"):
        sweeps.run(tiny(memory=size + 100), out=tmp_path / "sweep")
    assert not list(tmp_path.iterdir())


def test_a_device_that_runs_out_of_memory_all_the_same(tmp_path, monkeypatch):
    def full(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(
        batches, "compile_group", lambda *_, **__: compile_once(group(), 8)._replace(chunk=full)
    )
    with pytest.raises(ValueError, match="out of memory with 8 runs at a time"):
        sweeps.run(tiny(), out=tmp_path / "sweep")
    assert not list(tmp_path.iterdir())


def group():
    return grid.groups(tiny().preset, tiny().settings)[0]


def test_rows_are_spread_evenly_over_batches_and_devices():
    assert batches._evenly(60, 2, 30) == 30
    assert batches._evenly(60, 2, 16) == 15
    assert batches._evenly(61, 2, 16) == 16
    assert batches._evenly(5, 2, 1) == 1
    for num_runs in range(1, 40):
        for devices in range(1, num_runs + 1):
            for most in range(1, num_runs // devices + 2):
                rows = batches._evenly(num_runs, devices, most) * devices
                number = -(-num_runs // (most * devices))
                assert rows <= most * devices
                assert -(-num_runs // rows) == number


def test_runs_of_whole_episodes_end_with_their_own_steps():
    sizes = {
        "num_episodes": 2,
        "max_steps": 100,
        "num_critic_steps": 1,
        "network": {"hidden": (4,)},
        "steps": 400,
    }
    preset, settings = grid.plan("reinforce", "CartPole-v1", sizes | {"gamma": [0.9, 0.99]})
    (one,) = grid.groups(preset, settings)
    program = compile_group(one, 4, memory=None, devices=1)

    def records(runs):
        chunks = list(batches.train_batch(one, program, np.array(runs), seeds=4, seed=0))
        rows = {name: np.concatenate([c.columns[name] for c in chunks]) for name in chunks[0].columns}
        return chunks[-1].ended, rows

    together, rows = records([0, 1, 2, 3])
    assert len({record.iterations for record in together}) > 1
    for record in together:
        mine = rows["env_steps"][rows["run"] == record.run]
        assert len(mine) == record.iterations
        assert mine[-1] == record.env_steps >= 400 > mine[-2]
        (alone,), _ = records([record.run])
        assert alone == record


def test_a_run_that_diverges_is_frozen_counted_and_named():
    result, _ = diverging_sweep()
    assert result.status == "finished"
    rows = rows_of(result.folder / "metrics.csv")
    for row in result.summary["settings"]:
        diverges = row["setting"]["optimizer.learning_rate"] > 1.0
        assert set(row["diverged"]) == ({SEED, SEED + 1} if diverges else set())
    for record in tidy.read_runs(result.folder):
        if record.setting in (2, 3):
            assert 0 <= record.diverged_at < ITERATIONS - 1
        else:
            assert record.diverged_at == -1
        last = ITERATIONS if record.diverged_at < 0 else record.diverged_at + 1
        assert sum(int(row["run"]) == record.run for row in rows) == record.iterations == last
    assert "2 (5, 6)" in show(sweep_display.table(result.summary))


def show(table):
    from rich.console import Console

    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_ctrl_c_keeps_what_has_ended_and_resume_does_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "compile_group", three_rows)

    def stop_in_the_second_batch(snapshot):
        assert snapshot.env_steps.sum() <= snapshot.steps
        if snapshot.runs == 3:
            signal.raise_signal(signal.SIGINT)

    result = sweeps.run(tiny(), out=tmp_path / "sweep", report=stop_in_the_second_batch)
    assert result.status == "interrupted"
    assert [row["number"] for row in sorted(result.summary["settings"], key=lambda r: r["number"])] == [0, 1]
    assert [len(row["seeds"]) for row in result.summary["settings"]] == [2, 1]
    assert [int(row["run"]) for row in rows_of(result.folder / "runs.csv")] == [0, 1, 2]
    assert files.read_json(result.folder / "summary.json")["status"] == "interrupted"
    assert (result.folder / "heat_map.png").stat().st_size > 5_000
    # as if the process had been killed while it wrote a row of a later batch
    with (result.folder / "metrics.csv").open("a") as file:
        file.write("3,0.01,0.9,5,0,64,1,20.0,20.0,0.1,0.1,0.1,0.1,0.1\n4,0.01,0.9,6,0,6")
    assert sweeps.resume(result.folder).status == "finished"
    same_results(result.folder, tiny_sweep().folder)
    again = sweeps.resume(result.folder)
    assert (again.status, again.summary["runs"]) == ("finished", 8)


def test_steps_may_differ_between_settings():
    sweep = sweeps.Sweep(presets.preset("a2c", steps=100), [{"steps": 40}, {"steps": 80}])
    assert sweep.steps_of_settings() == [40, 80]
    assert sweep._replace(settings=[{"gamma": 0.5}]).steps_of_settings() == [100]


def test_an_interrupt_before_anything_has_ended(tmp_path):
    def report(snapshot):
        raise KeyboardInterrupt

    result = sweeps.run(tiny(), out=tmp_path / "sweep", report=report)
    assert result.status == "interrupted"
    assert result.summary["settings"] == []
    assert result.summary["best"] is None
    assert len(rows_of(result.folder / "metrics.csv")) == 8
    assert "no best setting" in sweep_display.verdict(result.summary)
    assert sweeps.resume(result.folder).status == "finished"
    same_results(result.folder, tiny_sweep().folder)


def test_a_disk_that_is_full_loses_nothing(tmp_path, monkeypatch):
    said = []

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Journal, "flush", full)
    result = sweeps.run(tiny(), out=tmp_path / "sweep", warn=said.append)
    assert result.folder.parent != tmp_path
    assert "cannot be written" in said[0]
    assert str(result.folder) in said[-1]
    same_results(result.folder, tiny_sweep().folder)


def test_what_is_not_a_sweeps_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        experiment.sweep(resume=tmp_path)
    files.write_json(tmp_path / "config.json", {"preset": {}, "seeds": 3})
    with pytest.raises(ValueError, match="of a single run, not of a sweep"):
        experiment.sweep(resume=tmp_path)
    with pytest.raises(ValueError, match="keeps its settings"):
        experiment.sweep("ppo", resume=tmp_path)
    for kept in ({"seeds": 2}, {"seed": 0}, {"format": "csv"}, {"random": 3}):
        with pytest.raises(ValueError, match="keeps its settings"):
            experiment.sweep(resume=tmp_path, **kept)
    with pytest.raises(ValueError, match="Name the algorithm"):
        experiment.sweep()


def test_parquet_or_a_word_about_it(tmp_path, monkeypatch):
    axes = {"optimizer": {"learning_rate": [1e-3, 1e-2]}, "gamma": [0.9, 0.99]}
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow.parquet

        result = experiment.sweep(
            "a2c", format="parquet", seeds=2, seed=5, out=tmp_path / "sweep", **SIZES | axes
        )
        assert not (result.folder / "metrics.csv").exists()
        table = pyarrow.parquet.read_table(result.folder / "metrics.parquet")
        rows = rows_of(tiny_sweep().folder / "metrics.csv")
        assert table.column_names == list(rows[0])
        assert {str(table.schema.field(name).type) for name in tidy.WHOLE} == {"int64"}
        assert str(table.schema.field("gamma").type) == "double"
        for name in table.column_names:
            np.testing.assert_allclose(table[name].to_numpy(), column(rows, name), rtol=1e-4, atol=1e-5)
        assert sweeps.resume(result.folder).status == "finished"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
        experiment.sweep("a2c", format="parquet", out=tmp_path / "other", **SIZES)
    assert not (tmp_path / "other").exists()


def test_columns_of_all_kinds_as_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    settings = [
        {"alpha": None, "name": "adam", "network.hidden": (64, 64), "on": True, "n": 1},
        {"alpha": 0.5, "name": "sgd", "network.hidden": (8,), "on": False, "n": 2},
    ]
    others = {"alpha", *store.COLUMNS}
    texts = tidy.setting_columns(settings, others)
    assert list(texts) == ["options.alpha", "name", "network.hidden", "on", "n"]
    table = tidy.MetricsTable(tmp_path, ["run", *texts, "seed", "alpha", "kl"])
    which = np.array([0, 1])
    values = {name: text[which] for name, text in texts.items()}
    table.append({"run": which, "seed": which, "alpha": np.array([np.nan, 1.0]), **values})
    table.journal.close()
    tidy.to_parquet(tmp_path / "metrics.csv", tmp_path / "x.parquet", tidy.setting_kinds(settings, others))
    rows = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["options.alpha"] for row in rows] == [None, 0.5]
    assert [row["network.hidden"] for row in rows] == ["64,64", "8"]
    assert [(row["on"], row["n"], row["name"]) for row in rows] == [(True, 1, "adam"), (False, 2, "sgd")]
    assert np.isnan(rows[0]["alpha"])  # what was measured is kept apart from what was not
    assert [row["kl"] for row in rows] == [None, None]


def records(returns, seeds=4, diverged=()):
    return [
        RunRecord(run, run // seeds, run % seeds, 10, 1000, r, 100, 3 if run in diverged else -1)
        for run, r in enumerate(returns)
    ]


SETTINGS = [{"gamma": g} for g in (0.9, 0.95, 0.99)]


def test_settings_are_ranked_by_their_interquartile_mean():
    found = ranking.rank(SETTINGS, records([1, 2, 3, 99, 50, 51, 52, 53, 49, 51, 52, 60], diverged={9}), 4)
    assert [row["number"] for row in found["settings"]] == [1, 2, 0]
    assert found["best"] == 1
    assert [row["iqm"] for row in found["settings"]] == [51.5, 51.5, 2.5]
    assert [row["distinguishable"] for row in found["settings"]] == [None, False, False]
    assert found["settings"][1]["worst"] == {"seed": 0, "final_return": 49}
    assert found["settings"][1]["diverged"] == {1: 3}
    apart = ranking.rank(SETTINGS, records([1, 2, 3, 4, 50, 51, 52, 53]), 4)
    assert [row["distinguishable"] for row in apart["settings"]] == [None, True]


def test_what_is_missing_is_not_the_best():
    nan = np.nan
    found = ranking.rank(SETTINGS, records([nan, 99, 99, 99, 1, 2, 3, 4, 88]), 4)
    assert [row["number"] for row in found["settings"]] == [1, 0, 2]
    nothing = ranking.rank(SETTINGS, records([nan] * 4), 4)
    assert nothing["best"] is None
    assert nothing["settings"][0]["worst"] is None
    assert ranking.best_score(records([nan, 99, 99, 99, 1, 2, 3, 4, 88]), 4) == 2.5
    assert ranking.best_score(records([1.0]), 4) is None
    assert ranking.best_score(records([1, 1, 1, 1]), 4, best=7.0) == 7.0


def test_the_table_and_the_verdict_say_what_can_be_told():
    about = {"algorithm": "a2c", "environment": "CartPole-v1", "seeds": 4, "status": "finished", "runs": 12}
    about |= {"programs": 1, "steps_per_second": 1e5, "compile_seconds": 1.0, "seconds": 2.0}
    found = about | ranking.rank(SETTINGS, records([1, 2, 3, 4, 50, 51, 52, 53, 49, 51, 52, 60]), 4)
    lines = [line for line in show(sweep_display.table(found)).splitlines() if "│" in line and "[" in line]
    assert ["best" in line for line in lines] == [True, False, False]
    assert ["≈" in line for line in lines] == [False, True, False]
    assert "0.95" in lines[0]
    assert "51.5" in lines[0]
    assert "is 1 other setting" in sweep_display.verdict(found)
    assert "(--seed 4)" in sweep_display.verdict(found)
    apart = about | ranking.rank(SETTINGS, records([1, 2, 3, 4, 50, 51, 52, 53]), 4)
    assert "gamma=0.95: IQM 51.5" in sweep_display.verdict(apart)
    assert "No other interval overlaps" in sweep_display.verdict(apart)
    single = about | ranking.rank(SETTINGS, records([1, 2, 3], seeds=1), 1)
    assert "One seed says nothing" in sweep_display.verdict(single)
    partial = about | ranking.rank(SETTINGS, records([1, 2, 3, 4, 5, 6]), 4)
    assert "2/4" in show(sweep_display.table(partial))


VALUES = {"learning_rate": (1e-3, 1e-4), "gamma": (0.9, 0.95, 0.99), "name": ("adam", "sgd")}


def scores_of(settings):
    """Best at the smaller rate, gamma 0.95 and sgd."""
    good = [
        (s.get("learning_rate") == 1e-4) + 2 * (s.get("gamma") == 0.95) + (s.get("name") == "sgd")
        for s in settings
    ]
    return [np.array([10.0 * x - 1, 10.0 * x, 10.0 * x + 1]) for x in good]


def test_a_heat_map_of_two_options():
    settings = grid.combinations({name: VALUES[name] for name in ("learning_rate", "gamma")})
    ax = plots.new_axes()
    assert plots.heat_map(settings, scores_of(settings), ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("gamma", "learning_rate")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0.0001", "0.001"]  # ascending
    np.testing.assert_allclose(ax.images[0].get_array(), [[10, 30, 10], [0, 20, 0]])
    (frame,) = ax.patches
    assert frame.get_xy() == (0.5, -0.5)
    assert "30.0" in [t.get_text().split("\n")[0] for t in ax.texts]


def test_a_heat_map_of_three_options_shows_the_best_over_the_third():
    settings = grid.combinations(VALUES)
    returns = scores_of(settings)
    returns[settings.index({"learning_rate": 1e-4, "gamma": 0.95, "name": "sgd"})][:] = np.nan
    ax = plots.heat_map(settings, returns)
    assert "the best over name" in ax.get_title()
    np.testing.assert_allclose(ax.images[0].get_array(), [[20, 30, 20], [10, 30, 10]])


def test_one_option_is_a_line_and_a_cell_without_a_return_is_empty(tmp_path):
    settings = grid.combinations({"learning_rate": VALUES["learning_rate"]})
    ax = plots.heat_map(settings, scores_of(settings))
    line = ax.lines[-1]
    np.testing.assert_allclose(line.get_xdata(), [1e-4, 1e-3])
    np.testing.assert_allclose(line.get_ydata(), [10, 0])
    assert ax.get_xscale() == "log"
    ax = plots.heat_map(grid.combinations({"name": VALUES["name"]}), [np.array([1.0]), np.array([np.nan])])
    assert "one seed" in ax.get_title()
    plots.save(ax, tmp_path / "line.png")
    settings = grid.combinations({"gamma": (0.9, 0.99), "max_kl": (None, 0.1)})
    ax = plots.heat_map(settings, [np.full(2, np.nan)] * 4)
    assert ax.images[0].get_array().mask.all()
    plots.save(ax, tmp_path / "empty.png")


def test_a_scatter_has_a_panel_for_every_option(tmp_path):
    axes = {"learning_rate": (1e-5, 1e-2), "coef": (0.0, 0.02), "name": ("adam", "sgd"), "on": (True, False)}
    settings = grid.draw(axes, 12, 0)
    returns = [np.full(3, float(i)) for i in range(12)]
    panels = plots.scatter(settings, returns)
    assert [ax.get_xlabel() for ax in panels] == list(axes)
    assert [ax.get_xscale() for ax in panels] == ["log", "linear", "linear", "linear"]
    best = panels[0].lines[-1]
    np.testing.assert_allclose(
        (best.get_xdata()[0], best.get_ydata()[0]), (settings[-1]["learning_rate"], 11.0)
    )
    plots.save(panels[0], tmp_path / "scatter.png")
    assert (tmp_path / "scatter.png").stat().st_size > 10_000


TINY = ["sweep", "a2c", "--seeds", "2", "--seed", "5", "--num-envs", "4", "--num-steps=16", "--steps", "697"]
TINY += ["--network.hidden", "8", "--gamma", "0.9", "0.99"]


def test_the_command_ends_with_a_table_and_a_picture(tmp_path, capsys):
    args = [
        *TINY[:-3],
        "--optimizer.learning-rate",
        "1e-3",
        "1e-2",
        *TINY[-3:],
        "--out",
        str(tmp_path / "sweep"),
    ]
    assert cli.main(args) == 0
    shown = capsys.readouterr()
    assert "4 settings × 2 seeds, 697 steps each" in shown.out
    assert "a2c on CartPole-v1, 2 seeds each: finished" in shown.out
    assert "best: optimizer.learning_rate=" in shown.out
    assert str(tmp_path / "sweep" / "heat_map.png") in shown.out.replace("\n", "")
    assert shown.err == ""
    assert sweeps.read_config(tmp_path / "sweep")[0] == tiny()  # in the order that they were typed in


def test_the_command_draws_at_random_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batches, "compile_group", three_rows)
    args = [
        *TINY,
        "--optimizer.learning-rate",
        "1e-4",
        "1e-2",
        "--random",
        "3",
        "--out",
        str(tmp_path / "sweep"),
    ]
    assert cli.main(args) == 0
    sweep, _ = sweeps.read_config(tmp_path / "sweep")
    axes = {"gamma": (0.9, 0.99), "optimizer.learning_rate": (1e-4, 1e-2)}
    assert sweep.settings == grid.draw(axes, 3, seed=5)
    assert (tmp_path / "sweep" / "scatter.png").exists()
    (tmp_path / "sweep" / "summary.json").unlink()
    runs = (tmp_path / "sweep" / "runs.csv").read_text().splitlines(keepends=True)
    (tmp_path / "sweep" / "runs.csv").write_text("".join(runs[:5]))
    capsys.readouterr()
    assert cli.main(["sweep", "--resume", str(tmp_path / "sweep")]) == 0
    assert "3 settings × 2 seeds" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "sweep" / "runs.csv")) == 6


def test_ctrl_c_has_the_usual_exit_status(tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(batches, "compile_group", three_rows)
    monkeypatch.setattr(sweep_display, "describe", interrupt)
    assert cli.main([*TINY, "--out", str(tmp_path / "sweep")]) == 130
    assert f"pgjax sweep --resume {tmp_path / 'sweep'}" in capsys.readouterr().err


def test_nothing_learned_at_all_has_an_exit_status(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "run", lambda *args, **kwargs: sweeps.Result(tmp_path, "finished", NOTHING))
    assert cli.main([*TINY, "--out", str(tmp_path / "sweep")]) == 1


NOTHING = {"algorithm": "a2c", "environment": "CartPole-v1", "seeds": 2, "status": "finished", "runs": 4}
NOTHING |= {"programs": 1, "steps_per_second": 1e5, "compile_seconds": 1.0, "seconds": 2.0}
NOTHING |= ranking.rank(SETTINGS, records([np.nan] * 4, seeds=2), 2)


def test_help_shows_every_option_and_how_random_works(capsys):
    assert cli.main(["sweep", "ppo", "--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("--clip-eps FLOAT ...", "--optimizer.name {adam,rmsprop,sgd} ...", "--random", "--memory"):
        assert word in shown
    assert "a range" in shown
    assert "64,64 128,128" in " ".join(shown.replace("│", "").split())


@pytest.mark.parametrize(
    "command, message",
    [
        ("sweep", "Name the algorithm first: pgjax sweep"),
        ("sweep ppoo", "Did you mean ppo or trpo?"),
        ("sweep ppo --clip-epz 0.1 0.2", "--clip-eps"),
        ("sweep ppo --clip-eps 0.1 x", "--clip-eps"),
        ("sweep ppo --clip-eps 0.1 0.1", "clip_eps has the value 0.1 twice"),
        ("sweep ppo --gamma 0.9 2 --clip-eps 0.1 0.2", "With gamma=2.0, clip_eps=0.1: gamma must be between"),
        ("sweep ppo --num-minibatches 4 7", "With num_minibatches=7: num_minibatches=7 must divide"),
        ("sweep ppo --network.hidden 64,64 64,x", "commas"),
        ("sweep ppo --network.torso mlp cnn", "With network.torso=cnn: A CNN needs images"),
        ("sweep ppo --seeds 0", "seeds must be at least 1"),
        ("sweep ppo --seeds 0 --num-envs 4 8", "pgjax: seeds must be at least 1"),
        ("sweep ppo --random 3", "needs options to draw"),
        ("sweep ppo --random 0 --gamma 0.9 0.99", "random must be at least 1"),
        ("sweep ppo --memory much", "--memory takes a size such as 4GB"),
        ("sweep ppo --memory 0", "memory must be above 0"),
        ("sweep ppo --memory 1kB", "state of a single run needs"),
        ("sweep ppo --devices 0", "devices must be between 1 and"),
        ("sweep ppo --format excel", "--format"),
        ("sweep ppo --out .", "exists already"),
        ("sweep ppo --resume", "Name the folder"),
        ("sweep ppo --resume run", "keeps its settings"),
        ("sweep --resume nowhere", "nowhere/config.json is missing"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_two(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("pgjax: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4e9), ("4 gb", 4e9), ("512MiB", 2**29), ("1.5g", 1.5e9), ("1e9", 1e9), ("2048", 2048)],
)
def test_sizes_of_memory(text, size):
    assert options.num_bytes(text) == size


def test_rows_over_devices_need_no_communication(tmp_path):
    code = f"""
import sys
import jax
from test_sweeps import compile_group, tiny
from pgjax.experiment import batches, sweeps
assert jax.device_count() == 2
def compile(*args, **kwargs):
    program = compile_group(*args, **kwargs)
    text = program.chunk.as_text()
    words = ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    assert not [word for word in words if word in text]
    assert (program.rows, program.devices) == (4, 2), program
    return program
batches.compile_group = compile
batches._CPU_ROWS = 2
result = sweeps.run(tiny(), out={str(tmp_path / "sweep")!r})
assert result.summary["batches"] == 2
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
    same_results(tmp_path / "sweep", tiny_sweep().folder)
