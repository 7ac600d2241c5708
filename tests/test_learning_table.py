"""The table of what is learned: which pairs it has, its verdicts, how it goes on where it was cut off."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from benchmarks import learning
from pgjax import envs
from pgjax.experiment import presets, runner

ROOT = pathlib.Path(__file__).parents[1]


def row_of(score, *, seeds=4, evaluated=False, **more):
    """A row as training leaves it: every seed has the same return."""
    each = [score] * seeds
    other = [0.0] * seeds
    row = {"final_return": other if evaluated else each, "evaluation": each if evaluated else other}
    row |= {"iqm": row["final_return"][0], "evaluation_iqm": row["evaluation"][0], "random": 20.0}
    ends = {"iqm_interval": [score, score], "evaluation_interval": [score, score]}
    return row | ends | {"steps": 1000} | more


def test_every_algorithm_has_every_environment_that_it_fits():
    pairs = learning.pairs()
    assert len(set(pairs)) == len(pairs)
    assert set(learning.ALGORITHMS) == set(presets.algorithm_names())
    for environment in (*learning.FINITE, *learning.BOXES, *learning.MINATAR):
        env, env_params = envs.make(environment)
        finite = envs.is_discrete(env.action_space(env_params))
        misfits = learning.REPLAY_BOXES if finite else learning.VALUES
        there = {a for a, e in pairs if e == environment}
        assert there == set(learning.ALGORITHMS) - set(misfits), environment


def test_lengths_are_those_that_were_asked_for():
    assert learning.length("ppo", "Breakout-MinAtar") == (5, {"steps": 10_000_000})
    assert learning.length("dqn", "Freeway-MinAtar") == (3, {"steps": 1_000_000})
    assert learning.length("dqn", "Freeway-MinAtar", full=True) == (5, {"steps": 10_000_000})
    for name in ("CartPole-v1", "Breakout-MinAtar"):  # where nothing was cut short
        assert learning.length("ppo", name, full=True) == learning.length("ppo", name)
    assert learning.length("dqn", "CartPole-v1") == (10, {})


def test_the_full_length_is_for_what_had_less_and_lies_apart(tmp_path, capsys):
    before = json.dumps({"dqn:Breakout-MinAtar": {"digest": "another"}})
    (tmp_path / "learning.json").write_text(before)
    assert learning.main(["--full", "--list", "--results", str(tmp_path)]) == 0
    *found, last = capsys.readouterr().out.splitlines()
    assert last == "16 pairs are left."
    assert {line.split(": ")[0].split(":")[0] for line in found} == {*learning.VALUES, "sac"}
    assert all(line.endswith(": 5 seeds, 10,000,000 steps") for line in found)
    assert [x.name for x in tmp_path.iterdir()] == ["learning.json"]


def test_a_reason_is_of_the_length_that_it_was_looked_for_at():
    known = {"ppo:Asterix-MinAtar": [{"return": 20.0}]}
    row = {"evaluation": [3.0], "evaluation_iqm": 3.0, "random": 0.5, "steps": 1_000_000}
    learning.judge("sac:Asterix-MinAtar", row, known)
    assert row["why"] == learning.WHY["sac", "Asterix-MinAtar"]
    row["steps"] = 10_000_000
    learning.judge("sac:Asterix-MinAtar", row, known)
    assert (row["verdict"], row["why"]) == ("failed", "not explained yet")


def test_what_is_cheap_comes_first():
    pairs = learning.pairs()
    first = next(i for i, (_, e) in enumerate(pairs) if e in learning.MINATAR)
    assert all(e in learning.MINATAR for _, e in pairs[first:])


def test_every_goal_and_reason_is_of_a_pair():
    assert {*learning.GOALS, *learning.WHY} <= set(learning.pairs())
    pairs = {":".join(pair) for pair in learning.pairs()}
    assert set(learning.published()) <= pairs


def test_the_digest_tells_settings_apart_but_not_options_that_are_off():
    settings = presets.to_json(presets.preset("ppo", "CartPole-v1"))
    later = settings | {"options": settings["options"] | {"an_option_that_came_later": None}}
    other = presets.to_json(presets.preset("ppo", "CartPole-v1", clip_eps=0.1))
    assert learning.digest(settings) == learning.digest(later)
    assert learning.digest(settings) != learning.digest(other)


def test_a_score_is_held_against_the_best_comparable_figure():
    known = {
        "ppo:CartPole-v1": [{"return": 400.0}, {"return": 450.0}, {"return": 999.0, "comparable": False}],
        "a2c:CartPole-v1": [{"return": 500.0}],
    }
    assert learning.figure("ppo", "CartPole-v1", known) == 450.0
    assert learning.figure("npg", "CartPole-v1", known) == 500.0  # none of its own: the best of the others
    assert learning.figure("npg", "Catch-bsuite", known) == 1.0  # none at all: the most there is
    assert learning.figure("sarsa", "FrozenLake-misc", known) is None


@pytest.mark.parametrize(
    "score, verdict", [(500.0, "reached"), (477.0, "reached"), (475.0, "below"), (139.0, "failed")]
)
def test_verdicts_follow_their_rule(score, verdict):
    row = row_of(score)
    learning.judge("npg:CartPole-v1", row, {"ppo:CartPole-v1": [{"return": 500.0}]})
    assert row["progress"] == pytest.approx((score - 20.0) / 480.0)
    assert row["verdict"] == verdict
    assert (row["why"] is None) == (verdict == "reached")


def test_a_goal_that_was_missed_is_below_whatever_was_published():
    row = row_of(460.0)  # the goal is 475
    learning.judge("trpo:CartPole-v1", row, {"trpo:CartPole-v1": [{"return": 400.0}]})
    assert (row["progress"] > 1.0, row["verdict"]) == (True, "below")
    row = row_of(500.0) | {"final_return": [500.0, 500.0, 500.0, 390.0]}  # the worst seed's goal is 400
    learning.judge("ppo:CartPole-v1", row, {})
    assert row["verdict"] is None  # nothing to hold it against
    learning.judge("ppo:CartPole-v1", row, {"ppo:CartPole-v1": [{"return": 500.0}]})
    assert row["verdict"] == "below"


def test_what_learns_values_is_scored_by_how_it_plays():
    row = row_of(500.0, evaluated=True)
    learning.judge("dqn:CartPole-v1", row, {"dqn:CartPole-v1": [{"return": 500.0}]})
    assert (row["scored"], row["verdict"]) == ("evaluation", "reached")


def test_a_seed_without_a_return_has_failed():
    row = row_of(500.0) | {"final_return": [500.0, float("nan")]}
    learning.judge("npg:CartPole-v1", row, {"npg:CartPole-v1": [{"return": 500.0}]})
    assert row["verdict"] == "failed"


def test_the_committed_table_and_verdicts_are_made_from_the_committed_figures():
    results = learning.Results(learning.RESULTS)
    pairs = {":".join(pair) for pair in learning.pairs()}
    assert set(results.rows) <= pairs
    assert set(results.curves) <= set(results.rows)
    known = learning.published()
    for name, row in results.rows.items():
        stored = {k: row[k] for k in ("verdict", "figure", "progress", "why", "published")}
        learning.judge(name, row, known)
        assert stored == {k: row[k] for k in stored}, f"{name}: python -m benchmarks learning --draw"
    page = learning.RESULTS.with_suffix(".md").read_text()
    assert learning.table(results.ordered()) in page, "python -m benchmarks learning --draw"


def test_the_table_needs_neither_jax_nor_runs():
    code = """
