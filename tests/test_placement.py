"""What is spread over devices computes what one device computes, and says little to the others."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO

import pgjax
from pgjax import placement
from pgjax.experiment import presets, programs
from pgjax.experiment.store import Settings

NUM_DEVICES = 8
# Name in the zoo, and options that make its environments divisible; NPG is TRPO without its line search.
SPREAD = {
    "ppo-continuous": {"num_envs": 8},
    "trpo": {"num_envs": 8},
    "acktr": {"num_envs": 8},
    "sac-continuous": {"num_envs": 8},
}

# Seeds in groups: TRPO searches along a line and REINFORCE waits for episodes, each as long as it takes.
GROUPED = ("trpo", "reinforce", "dqn")

WORKER = """
import json, re, sys
import jax, numpy as np
from test_placement import GROUPED, SPREAD
from zoo import ZOO
import pgjax
from pgjax import networks, placement, training

assert jax.device_count() == 8
KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
KIND = rf"= (\\S+|\\(.*?\\)) ({KINDS})(?:-start)?\\("
found = {}
for name, options in SPREAD.items():
    algorithm = ZOO[name](**options)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    alone, _ = jax.jit(algorithm.step)(jax.random.key(1), state)
    placed = placement.shard(state, "data")
    where = jax.tree.map(lambda x: x.sharding, placed)
    whole = jax.sharding.NamedSharding(jax.tree.leaves(where)[0].mesh, jax.sharding.PartitionSpec())
    step = jax.jit(algorithm.step, out_shardings=(where, whole)).lower(jax.random.key(1), placed).compile()
    together, _ = step(jax.random.key(1), placed)
    errors = [
        float(np.linalg.norm(np.asarray(a, float) - np.asarray(b, float)) / max(1e-3, np.linalg.norm(b)))
        for a, b in zip(*(jax.tree.leaves(s.learned) for s in (together, alone)), strict=True)
    ]
    text = step.as_text()
    collectives = [
        (kind, shape.count("["), re.findall(r'op_name="([^"]*)"', line)[:1])
        for line in text.splitlines()
        for shape, kind in re.findall(KIND, line)
    ]
    spread = sum("data" in tuple(x.sharding.spec) for x in jax.tree.leaves(together))
    found[name] = {"error": max(errors), "collectives": collectives, "spread": spread}

# values of a rollout of images
mesh = placement.make_mesh("data")
shape, critic = (8, 16), networks.Critic(networks.CNN(channels=2, hidden=4))
obs = jax.random.normal(jax.random.key(0), (9, 16, 5, 5, 2))
flags = jax.random.bernoulli(jax.random.key(1), 0.1, (2, *shape))
traj = pgjax.Transition(obs[:-1], *np.zeros((3, *shape)), *flags, obs[1:])
traj = jax.tree.map(jax.numpy.asarray, traj)
params = critic.init(jax.random.key(2), obs[0])
by_env = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
images = {}
for num_chunks in (1, 4):
    def look(traj):
        return pgjax.rollout_values(lambda obs: critic.apply(params, obs), traj, num_chunks=num_chunks)
    alone, placed = jax.jit(look)(traj), jax.device_put(traj, by_env)
    program = jax.jit(look, out_shardings=by_env).lower(placed).compile()
    together = program(placed)
    error = max(float(np.abs(np.asarray(a) - b).max()) for a, b in zip(together, alone))
    collectives = [(kind, shape) for shape, kind in re.findall(KIND, program.as_text())]
    images[num_chunks] = {"error": error, "collectives": collectives}

# seeds
algorithm = ZOO["ppo"]()
keys = jax.random.split(jax.random.key(0), 8)
init_keys, run_keys = training.split_run_key(keys)
start = jax.jit(lambda keys: training.init_progress(keys, algorithm))(init_keys)

def chunk(keys, progress):
    return training.advance(keys, algorithm, progress, 0, 1, 1)

alone, _ = jax.jit(chunk)(run_keys, start)
program = jax.jit(chunk).lower(*placement.shard((run_keys, start))).compile()
together, _ = program(*placement.shard((run_keys, start)))
pairs = zip(*(jax.tree.leaves(p.state.learned.params) for p in (together, alone)), strict=True)
seeds = {
    "error": max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs),
    "collectives": re.findall(KIND, program.as_text()),
    "devices": [len(x.sharding.device_set) for x in jax.tree.leaves(together)],
}
through_train, _ = pgjax.train(placement.shard(keys), algorithm, 1)
seeds["train"] = [len(x.sharding.device_set) for x in jax.tree.leaves(through_train.learned.params)]

