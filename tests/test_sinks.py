import importlib.util
import json
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from pgjax.experiment import sinks

WAIT = 30.0  # longer than anything here takes; nothing waits that long unless it is broken


class Recorder:
    """A sink that keeps what it is given, and on which threads."""

    def __init__(self):
        self.points, self.threads, self.closed = [], set(), threading.Event()

    def __call__(self, step, metrics):
        self.threads.add(threading.get_ident())
        self.points.append((step, metrics))

    def close(self):
        self.threads.add(threading.get_ident())
        self.closed.set()

    def steps(self):
        return [step for step, _ in self.points]


class Gated(Recorder):
    """A sink that waits for a gate at every point."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.entered = gate, threading.Event()

    def __call__(self, step, metrics):
        self.entered.set()
        assert self.gate.wait(WAIT)
        super().__call__(step, metrics)


def refuse(warning):
    raise AssertionError(warning)


# Handing on


def test_every_sink_gets_every_point_as_floats_of_its_own():
    first, second = Recorder(), Recorder()
    metrics = {"loss": np.float32(0.5), "episodes": np.int64(3)}

    def spoil(step, metrics):
        metrics.clear()

    with sinks.running([spoil, first, spoil, second], refuse) as write:
        for step in range(20):
            write(np.int64(step), metrics)
            metrics["loss"] = metrics["loss"] + np.float32(1.0)
    for recorder in (first, second):
        assert recorder.points == [(step, {"loss": 0.5 + step, "episodes": 3.0}) for step in range(20)]
        for step, point in recorder.points:
            assert type(step) is int
            assert type(point) is dict
            assert {type(value) for value in point.values()} == {float}


def test_each_sink_has_one_thread_to_be_called_and_closed_on():
    recorders = [Recorder() for _ in range(3)]
    with sinks.running(recorders, refuse) as write:
        write(0, {})
        write(1, {})
    threads = [recorder.threads for recorder in recorders]
    assert [len(ids) for ids in threads] == [1, 1, 1]
    assert len(set.union(*threads) - {threading.get_ident()}) == 3
    assert all(recorder.closed.is_set() for recorder in recorders)


def test_without_sinks_nothing_happens():
    with sinks.running([], refuse) as write:
        write(0, {"loss": 1.0})


# Failing


@pytest.mark.parametrize(
    "error, text",
    [
        (ValueError("boom\nand more"), "ValueError: boom"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (RuntimeError(), "RuntimeError"),
        (SystemExit(2), "SystemExit: 2"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_failing_sink_is_reported_once_and_others_go_on(error, text):
    called, warnings, other = [], [], Recorder()

    def broken(step, metrics):
        called.append(step)
        raise error

    with sinks.running([broken, other], warnings.append) as write:
        for step in range(3, 8):
            write(step, {"loss": 1.0})
    assert warnings == [f"the sink broken failed at step 3 (the run goes on): {text}"]
    assert called == other.steps() == [3, 4, 5, 6, 7]


def test_a_sink_that_heals_gets_the_points_after():
    recorder, warnings = Recorder(), []

    def offline_at_first(step, metrics):
        if step < 2:
            raise ConnectionError("no route")
        recorder(step, metrics)

    with sinks.running([offline_at_first], warnings.append) as write:
        for step in range(4):
            write(step, {})
    assert recorder.steps() == [2, 3]
    assert len(warnings) == 1


def test_a_failure_is_reported_while_the_run_goes_on_and_on_its_thread():
    called_again, warnings = threading.Event(), []

    def broken(step, metrics):
        if step == 1:  # the first failure is noted by now
            called_again.set()
        raise ValueError("boom")

    def warn(warning):
        warnings.append((warning, threading.get_ident()))

    with sinks.running([broken], warn) as write:
        write(0, {})
        write(1, {})
        assert called_again.wait(WAIT)
        write(2, {})
        assert [ident for _, ident in warnings] == [threading.get_ident()]
    assert len(warnings) == 1


def test_failing_to_close_is_reported_unless_it_failed_before():
    class Broken(Recorder):
        def close(self):
            raise OSError("gone")

    class Worse(Broken):
        def __call__(self, step, metrics):
            raise ValueError("boom")

    warnings = []
    with sinks.running([Broken(), Worse()], warnings.append) as write:
        write(7, {})
    assert warnings == [
        "the sink Broken failed at its end: OSError: gone",
        "the sink Worse failed at step 7 (the run goes on): ValueError: boom",
    ]


# Slow


def test_a_slow_sink_delays_nothing_and_its_dropped_points_are_reported_once():
    gate, arrived, warnings = threading.Event(), queue.Queue(), []
    slow = Gated(gate)

    def fast(step, metrics):
        arrived.put(step)

    with sinks.running([slow, fast], warnings.append, room=4) as write:
        write(0, {})
        assert slow.entered.wait(WAIT)
        assert arrived.get(timeout=WAIT) == 0
        begin = time.monotonic()
        for step in range(1, 200):
            write(step, {"loss": 1.0})
            assert arrived.get(timeout=WAIT) == step  # nothing holds the other sink up
        assert time.monotonic() - begin < WAIT / 2
        assert not slow.points
        slower = "the sink Gated is slower than the run: points are dropped, the first at step 5"
        assert warnings == [slower]  # while the run goes on
        gate.set()
    assert slow.steps() == [0, 1, 2, 3, 4]
    assert len(warnings) == 1


def test_the_end_waits_for_what_is_not_written_yet():
    over = Recorder()  # closed as soon as the body has ended
    late = Gated(over.closed)
    with sinks.running([late, over], refuse) as write:
        for step in range(50):
            write(step, {})
    assert late.steps() == list(range(50))
    assert late.closed.is_set()


def test_a_hanging_sink_is_left_behind_after_the_limit():
    gate, warnings, other = threading.Event(), [], Recorder()
    hanging = Gated(gate)
    try:
        with sinks.running([hanging, other], warnings.append, limit=0.1) as write:
            for step in range(3):
                write(step, {})
            assert hanging.entered.wait(WAIT)
            begin = time.monotonic()
        assert 0.1 <= time.monotonic() - begin < WAIT / 2
        assert warnings == ["the sink Gated did not end within 0.1 s: 3 points not written"]
        assert other.steps() == [0, 1, 2]
        assert other.closed.is_set()
    finally:
        gate.set()
    assert hanging.closed.wait(WAIT)  # once it comes back it is closed
    assert hanging.steps() == [0]  # and gets nothing of what was reported as lost


def test_a_hanging_close_is_left_behind_too():
    gate, warnings = threading.Event(), []

    class Hanging(Recorder):
        def close(self):
            assert gate.wait(WAIT)

    try:
        with sinks.running([Hanging()], warnings.append, limit=0.1) as write:
            write(0, {})
    finally:
        gate.set()
    assert warnings == ["the sink Hanging did not end within 0.1 s: it may not be whole"]


def test_the_limit_holds_for_all_sinks_together():
    gate, warnings = threading.Event(), []
    try:
        begin = time.monotonic()
        with sinks.running([Gated(gate) for _ in range(8)], warnings.append, limit=0.5) as write:
            write(0, {})
        assert time.monotonic() - begin < 2.0  # one after the other would take 4 s
    finally:
        gate.set()
    assert warnings == ["the sink Gated did not end within 0.5 s: 1 point not written"] * 8


@pytest.mark.parametrize("error", [RuntimeError("run"), KeyboardInterrupt(), SystemExit(1)])
def test_a_body_that_raises_still_ends_the_sinks(error):
    recorder = Recorder()
    with pytest.raises(type(error)) as raised, sinks.running([recorder], refuse) as write:  # noqa: PT012
        for step in range(30):
            write(step, {})
        raise error
    assert raised.value is error
    assert recorder.steps() == list(range(30))
    assert recorder.closed.is_set()


# One point of a chunk


def columns_of(rng, seeds, iterations):
    """What metrics.csv gets of a chunk, and the sums it was made of, `[I, S]`."""
    episodes = rng.integers(0, 3, (iterations, seeds))
    sums = {name: episodes * rng.normal(size=episodes.shape) for name in ("episode_return", "episode_length")}
    loss = rng.normal(size=episodes.shape)
    with np.errstate(invalid="ignore"):
        columns = {
            "seed": np.broadcast_to(np.arange(5, 5 + seeds), episodes.shape),
            "iteration": np.broadcast_to(np.arange(iterations)[:, None], episodes.shape),
            "env_steps": np.broadcast_to(64 * np.arange(iterations)[:, None], episodes.shape),
            "episodes": episodes,
            **{name: total / episodes for name, total in sums.items()},
            "loss": loss,
        }
    return {name: values.ravel() for name, values in columns.items()}, sums | {
        "episodes": episodes,
        "loss": loss,
    }


def test_one_seed_has_plain_names(rng):
    columns, raw = columns_of(rng, 1, 9)
    point = sinks.chunk_metrics(np.array([5]), columns)
    count = raw["episodes"].sum()
    assert count > 1
    assert point == pytest.approx(
        {
            "episodes": count,
            "episode_return": raw["episode_return"].sum() / count,
            "episode_length": raw["episode_length"].sum() / count,
            "loss": raw["loss"].mean(),
        }
    )
    assert {type(value) for value in point.values()} == {float}


def test_several_seeds_count_the_same_and_have_numbers_of_their_own(rng):
    columns, raw = columns_of(rng, 3, 9)
    point = sinks.chunk_metrics(np.arange(5, 8), columns)
    count = raw["episodes"].sum(axis=0)
    assert len(set(count)) > 1  # a mean over all episodes is another number
    each = {
        "episodes": count,
        "episode_return": raw["episode_return"].sum(axis=0) / count,
        "episode_length": raw["episode_length"].sum(axis=0) / count,
        "loss": raw["loss"].mean(axis=0),
    }
    expected = {name: values.mean() for name, values in each.items()} | {"episodes": count.sum()}
    expected |= {f"seed_{5 + i}/{name}": values[i] for name, values in each.items() for i in range(3)}
    assert point == pytest.approx(expected)


def test_without_an_episode_there_is_no_return():
    nan = float("nan")
    columns = {
        "seed": [0, 1, 0, 1],
        "episodes": [0, 0, 0, 2],
        "episode_return": [nan, nan, nan, 8.0],
        "loss": [1.0, 2.0, 3.0, 4.0],
    }
    assert sinks.chunk_metrics([0, 1], columns) == {
        "episodes": 2.0,
        "episode_return": 8.0,
        "loss": 2.5,
        "seed_0/episodes": 0.0,
        "seed_0/loss": 2.0,
        "seed_1/episodes": 2.0,
        "seed_1/episode_return": 8.0,
        "seed_1/loss": 3.0,
    }
    alone = {name: values[::2] for name, values in columns.items()}
    assert sinks.chunk_metrics([0], alone) == {"episodes": 0.0, "loss": 2.0}


def test_a_loss_that_diverged_stays_nan_and_a_seed_without_rows_is_left_out():
    columns = {"seed": [3, 4, 4], "episodes": [0, 0, 0], "loss": [1.0, 2.0, float("nan")]}
    point = sinks.chunk_metrics([3, 4, 9], columns)
    assert np.isnan(point["loss"])
    assert np.isnan(point["seed_4/loss"])
    assert point["seed_3/loss"] == 1.0
    assert not [name for name in point if name.startswith("seed_9")]
    rest = {name: values[:1] for name, values in columns.items()}
    assert sinks.chunk_metrics([3, 4, 9], rest) == {
        "episodes": 0.0,
        "loss": 1.0,
        "seed_3/episodes": 0.0,
        "seed_3/loss": 1.0,
    }


@pytest.mark.filterwarnings("error")
def test_infinities_of_both_signs_warn_nobody():
    columns = {"seed": [0, 0], "episodes": [0, 0], "loss": [float("inf"), float("-inf")]}
    assert np.isnan(sinks.chunk_metrics([0], columns)["loss"])


# TensorBoard


def crc32c(data):
    """Bit by bit, from the polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def events(path):
    """The events of a file of records: length, its checksum, data, its checksum."""
    from tensorboardX.proto import event_pb2

    def check(data, masked):
        crc = crc32c(data)
        assert ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32 == struct.unpack("<I", masked)[0]
        return data

    with path.open("rb") as file:
        while head := file.read(8):
            (length,) = struct.unpack("<Q", check(head, file.read(4)))
            yield event_pb2.Event.FromString(check(file.read(length), file.read(4)))