import json, sys
from benchmarks import learning
rows = learning.Results(learning.RESULTS).ordered()
assert rows and rows[0]["name"] in learning.table(rows).replace(" | ", ":")
assert not {"jax", "pgjax"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_says_why_and_counts():
    rows = [
        {"name": "npg:CartPole-v1"} | row_of(500.0),
        {"name": "dqn:CartPole-v1"} | row_of(22.0, evaluated=True, random=22.0),
    ]
    known = {"npg:CartPole-v1": [{"return": 500.0, "steps": 10_000, "source": "elsewhere"}]}
    for row in rows:
        learning.judge(row["name"], row, known)
    text = learning.table(rows)
    assert "| npg | CartPole-v1 | 1,000 | 4 | **500 [500, 500]** | 500 | 0.00" in text
    assert "500 (10,000)" in text
    assert "2 pairs: 1 reached, 0 below, 1 failed." in text
    assert "- dqn:CartPole-v1, failed: not explained yet" in text


def test_a_pair_is_done_with_the_same_settings_enough_seeds_and_a_curve(tmp_path):
    from pgjax import __version__

    results = learning.Results(tmp_path / "learning.json")
    results.rows["npg:CartPole-v1"] = row_of(500.0, digest="a", versions={"pgjax": __version__})
    assert not results.is_done("npg:CartPole-v1", "a", 4)
    results.curves["npg:CartPole-v1"] = {"steps": []}
    assert results.is_done("npg:CartPole-v1", "a", 4)
    assert not results.is_done("npg:CartPole-v1", "b", 4)
    assert not results.is_done("npg:CartPole-v1", "a", 5)
    assert not results.is_done("npg:Acrobot-v1", "a", 4)


def test_two_processes_may_fill_one_table(tmp_path):
    first, second = (learning.Results(tmp_path / "learning.json") for _ in range(2))
    curve = {"steps": [], "iqm": [], "low": [], "high": []}
    first.add("npg:CartPole-v1", row_of(500.0), curve)
    second.add("ppo:CartPole-v1", row_of(490.0), curve)
    kept = learning.Results(tmp_path / "learning.json")
    assert set(kept.rows) == set(kept.curves) == {"npg:CartPole-v1", "ppo:CartPole-v1"}


TASK = ("q_learning", "Cliff-tabular")


@pytest.fixture
def one_pair(monkeypatch):
    """The table has one pair, of two seeds and a few thousand steps."""
    monkeypatch.setattr(learning, "pairs", lambda: [TASK])
    monkeypatch.setattr(learning, "length", lambda algorithm, environment, full=False: (2, {"steps": 4000}))


def test_a_pair_that_was_cut_off_goes_on_to_the_same_figures(tmp_path, monkeypatch, one_pair, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert learning.main(["--results", str(whole), "--runs", str(tmp_path / "runs1")]) == 0
    runs = ["--results", str(parts), "--runs", str(tmp_path / "runs2")]
    real = runner.run
    with monkeypatch.context() as patch:
        interrupt = lambda snapshot: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
        patch.setattr(runner, "run", functools.partial(real, report=interrupt))
        assert learning.main(runs) == 0
    assert "cut off; the same command goes on with it" in capsys.readouterr().out
    assert not (parts / "learning.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", lambda *a, **k: pytest.fail("began anew"))
        assert learning.main(runs) == 0
    first, second = (json.loads((f / "learning.json").read_text())[":".join(TASK)] for f in (whole, parts))
    for same in ("final_return", "evaluation", "digest", "random", "verdict"):
        assert first[same] == second[same]
    curves = [json.loads((f / "learning-curves.json").read_text()) for f in (whole, parts)]
    assert curves[0] == curves[1]
    curve = curves[0][":".join(TASK)]
    assert len(curve["steps"]) == len(curve["iqm"]) == len(curve["low"]) > 2
    assert curve["steps"][-1] == 4000
    assert all(
        low <= mean <= high for low, mean, high in zip(curve["low"], curve["iqm"], curve["high"], strict=True)
    )
    assert (parts / "learning" / "Cliff-tabular.png").stat().st_size > 10_000
    assert not list((tmp_path / "runs2").rglob("checkpoints"))

    monkeypatch.setattr(learning, "train", lambda *a: pytest.fail("trained again"))
    assert learning.main(runs) == 0
    assert learning.main([*runs, "--list"]) == 0
    assert "0 pairs are left." in capsys.readouterr().out


def test_pictures_come_from_the_reduced_curves_alone(tmp_path, monkeypatch):
    steps = [100.0, 200.0, 300.0]
    curve = {
        "steps": steps,
        "iqm": [20.0, 90.0, 400.0],
        "low": [20.0, 80.0, 300.0],
        "high": [21.0, 95.0, 450.0],
    }
    rows = {"ppo:CartPole-v1": row_of(400.0), "dqn:CartPole-v1": row_of(300.0, evaluated=True)}
    (tmp_path / "learning.json").write_text(json.dumps(rows))
    (tmp_path / "learning-curves.json").write_text(json.dumps(dict.fromkeys(rows, curve)))
    assert learning.main(["--results", str(tmp_path), "--draw"]) == 0
    assert [p.name for p in (tmp_path / "learning").iterdir()] == ["CartPole-v1.png"]
    assert "below" in (tmp_path / "learning.md").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "ppo:CartPol-v1"], "ppo:CartPole-v1"),
        (["--only", "ddpg:CartPole-v1"], "there is no pair"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--hours", "0"], "--hours must be above 0, got 0"),
    ],
)
def test_mistakes_say_what_to_do(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        learning.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_is_drawn_where_nothing_was_trained(tmp_path, capsys):
    with pytest.raises(SystemExit):
        learning.main(["--results", str(tmp_path), "--full", "--draw"])
    assert "nothing was trained yet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_damaged_results_file_is_never_overwritten(tmp_path):
    (tmp_path / "learning.json").write_text("{")
    with pytest.raises(SystemExit, match=r"learning\.json is damaged"):
        learning.main(["--results", str(tmp_path), "--draw"])
    assert (tmp_path / "learning.json").read_text() == "{"