# groups of them
groups = {}
mesh = placement.make_mesh("seed")
for name in GROUPED:
    algorithm = ZOO[name]()
    keys = jax.random.split(jax.random.key(0), 32)
    init_keys, run_keys = training.split_run_key(keys)
    start = jax.jit(lambda keys: training.init_progress(keys, algorithm))(init_keys)
    one = lambda key, progress: training.advance(key, algorithm, progress, 0, 1, 1)
    alone, _ = jax.jit(lambda *rows: training.map_seeds(one, *rows))(run_keys, start)
    groups[name] = {}
    for together in (1, 2, 4):
        chunk = lambda *rows: training.map_seeds(one, *rows, together=together, mesh=mesh)
        program = jax.jit(chunk).lower(*placement.shard((run_keys, start))).compile()
        after, _ = program(*placement.shard((run_keys, start)))
        pairs = zip(*(jax.tree.leaves(p.state.learned) for p in (after, alone)), strict=True)
        groups[name][together] = {
            "error": max(
                float(np.abs(np.asarray(a, float) - b).max() / max(1e-3, np.abs(b).max())) for a, b in pairs
            ),
            "collectives": re.findall(KIND, program.as_text()),
            "devices": [len(x.sharding.device_set) for x in jax.tree.leaves(after)],
        }