def scalars(path):
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in events(path)
        if event.summary.value
    ]


def test_tensorboard_can_be_read_back_at_once(tmp_path):
    sink = sinks.tensorboard(tmp_path / "run")
    before = time.time()
    sink(512, {"episode_return": 21.5, "seed_0/loss": -0.25})
    (path,) = (tmp_path / "run").iterdir()
    assert "tfevents" in path.name  # what TensorBoard looks for
    assert scalars(path) == [(512, {"episode_return": 21.5, "seed_0/loss": -0.25})]
    sink(2**40, {"loss": float("nan")})
    sink.close()
    step, point = scalars(path)[1]
    assert step == 2**40
    assert np.isnan(point["loss"])
    first = next(events(path))
    assert first.file_version == "brain.Event:2"
    assert all(before <= event.wall_time <= time.time() for event in events(path))


def test_tensorboard_forgets_what_a_resumed_run_repeats(tmp_path):
    for steps in ([100, 200, 300], [200, 300, 400]):
        with sinks.running([sinks.tensorboard(tmp_path)], refuse) as write:
            for step in steps:
                write(step, {"loss": float(step)})
    first, second = sorted(tmp_path.iterdir())
    assert [step for step, _ in scalars(first)] == [100, 200, 300]
    assert [step for step, _ in scalars(second)] == [200, 300, 400]
    starts = [e.step for e in events(second) if e.session_log.status == e.session_log.START]
    assert starts == [200]


