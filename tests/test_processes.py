"""Two processes on this machine that run one command."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing

import jax
import numpy as np
import pytest

from pgjax import experiment
from pgjax.experiment import checkpoints, cli, processes, resuming, store

TRAIN = [sys.executable, "-m", "pgjax", "train", "a2c", "--num-envs", "4", "--num-steps", "16"]
TRAIN += ["--network.hidden", "8", "--devices", "1"]


def free_port():
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def start_two(*args):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    shared = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    return [
        subprocess.Popen(
            [*TRAIN, *args, *shared, "--process-index", str(i)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]


def ends(processes, timeout=240):
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("shard", ["seed", "data"])
def test_two_processes_are_one_run(tmp_path, shard):
    """The first iteration is that of one process; the first process reports; both write the checkpoint."""
    seeds = 3 if shard == "seed" else 1
    folder = tmp_path / "run"
    sizes = ["--steps", "128", "--seeds", str(seeds), "--seed", "5", "--shard", shard]
    first, second = ends(start_two(*sizes, "--out", str(folder), "--checkpoint-every", "1"))
    assert "a2c on CartPole-v1: finished" in first, first + second
    assert "seed" not in second
    config = store.read_config(folder)
    assert (config["processes"], config["devices"]) == (2, 2)
    assert checkpoints.iterations(folder) == [1, 2]

    alone = experiment.run("a2c", out=tmp_path / "alone", seeds=seeds, seed=5, **SIZES)
    ours, theirs = (store.read_metrics(f) for f in (folder, alone.folder))
    for name in ("policy_loss", "value_loss", "entropy", "grad_norm"):
        np.testing.assert_allclose(ours[name][:seeds], theirs[name][:seeds], rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(ours["episodes"][:seeds], theirs["episodes"][:seeds])

    # what two processes have written, one reads: all of it, and goes on only if it may be inexact
    state = experiment.load(folder)[1]
    both = zip(jax.tree.leaves(state), jax.tree.leaves(experiment.load(alone.folder)[1]), strict=True)
    assert all(a.shape == b.shape for a, b in both)
    with pytest.raises(ValueError, match="processes was 2, is 1"):
        resuming.read(folder, changes={}, allow_inexact=False, warn=print)
    said = []
    _, start = resuming.read(folder, changes={"shard": shard}, allow_inexact=True, warn=said.append)
    assert start.iteration == 2
    assert "no longer bit for bit" in said[0]


SIZES = {"num_envs": 4, "num_steps": 16, "steps": 128, "network": {"hidden": (8,)}}


def test_the_death_of_one_ends_the_other_within_a_minute(tmp_path):
    one, other = start_two("--steps", "100000000", "--seeds", "2", "--out", str(tmp_path / "run"))
    try:
        deadline = time.monotonic() + 180
        while not (tmp_path / "run" / "metrics.csv").exists() or not store_has_rows(tmp_path / "run"):
            assert time.monotonic() < deadline
            assert one.poll() is None, one.communicate()[0]
            time.sleep(0.2)
        other.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        said, _ = one.communicate(timeout=60)
        assert time.monotonic() - killed_at < 60
        assert one.returncode not in (0, None)
        assert said
    finally:
        for process in (one, other):
            process.kill()
            process.wait()


def store_has_rows(folder):
    return (folder / "metrics.csv").stat().st_size > 200


class TestStart:
    def test_without_an_address_there_is_one_process(self, monkeypatch):
        for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            monkeypatch.delenv(name, raising=False)
        assert processes.start() is False

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((None, 2, 0), "need the address of the first: --coordinator"),
            (("host", 2, 0), "must be HOST:PORT"),
            (("host:abc", 2, 0), "must be HOST:PORT, got 'host:abc'"),
            (("host:70000", 2, 0), "must be HOST:PORT"),
            ((":1", 2, 0), "must be HOST:PORT"),
            (("host:1", 0, 0), "--processes must be at least 1"),
            (("host:1", 2, 2), "--process-index must be between 0 and 1, got 2"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            processes.start(*arguments)

    def test_the_environment_says_it_as_jax_reads_it(self, monkeypatch):
        called = {}
        monkeypatch.setattr(
            jax.distributed, "initialize", lambda *args, **kwargs: called.update(args=args, **kwargs)
        )
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
        monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
        monkeypatch.setenv("JAX_PROCESS_ID", "3")
        assert processes.start() is True
        assert called["args"] == ("host:1", 4, 3)
        assert called["heartbeat_timeout_seconds"] < 60
        monkeypatch.setenv("JAX_PROCESS_ID", "three")
        with pytest.raises(ValueError, match="JAX_PROCESS_ID must be a number, got 'three'"):
            processes.start()

    def test_it_says_that_it_waits(self, monkeypatch):
        said = []
        monkeypatch.setattr(processes, "_PATIENCE_SECONDS", 0.01)
        monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: time.sleep(0.5))
        processes.start("host:1", 2, 1, warn=said.append)
        assert said == ["Process 1 still waits for the others at host:1; JAX ends it after 300 seconds."]
        said.clear()
        monkeypatch.setattr(processes, "_PATIENCE_SECONDS", 0.5)
        monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: None)
        processes.start("host:1", 2, 1, warn=said.append)
        time.sleep(1.0)
        assert not said

    def test_a_port_that_is_taken_is_refused(self):
        with closing(socket.socket()) as listening:
            listening.bind(("", 0))
            listening.listen()
            port = listening.getsockname()[1]
            with pytest.raises(ValueError, match=f"Port {port} of this machine is taken"):
                processes.start(f"127.0.0.1:{port}", 2, 0)

    def test_what_jax_refuses_is_said_in_one_line(self, monkeypatch, capsys):
        def initialize(*args, **kwargs):
            raise RuntimeError("must be called before\nany JAX calls")

        monkeypatch.setattr(jax.distributed, "initialize", initialize)
        args = ["train", "a2c", "--coordinator", "host:1", "--processes", "2", "--process-index", "1"]
        assert cli.main(args) == 2
        wanted = "pgjax: The processes did not come together: must be called before any JAX calls\n"
        assert capsys.readouterr().err == wanted


def test_alone_every_function_is_the_plain_thing():
    values = np.arange(3)
    assert processes.is_first()
    assert processes.agree(values) is values
    assert processes.agree_on_text("a") == "a"
    assert processes.any_of(True)
    assert not processes.any_of(False)
    np.testing.assert_array_equal(processes.gather({"x": jax.numpy.ones(2)})["x"], [1, 1])
