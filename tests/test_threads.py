import json
import os
import sys

import pytest

from pgjax.experiment import cli, compilation, threads


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)


def chosen(monkeypatch, *args):
    """What XLA would read where the command's own process begins to train."""
    found = []
    monkeypatch.setattr(sys, "argv", ["pgjax", *map(str, args)])
    monkeypatch.setattr(compilation, "keep_programs", lambda warn: None)
    monkeypatch.setattr(cli, "_train", lambda args: found.append(os.environ.get("PJRT_NPROC")) or 0)
    monkeypatch.setattr(cli, "_list", lambda args: found.append(os.environ.get("PJRT_NPROC")) or 0)
    assert cli.main() == 0
    return found[0]


@pytest.mark.parametrize(
    ("args", "one"),
    [
        (["ppo"], True),
        (["dqn", "--num-envs", "8"], True),
        (["ppo", "--num_envs", "511"], True),
        (["ppo", "--num-envs=512"], False),
        (["ppo", "--num-envs", "2048"], False),
        (["ppo", "--num-envs", "64", "--seeds", "8"], False),
        (["ppo", "--env", "Breakout-MinAtar"], False),
        (["acktr", "--env", "Breakout-MinAtar"], True),  # its preset is dense
        (["acktr", "--env", "Breakout-MinAtar", "--network.torso", "cnn"], False),
        (["a3c", "--env=Breakout-MinAtar", "--num-envs", "512"], False),
        (["ppo", "--env", "Breakout-MinAtar", "--network.torso", "mlp"], True),
        (["ppo", "--env", "Catch-bsuite", "--network.torso=cnn"], False),
        (["ppo", "--num-envs", "many"], True),  # what is wrong with it is said later
    ],
)
def test_small_runs_have_one_thread(monkeypatch, args, one):
    assert chosen(monkeypatch, "train", *args) == ("1" if one else None)


@pytest.mark.parametrize("name", ["PJRT_NPROC", "NPROC"])
def test_what_the_user_has_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert chosen(monkeypatch, "train", "ppo") == ("4" if name == "PJRT_NPROC" else None)


@pytest.mark.parametrize(
    ("num_envs", "seeds", "torso", "one"), [(8, 1, "mlp", True), (8, 64, "mlp", False), (8, 1, "cnn", False)]
)
def test_a_run_that_goes_on_is_as_large_as_before(monkeypatch, tmp_path, num_envs, seeds, torso, one):
    preset = {"environment": "CartPole-v1", "options": {"num_envs": num_envs}, "network": {"torso": torso}}
    (tmp_path / "config.json").write_text(json.dumps({"preset": preset, "seeds": seeds}))
    assert chosen(monkeypatch, "train", "--resume", tmp_path) == ("1" if one else None)


@pytest.mark.parametrize("before", ["1", "3", "one a core", None])
def test_a_run_that_goes_on_has_the_threads_that_it_had(monkeypatch, tmp_path, before):
    """Whatever its size says: a new run is judged by what was typed, this one by all of its preset."""
    preset = {"environment": "Breakout-MinAtar", "options": {"num_envs": 64}, "network": {"torso": "mlp"}}
    (tmp_path / "config.json").write_text(json.dumps({"preset": preset, "seeds": 1, "threads": before}))
    assert chosen(monkeypatch, "train", "--resume", tmp_path) == (before if before in ("1", "3") else None)


def test_a_damaged_run_is_none_of_its_business(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{")
    assert chosen(monkeypatch, "train", "--resume", tmp_path) == "1"


def test_a_program_that_calls_the_command_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(cli, "_train", lambda args: 0)
    assert cli.main(["train", "ppo"]) == 0
    assert "PJRT_NPROC" not in os.environ


def test_other_commands_choose_nothing(monkeypatch):
    assert chosen(monkeypatch, "list") is None


def test_the_bound_is_one_of_environments():
    threads.choose_threads(threads.SMALL)
    assert "PJRT_NPROC" not in os.environ
    threads.choose_threads(threads.SMALL - 1)
    assert os.environ["PJRT_NPROC"] == "1"
