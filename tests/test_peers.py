"""The comparison with other libraries, without any of them: what is asked for, told and written down."""

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import harness, peers
from benchmarks._peers import tasks, worker
from benchmarks._peers.timing import gae_inputs


def row(name, **more):
    found = {"median": 2.0, "lower": 1.9, "upper": 2.1, "least": 1.5, "greatest": 2.5, "turns": 5}
    return {
        "task": name,
        "peer": tasks.TASKS[name].peer,
        "versions": {"rejax": "0.1.3"},
        "settings": tasks.TASKS[name].words(),
        "pgjax_steps_per_second": 123_456.7,
        "peer_steps_per_second": 61_728.3,
        "ratio": found,
        "pgjax_steps": 1000,
        "peer_steps": 100,
        "pgjax_compile_seconds": 3.25,
        "peer_compile_seconds": 3.0,
        "compile_ratio": found | {"median": 1.08},
    } | more


@pytest.fixture
def no_peer(monkeypatch):
    monkeypatch.setattr(peers, "installed", lambda peer: False)


class TestTasks:
    def test_every_peer_can_be_found_started_and_named(self):
        asked = {task.peer for task in tasks.TASKS.values()}
        assert asked == set(tasks.MODULES) == set(tasks.TOLD) == set(worker.SIDES) - {"pgjax"}
        assert all(peer in told for peer, told in tasks.TOLD.items())
        assert set(tasks.QUICK) <= set(tasks.TASKS)

    @pytest.mark.parametrize("name", tasks.TASKS)
    def test_turns_are_whole_iterations(self, name):
        task = tasks.TASKS[name]
        window = task.options["num_envs"] * task.options.get("num_steps", task.options.get("policy_delay", 1))
        for steps in (task.steps, task.peer_steps, task.quick):
            assert steps > 0
            assert steps % window == 0

    @pytest.mark.parametrize(
        "name", ["ppo-default", "ppo-cartpole", "ppo-4x128", "ppo-64x128", "ppo-2048x128"]
    )
    def test_minibatches_divide_the_rollout(self, name):
        options = tasks.TASKS[name].options
        assert options["num_envs"] * options["num_steps"] % options["num_minibatches"] == 0

    def test_the_defaults_of_rejax(self):
        """`rejax.PPO.create` of rejax 0.1.3, read from its source."""
        options = tasks.TASKS["ppo-default"].options
        expected = {
            "num_envs": 64,
            "num_steps": 64,
            "num_epochs": 8,
            "num_minibatches": 16,
            "activation": "swish",
            "hidden": (64, 64),
            "learning_rate": 3e-4,
            "clip": math.inf,
            "gamma": 0.99,
            "lambda_": 0.95,
            "clip_eps": 0.2,
            "value_coef": 0.5,
            "entropy_coef": 0.01,
        }
        assert {name: options[name] for name in expected} == expected

    def test_the_side_of_rejax_has_its_defaults(self):
        rejax = pytest.importorskip("rejax")
        from benchmarks._peers import rejax_side

        ours = rejax_side._algorithm(tasks.TASKS["ppo-default"], 4096)
        theirs = rejax.PPO.create(env=ours.env, env_params=ours.env_params)
        watched = {"eval_freq", "eval_callback", "skip_initial_evaluation", "total_timesteps"}
        for name in {field.name for field in dataclasses.fields(theirs)} - watched - {"env"}:
            assert getattr(ours, name) == getattr(theirs, name), name

    def test_words(self):
        words = tasks.TASKS["ppo-default"].words()
        assert words.startswith("CartPole-v1, num_envs 64, num_steps 64, num_epochs 8, num_minibatches 16")
        assert "clip off" in words
        assert "hidden 64-64" in words
        assert "double yes" in tasks.TASKS["dqn"].words()
        assert "capacity 50,000" in tasks.TASKS["dqn"].words()

    def test_advantage_of_pgjax_is_of_what_the_peer_gets(self):
        """The sum that both sides compare, against a loop."""
        from benchmarks._peers import pgjax_side

        given = gae_inputs(128, 64)
        reward, values, terminated = (given[k].astype(float) for k in ("reward", "values", "terminated"))
        advantage, total = np.zeros(64), 0.0
        for t in reversed(range(128)):
            discount = 0.99 * (1.0 - terminated[t])
            delta = reward[t] + discount * values[t + 1] - values[t]
            advantage = delta + discount * 0.95 * advantage
            total += abs(advantage).sum()
        timed = pgjax_side.timed(tasks.TASKS["gae-128x64"], 3 * 128 * 64)
        assert timed.compile()["result"] == pytest.approx(total, rel=1e-5)
        assert timed.turn().steps == 3 * 128 * 64