def test_a_full_disk_is_reported_and_hangs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 7)
    (tmp_path / "events.out.tfevents.7").symlink_to("/dev/full")
    warnings = []
    with sinks.running([sinks.tensorboard(tmp_path)], warnings.append) as write:
        for step in range(60):
            write(step, {"loss": 1.0})
    assert len(warnings) == 1
    assert "TensorBoard failed at step 0" in warnings[0]
    assert "No space left on device" in warnings[0]


def test_a_sink_that_was_never_called_leaves_nothing(tmp_path):
    with sinks.running([sinks.tensorboard(tmp_path), sinks.wandb(tmp_path, name="x", config={})], refuse):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "module, make",
    [("tensorboardX", sinks.tensorboard), ("wandb", lambda folder: sinks.wandb(folder, name="x", config={}))],
)
def test_a_missing_extra_is_named_at_once(tmp_path, monkeypatch, module, make):
    message = rf'pip install "pgjax\[{module.lower().rstrip("x")}\]"'
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match=message):
        make(tmp_path)
    (tmp_path / module).mkdir()  # such as the one wandb makes where it runs
    importlib.invalidate_caches()
    assert importlib.util.find_spec(module) is not None
    with pytest.raises(ValueError, match=message):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [module]


def test_the_packages_are_not_imported_before_they_are_used():
    code = """
import sys
from pgjax.experiment import sinks
from pathlib import Path
sinks.tensorboard(Path("run")), sinks.wandb(Path("run"), name="x", config={})
print(sorted({"wandb", "tensorboardX"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Weights & Biases


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The package, offline, with nothing of the user's."""
    import wandb

    home = {"WANDB_CONFIG_DIR": "config", "WANDB_CACHE_DIR": "cache", "NETRC": "netrc", "HOME": ""}
    for name, value in home.items():
        monkeypatch.setenv(name, str(tmp_path / "home" / value))
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_CONSOLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")
    yield wandb
    wandb.teardown()