print("RESULT" + json.dumps({"data": found, "images": images, "seed": seeds, "groups": groups}))
"""


@pytest.fixture(scope="module")
def results():
    count = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}",
        "PYTHONPATH": os.path.dirname(__file__),
    }
    done = subprocess.run(
        [sys.executable, "-c", WORKER], env=environment, capture_output=True, text=True, timeout=600
    )
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.partition("RESULT")[2])


@pytest.mark.parametrize("name", SPREAD)
def test_an_iteration_on_eight_devices_is_that_on_one(results, name):
    found = results["data"][name]
    assert found["spread"] >= 3  # the environments really lie on different devices
    assert found["error"] < (1e-4 if name == "acktr" else 1e-5)  # decompositions make more of a rounding


@pytest.mark.parametrize("name", [n for n in SPREAD if n != "sac-continuous"])
def test_no_batch_is_gathered(results, name):
    """On policy only sums cross devices; a replay buffer is the same on all, and so gets every step."""
    assert {kind for kind, *_ in results["data"][name]["collectives"]} == {"all-reduce"}


def test_images_of_a_rollout_stay_where_they_are(results):
    """Chunks ask all devices once, in which of them an episode was cut off; nothing else is told."""
    assert results["images"]["1"]["collectives"] == []
    assert [kind for kind, _ in results["images"]["4"]["collectives"]] == ["all-reduce"]
    assert results["images"]["4"]["collectives"][0][1].startswith("pred[4]")
    assert max(found["error"] for found in results["images"].values()) < 1e-5


def test_ppo_sums_once_for_each_gradient_step(results):
    """All gradients in one all-reduce; once an epoch two more, for the mean and deviation of advantages."""
    in_a_loop = [c for c in results["data"]["ppo-continuous"]["collectives"] if "while/body" in c[2][0]]
    in_the_inner_loop = [c for c in in_a_loop if c[2][0].count("while/body") == 2]
    assert [size > 4 for _, size, _ in in_the_inner_loop] == [True]
    assert len(in_a_loop) <= 3
    outside = [c for c in results["data"]["ppo-continuous"]["collectives"] if "while/body" not in c[2][0]]
    assert len(outside) <= 7  # metrics, and the moments of observations and returns


def test_seeds_say_nothing_to_each_other(results):
    assert results["seed"]["collectives"] == []
    assert results["seed"]["error"] < 1e-5
    assert set(results["seed"]["devices"]) == {NUM_DEVICES}
    assert set(results["seed"]["train"]) == {NUM_DEVICES}


class TestShard:
    def test_values_stay_what_they_are(self):
        keys = jax.random.split(jax.random.key(0), 2)
        np.testing.assert_array_equal(jax.random.key_data(pgjax.shard(keys)), jax.random.key_data(keys))

    def test_a_state_without_environments_is_refused(self):
        with pytest.raises(ValueError, match="no environments here to spread"):
            pgjax.shard({"params": jnp.zeros(3)}, "data")

    def test_workers_that_take_turns_are_refused(self):
        state = jax.eval_shape(ZOO["a3c"]().init, jax.random.key(0))
        with pytest.raises(ValueError, match="workers that take turns"):
            placement.shardings(state, placement.make_mesh("data"))

    def test_an_unknown_axis_is_refused(self):
        with pytest.raises(ValueError, match='axis must be "seed" or "data"'):
            pgjax.shard(jnp.zeros(2), "model")


@pytest.mark.parametrize("name", GROUPED)
def test_seeds_in_groups_are_those_side_by_side_and_wait_for_no_other_device(results, name):
    for together, found in results["groups"][name].items():
        assert found["collectives"] == [], together
        assert found["error"] < 1e-5, together
        assert set(found["devices"]) == {NUM_DEVICES}


class FakeMesh:
    """As many devices as a test needs."""

    size, axis_names = 3, ("seed",)


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="4 seeds do not divide among 3 devices"):
        placement.shardings(jnp.zeros(4), FakeMesh())


class TestLayout:
    def settings(self, algorithm="ppo", changes=None, **kept):
        return Settings(presets.preset(algorithm, "CartPole-v1", **(changes or {})), **kept)

    @pytest.mark.parametrize(
        ("seeds", "devices", "expected"),
        [
            (1, 8, (1, 1)),
            (3, 8, (3, 3)),
            (8, 8, (8, 8)),
            (10, 8, (10, 5)),
            (11, 8, (12, 6)),
            (16, 8, (16, 8)),
        ],
    )
    def test_seeds_are_spread_evenly_and_padded(self, monkeypatch, seeds, devices, expected):
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        assert programs.layout(self.settings(seeds=seeds)) == expected

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"devices": 9}, "devices must be between 1 and the 8 there are, got 9"),
            ({"shard": "data", "changes": {"num_envs": 12}}, "num_envs=12 does not divide among 8 devices"),
            ({"shard": "data", "changes": {"num_envs": 16, "num_shards": 4}}, "The 4 shards"),
            ({"shard": "data", "algorithm": "reinforce"}, "cannot be spread over devices"),
            ({"shard": "data", "algorithm": "a3c"}, "cannot be spread over devices"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, monkeypatch, settings, message):
        monkeypatch.setattr(jax, "device_count", lambda: 8)
        with pytest.raises(ValueError, match=message):
            programs.layout(self.settings(**settings))

    @pytest.mark.parametrize(
        ("algorithm", "environment", "changes", "expected"),
        [
            (
                "ppo",
                "CartPole-v1",
                {"num_envs": 4, "num_steps": 128, "num_minibatches": 4},
                [1, 2, 3, 4, 5, 4],
            ),
            ("ppo", "CartPole-v1", {"num_envs": 64, "num_steps": 128, "num_minibatches": 4}, [1] * 6),
            ("a2c", "CartPole-v1", {"num_envs": 8, "num_steps": 5}, [1, 2, 3, 4, 10, 16]),
            ("sac", "Pendulum-v1", {"batch_size": 128}, [1, 2, 3, 2, 2, 2]),
            ("dqn", "Breakout-MinAtar", {"batch_size": 128}, [1] * 6),
        ],
    )
    def test_a_cpu_runs_as_many_seeds_together_as_its_caches_hold(
        self, algorithm, environment, changes, expected
    ):
        preset = presets.preset(algorithm, environment, **changes)
        assert [programs.seeds_together(preset, rows) for rows in (1, 2, 3, 4, 10, 32)] == expected

    def test_an_accelerator_runs_all_seeds_together(self, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert programs.seeds_together(presets.preset("dqn", "Breakout-MinAtar"), 32) == 32

    def test_processes_share_all_devices(self, monkeypatch):
        monkeypatch.setattr(jax, "device_count", lambda: 8)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        assert programs.layout(self.settings(seeds=3)) == (8, 8)
        with pytest.raises(ValueError, match="One seed is no work for several processes"):
            programs.layout(self.settings())
        with pytest.raises(ValueError, match="With several processes all devices are used"):
            programs.layout(self.settings(seeds=3, devices=4))