class TestTable:
    def test_one_line_a_task(self):
        page = peers.table(
            [row("ppo-default"), row("a2c-sb3", peer_compile_seconds=None, compile_ratio=None)]
        )
        assert (
            "| ppo-default | rejax 0.1.3 | 123,457 | 61,728 | 2.00 [1.50, 2.50] | 1.5 | 3.25 | 3.00 | 1.08 ["
            in page
        )
        assert "| 2.00 [1.50, 2.50] | 20 | 3.25 |  |  |" in page
        assert f"- ppo-default: {tasks.TASKS['ppo-default'].words()}" in page

    def test_what_did_not_run_is_told(self):
        failed = {k: row("sac")[k] for k in ("task", "peer", "versions", "settings")}
        page = peers.table([row("dqn"), failed | {"error": "AttributeError: no such thing"}])
        assert "- sac did not run with rejax 0.1.3: AttributeError: no such thing" in page
        assert "| sac |" not in page
        assert "| dqn |" in page

    def test_nothing(self):
        assert "pip install" in peers.table([])


class TestAsking:
    def test_without_a_peer_it_says_how_to_install_them(self, no_peer, capsys, tmp_path):
        assert peers.main(["--results", str(tmp_path)]) == 0
        assert 'pip install -e ".[peers]"' in capsys.readouterr().out
        assert not list(tmp_path.iterdir())

    def test_a_missing_peer_is_left_out(self, monkeypatch, capsys):
        monkeypatch.setattr(peers, "installed", lambda peer: peer != "rejax")
        arguments = harness.parser(None).parse_args(["--quick"])
        arguments.only, arguments.peers = ["dqn", "gae-128x64", "a2c-sb3"], None
        assert peers.chosen(arguments) == ["gae-128x64", "a2c-sb3"]
        said = capsys.readouterr().err
        assert "rejax is not installed" in said
        assert "pip install" in said

    def test_nothing_to_measure_saves_nothing(self, monkeypatch, capsys, tmp_path):
        monkeypatch.setattr(peers, "installed", lambda peer: peer != "rejax")
        assert peers.main(["--only", "dqn", "--results", str(tmp_path)]) == 0
        assert "rejax is not installed" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_by_peer(self, monkeypatch):
        monkeypatch.setattr(peers, "installed", lambda peer: True)
        arguments = harness.parser(None).parse_args([])
        arguments.only, arguments.peers = None, ["sb3-contrib", "rlax"]
        chosen = peers.chosen(arguments)
        assert chosen == ["gae-128x2048", "gae-1000x64", "gae-100000x1", "gae-128x64", "trpo-sb3"]

    @pytest.mark.parametrize("wrong", [["--only", "a3c"], ["--peers", "purejaxrl"], ["--turns", "0"]])
    def test_what_there_is_not(self, wrong, capsys):
        with pytest.raises(SystemExit) as ended:
            peers.main(wrong)
        assert ended.value.code == 2
        assert wrong[0] in capsys.readouterr().err


class TestWorkers:
    def test_one_that_dies_says_why(self):
        with peers.Worker("no-such-library", "dqn", 1000, quick=True) as failing:
            with pytest.raises(peers.WorkerError, match="no-such-library"):
                failing.ask("turn")
            assert failing.process.poll() is not None

    @pytest.mark.parametrize(
        ("task", "threads"), [("ppo-4x128", "1"), ("ppo-2048x128", None), ("gae-128x64", None)]
    )
    def test_small_trainings_have_one_thread_on_both_sides(self, monkeypatch, task, threads):
        monkeypatch.delenv("PJRT_NPROC", raising=False)
        assert peers._environment(tasks.TASKS[task], quick=False).get("PJRT_NPROC") == threads
        monkeypatch.setenv("PJRT_NPROC", "3")
        assert peers._environment(tasks.TASKS[task], quick=False)["PJRT_NPROC"] == "3"

    def test_nothing_is_cached_between_runs(self, monkeypatch):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "somewhere")
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        found = peers._environment(tasks.TASKS["ppo-default"], quick=False)
        assert "JAX_COMPILATION_CACHE_DIR" not in found
        assert "JAX_DISABLE_MOST_OPTIMIZATIONS" not in found
        assert found["JAX_ENABLE_COMPILATION_CACHE"] == "false"

    def test_sides_that_compute_different_things_are_refused(self):
        peers._check_same({"seconds": 1.0, "result": 100.0}, {"seconds": 2.0, "result": 100.001})
        peers._check_same({"seconds": 1.0}, {})
        with pytest.raises(RuntimeError, match="different"):
            peers._check_same({"seconds": 1.0, "result": 100.0}, {"seconds": 2.0, "result": 101.0})

    def test_a_ratio_is_of_pairs(self):
        """Of scripted answers: the first turn is dropped, pgjax is above."""

        class Scripted:
            def __init__(self, steps, seconds):
                self.answers = iter([{"steps": steps, "seconds": s} for s in seconds])

            def ask(self, request):
                return {"seconds": 2.0} if request == "compile" else next(self.answers)

        found = peers._compare(
            Scripted(100, [9.0, 1.0, 2.0, 1.0]), Scripted(50, [1.0, 1.0, 1.0, 2.0]), turns=3
        )
        assert found["ratio"]["median"] == 2.0
        assert (found["ratio"]["least"], found["ratio"]["greatest"]) == (1.0, 4.0)
        assert found["pgjax_steps_per_second"] == 100.0
        assert found["compile_ratio"]["median"] == 1.0
        assert (found["pgjax_steps"], found["peer_steps"]) == (100, 50)
