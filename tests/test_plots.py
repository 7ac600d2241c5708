import subprocess
import sys

import numpy as np

from pgjax.experiment import plots


def metrics(seeds=3, iterations=200, rng=None):
    rng = np.random.default_rng(0) if rng is None else rng
    iteration = np.repeat(np.arange(iterations), seeds)
    episodes = rng.integers(0, 4, iterations * seeds)
    level = iteration + 10.0 * rng.normal(size=iteration.size)
    return {
        "seed": np.tile(np.arange(seeds), iterations),
        "iteration": iteration,
        "env_steps": 100 * (iteration + 1),
        "episodes": episodes,
        "episode_return": np.where(episodes > 0, level, np.nan),
    }


def test_plots_take_an_ax_and_return_it():
    ax = plots.new_axes()
    assert plots.learning_curve(metrics(), ax, label="a run") is ax
    assert ax.get_title() == "a run"
    assert "environment steps" in ax.get_xlabel()
    assert "return" in ax.get_ylabel()
    ax = plots.new_axes()
    assert plots.compare({"one": metrics(), "other": metrics(seeds=1)}, ax) is ax
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one (3 seeds)", "other (1 seed)"]


def test_plots_make_axes_of_their_own_and_save(tmp_path):
    plots.save(plots.learning_curve(metrics(seeds=1)), tmp_path / "curve.png")
    plots.save(plots.compare({"run": metrics()}), tmp_path / "curve.svg")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert (tmp_path / "curve.svg").stat().st_size > 1_000


def test_nothing_to_draw_is_no_error():
    empty = {name: np.zeros(0) for name in metrics()}
    plots.learning_curve(empty)
    no_episode = metrics() | {"episodes": np.zeros(600), "episode_return": np.full(600, np.nan)}
    plots.learning_curve(no_episode)


def test_points_are_episode_weighted_means_and_go_on_where_no_episode_ended():
    data = {
        "seed": np.zeros(4),
        "env_steps": np.array([10, 20, 30, 40]),
        "episodes": np.array([1, 3, 0, 0]),
        "episode_return": np.array([4.0, 8.0, np.nan, np.nan]),
    }
    x, curves = plots.curves_by_seed(data, num_points=2)
    np.testing.assert_array_equal(x, [20, 40])
    np.testing.assert_allclose(curves, [[7.0, 7.0]])


def test_a_seed_that_stopped_is_not_continued():
    data = metrics(seeds=2, iterations=50)
    kept = (data["seed"] == 0) | (data["iteration"] < 10)
    _, curves = plots.curves_by_seed({k: v[kept] for k, v in data.items()})
    assert np.isfinite(curves[0, -1])
    assert np.isnan(curves[1, -1])


def test_importing_pgjax_imports_nothing_heavy():
    code = (
        "import sys, pgjax; "
        "print([m for m in ('gymnax', 'matplotlib', 'scipy.stats', 'tyro', 'orbax', 'pgjax.experiment') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