def records(path):
    """The records of a .wandb file: a log in LevelDB's format, blocks of 32 KiB behind 7 bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # too short for a header: padding
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            yield wandb_internal_pb2.Record.FromString(b"".join(parts))
            parts = []


def history(path):
    points = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            points.append((items.pop("_step"), {k: v for k, v in items.items() if k[0] != "_"}))
    return points


def test_wandb_keeps_every_point_offline(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "shelf")
    folder, config = tmp_path / "ppo run:1", {"preset": {"steps": 100}}
    sink = sinks.wandb(folder, name="my run", config=config)
    with sinks.running([sink], refuse, room=1000) as write:
        for step in range(0, 6400, 64):
            write(step, {"episode_return": step / 4, "seed_0/loss": float("nan" if step == 64 else "-1")})
    wandb.teardown()  # as at the end of a process: by then all of the file is there
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    points = history(path)
    assert [step for step, _ in points] == list(range(0, 6400, 64))
    assert [point["episode_return"] for _, point in points] == [step / 4 for step in range(0, 6400, 64)]
    losses = np.array([point["seed_0/loss"] for _, point in points], float)
    np.testing.assert_array_equal(losses, [-1.0, np.nan, *[-1.0] * 98])
    (run,) = (record.run for record in records(path) if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name) == ("shelf", "my run")
    config = {".".join(u.nested_key) or u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["preset"] == {"steps": 100}
    assert run.run_id.startswith("ppo-run-1-")
    assert wandb.run is None  # the user's own is another


def test_online_wandb_resumes_with_the_id_it_had_and_its_environment_comes_first(
    wandb, tmp_path, monkeypatch
):
    begun, logged = [], []

    def init(**options):
        begun.append(options)
        return types.SimpleNamespace(
            log=lambda point, step: logged.append((step, point)), finish=lambda: logged.append("finish")
        )

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", lambda **options: not options["prompt"])
    monkeypatch.setattr(wandb, "init", init)
    for console in ("", "wrap"):
        if console:
            monkeypatch.setenv("WANDB_CONSOLE", console)
        with sinks.running([sinks.wandb(tmp_path, name="x", config={"steps": 9})], refuse) as write:
            write(1, {"loss": 2.0})
            write(2, {"loss": 3.0})
    assert logged == [(1, {"loss": 2.0}), (2, {"loss": 3.0}), "finish"] * 2
    first, second = (options.pop("settings") for options in begun)
    assert begun[0] == begun[1]
    assert begun[0].pop("id").startswith(tmp_path.name)
    expected = {"dir": tmp_path, "name": "x", "config": {"steps": 9}, "resume": "allow"}
    assert begun[0] == expected | {"allow_val_change": True, "reinit": "create_new"}
    assert first.console == "off"
    assert first.init_timeout == second.init_timeout == 30.0  # seconds: wandb's own exit waits for it
    assert "console" not in second.model_fields_set


def test_wandb_goes_on_under_the_same_id_and_another_folder_has_another(wandb, tmp_path):
    ids = []
    for folder in (tmp_path / "a" / "run", tmp_path / "a" / "run", tmp_path / "b" / "run"):
        before, second = set(folder.glob("wandb/offline-run-*")), time.time() // 1
        while time.time() // 1 == second and before:  # wandb names its folders by the second
            time.sleep(0.01)
        with sinks.running([sinks.wandb(folder, name="x", config={"try": len(ids)})], refuse) as write:
            write(len(ids), {"loss": 1.0})
        wandb.teardown()
        (new,) = set(folder.glob("wandb/offline-run-*")) - before
        (path,) = new.glob("*.wandb")
        assert history(path) == [(len(ids), {"loss": 1.0})]
        (run,) = (record.run for record in records(path) if record.WhichOneof("record_type") == "run")
        ids.append(run.run_id)
    assert ids[0] == ids[1] != ids[2]


def test_without_a_key_wandb_is_reported_and_kept_offline(wandb, tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        warnings = []
        with sinks.running([sinks.wandb(tmp_path, name="x", config={})], warnings.append) as write:
            for step in range(3):
                write(step, {"loss": 0.5})
    assert len(warnings) == 1
    assert "no API key" in warnings[0]
    assert "kept offline" in warnings[0]
    wandb.teardown()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert history(path) == [(step, {"loss": 0.5}) for step in range(3)]


def test_an_unreachable_server_is_reported_and_the_run_kept_offline(wandb, tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
        monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        warnings = []
        with sinks.running(
            [sinks.wandb(tmp_path, name="x", config={})], warnings.append, limit=WAIT
        ) as write:
            for step in range(3):
                write(step, {"loss": 0.5})
    assert len(warnings) == 1
    assert "Wandb failed at step 0" in warnings[0]
    assert "kept offline" in warnings[0]
    wandb.teardown()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert history(path) == [(step, {"loss": 0.5}) for step in range(3)]
