import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_fixtures import tiny_preset

import pgjax
from pgjax import experiment
from pgjax.experiment import parts, presets


@pytest.mark.parametrize("name", presets.TUNED, ids="-".join)
def test_json_round_trip_and_one_iteration_traces(name):
    suite, colon, _ = name[1].partition(":")
    if colon:
        pytest.importorskip(suite)
    preset = presets.preset(*name)
    text = json.dumps(presets.to_json(preset), allow_nan=False)
    assert presets.from_json(json.loads(text)) == preset

    def iteration(hyper, key):
        algorithm = presets.build(preset, hyper)
        return algorithm.step(key, algorithm.init(key))[1]

    metrics = jax.eval_shape(iteration, presets.hyper(preset), jax.random.key(0))
    loss = "value_loss" if name[0] in ("dqn", "q_learning", "sarsa") else "policy_loss"
    assert {"env_steps", "episodes", "episode_return_sum", loss} <= set(metrics)


def test_settings_of_before_take_nothing_from_a_table_that_has_grown():
    """The table rescales what NPG sees of MountainCar; a run that was made without is another run."""
    before = presets.preset("npg", "MountainCar-v0")._replace(env_params={})
    assert presets.from_json(presets.to_json(before)) == before


def test_the_schedule_of_a_delayed_actor_ends_with_its_own_steps():
    preset = presets.preset("td3", "Pendulum-v1", actor_optimizer={"schedule": "linear"})
    spec = preset.optimizers["actor_optimizer"]
    horizons = [presets._horizon(preset, name, spec) for name in ("actor_optimizer", "critic_optimizer")]
    assert horizons[1] == 2 * horizons[0]


def test_every_algorithm_has_an_environment_of_its_own():
    homes = {name: presets.preset(name).environment for name in presets.algorithm_names()}
    away = {
        "ddpg": "Pendulum-v1",
        "td3": "Pendulum-v1",
        "q_learning": "Cliff-tabular",
        "sarsa": "Cliff-tabular",
    }
    assert homes == dict.fromkeys(homes, "CartPole-v1") | away


def test_infinite_options_survive_strict_json():
    preset = presets.preset("ppo", "CartPole-v1", clip_eps=math.inf)
    assert presets.from_json(json.loads(json.dumps(presets.to_json(preset), allow_nan=False))) == preset


@pytest.mark.parametrize("algorithm", presets.algorithm_names())
def test_every_algorithm_builds_in_every_environment_that_it_fits(algorithm):
    finite = ("FrozenLake-misc", "Asterix-MinAtar", "MemoryChain-bsuite", "Cliff-tabular")
    for environment in (*finite, "PointRobot-misc"):
        misfit = ("ddpg", "td3") if environment in finite else ("dqn", "q_learning", "sarsa")
        if algorithm in misfit:
            with pytest.raises(ValueError, match=f"{environment}.* take|td3 and sac are for them"):
                experiment.make(algorithm, environment)
        else:
            experiment.make(algorithm, environment)


def test_hyper_holds_the_numeric_values_only():
    hyper = presets.hyper(presets.preset("ppo", "CartPole-v1"))
    assert hyper["options"]["gamma"] == 0.99
    assert hyper["optimizer"]["learning_rate"] > 0
    assert not {"num_envs", "max_kl", "normalize_obs"} & set(hyper["options"])
    assert all(isinstance(leaf, float) for leaf in jax.tree.leaves(hyper))


def test_a_grid_of_learning_rates_is_one_program():
    preset = tiny_preset(optimizer={"name": "sgd", "schedule": "constant", "max_grad_norm": None})

    def moved(rate):
        hyper = presets.hyper(preset)
        hyper["optimizer"]["learning_rate"] = rate
        algorithm = presets.build(preset, hyper)
        before = algorithm.init(jax.random.key(0))
        after = algorithm.step(jax.random.key(1), before)[0]
        change = jax.tree.map(lambda a, b: jnp.abs(a - b).sum(), after.learned.params, before.learned.params)
        return sum(jax.tree.leaves(change))

    # the same parameters in every lane, so the deadlock of batched initialisers cannot happen: lax.map
    changes = jax.jit(lambda rates: jax.lax.map(moved, rates))(jnp.array([0.0, 0.1, 0.2]))
    assert changes[0] == 0
    np.testing.assert_allclose(changes[2], 2 * changes[1], rtol=1e-3)


def test_linear_schedule_ends_at_the_last_gradient_step():
    spec = parts.OptimizerSpec(name="sgd", learning_rate=1.0, max_grad_norm=None, schedule="linear")

    @jax.jit
    def updates(rate):
        optimizer = parts.make_optimizer(spec._replace(learning_rate=rate), 4)
        return jax.lax.scan(
            lambda s, _: optimizer.update(jnp.ones(()), s)[::-1], optimizer.init(jnp.zeros(())), length=5
        )[1]

    np.testing.assert_allclose(updates(2.0), [-2.0, -1.5, -1.0, -0.5, 0.0])
    preset = presets.preset("ppo", "CartPole-v1", num_envs=4, num_steps=128, steps=1025)
    assert presets._horizon(preset, "optimizer", preset.optimizers["optimizer"]) == 3 * 4 * 4


def test_what_fills_buffer_and_normalisers_has_no_gradient_steps():
    sizes = {"num_envs": 10, "num_steps": 1, "num_updates": 100, "num_gradient_steps": 1}
    preset = presets.preset("dqn", "CartPole-v1", steps=50_000, warmup_steps=10_000, **sizes)
    spec = preset.optimizers["optimizer"]._replace(schedule="linear")
    assert presets._horizon(preset, "optimizer", spec) == 40 * 100
    sizes = {"num_envs": 4, "num_steps": 128, "normalize_obs": True}
    preset = presets.preset("ppo", "CartPole-v1", steps=4 * 512, **sizes)
    assert presets._horizon(preset, "optimizer", preset.optimizers["optimizer"]) == 3 * 4 * 4


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("reward_to_go", [[4.0, 2.5], [4.0, 1.0]]),
        ("constant", [[1.125, -0.375], [1.125, -1.875]]),
        ("time", [[0.75, -0.75], [1.5, -1.5]]),
        ("leave_one_out", [[1.5, -1.5], [3.0, -3.0]]),
        ("total_return", [[6.0, 3.0], [6.0, 3.0]]),
    ],
)
def test_a_weight_of_reinforce_is_what_its_name_says(name, weight):
    """Two episodes of two steps with rewards 2, 4 and 2, 1 at γ = 0.5; the total return has no discount."""
    obs, flags = jnp.zeros((2, 2, 1)), jnp.array([[False, False], [True, True]])
    reward, valid = jnp.array([[2.0, 2.0], [4.0, 1.0]]), jnp.ones((2, 2), bool)
    traj = pgjax.Transition(obs, reward, reward, reward, flags, jnp.zeros_like(flags), obs)
    found = parts.WEIGHTS[name](0.5)(traj, valid, None)
    np.testing.assert_allclose(jnp.broadcast_to(found, (2, 2)), weight, rtol=1e-6)


@pytest.mark.parametrize("weight", parts.WEIGHTS)
def test_every_weight_of_reinforce_builds(weight):
    algorithm = experiment.make("reinforce", weight=weight, num_episodes=2, max_steps=5)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    assert (state.learned.critic_params is None) == (weight != "critic")
    jax.eval_shape(algorithm.step, jax.random.key(0), state)


def test_reinforce_takes_its_limit_from_the_environment():
    preset = presets.preset("reinforce", "CartPole-v1", env_params={"max_steps_in_episode": 30})
    assert presets.iteration_size(preset) == (30 * preset.options["num_episodes"], None)


@pytest.mark.parametrize(
    ("algorithm", "changes", "expected"),
    [
        ("ppo", {"num_envs": 4, "num_steps": 128, "num_epochs": 3, "num_minibatches": 4}, 128),
        ("a2c", {"num_envs": 8, "num_steps": 5}, 40),
        ("a3c", {"num_steps": 5}, 5),
        ("actor_critic", {"num_envs": 16}, 32),
        ("acktr", {"num_envs": 32, "num_steps": 20}, 640),
        ("npg", {"num_envs": 8, "num_steps": 128}, 1024),
        ("trpo", {"num_envs": 8, "num_steps": 100}, 800),
        ("reinforce", {"num_episodes": 3, "max_steps": 20}, 60),
        ("q_learning", {"num_envs": 64}, 128),
        ("sarsa", {"num_envs": 7}, 14),
        ("dqn", {"batch_size": 100}, 200),
        ("sac", {"batch_size": 128}, 256),
    ],
)
def test_what_a_gradient_step_looks_at(algorithm, changes, expected):
    assert presets.observations_per_update(presets.preset(algorithm, "CartPole-v1", **changes)) == expected


@pytest.mark.parametrize(
    "algorithm, environment, changes, message",
    [
        ("ppoo", "CartPole-v1", {}, "Did you mean ppo or trpo?"),
        ("ppo", "CartPol-v1", {}, "CartPole-v1"),
        ("ppo", "MNISTBandit-bsuite", {}, "download"),
        ("ppo", "CartPole-v1", {"clip_epz": 0.1}, "clip_eps"),
        ("ppo", "CartPole-v1", {"gamma": 1.5}, "gamma must be between 0 and 1, got 1.5"),
        ("ppo", "CartPole-v1", {"gamma": math.nan}, "gamma must be a number, got nan"),
        ("ppo", "CartPole-v1", {"clip_eps": "0.1"}, "clip_eps must be a number, got '0.1'"),
        ("ppo", "CartPole-v1", {"normalize_obs": "no"}, "normalize_obs must be a number, got 'no'"),
        ("ppo", "CartPole-v1", {"num_envs": "8"}, "num_envs must be a number, got '8'"),
        ("ppo", "CartPole-v1", {"num_envs": None}, "num_envs must have a value, got None"),
        ("ppo", "CartPole-v1", {"steps": None}, "steps must have a value, got None"),
        ("trpo", "CartPole-v1", {"max_kl": None}, "max_kl must have a value, got None"),
        ("ppo", "CartPole-v1", {"gamma": True}, "gamma must be a number, got True"),
        ("ppo", "CartPole-v1", {"normalize_obs": 3.0}, "normalize_obs must be between 0 and 1, got 3.0"),
        ("ppo", "CartPole-v1", {"optimizer": {"eps": None}}, "optimizer.eps must have a value, got None"),
        ("ppo", "CartPole-v1", {"env_params": {"gravity": "9"}}, "gravity must be a number, got '9'"),
        ("acktr", "CartPole-v1", {"actor_optimizer": {"damping": 0.0}}, "damping must be above 0, got 0.0"),
        ("reinforce", "CartPole-v1", {"weight": None}, "weight must have a value, got None"),
        ("sac", "CartPole-v1", {"noise_correlation": 0.9}, "leave noise_correlation at 0"),
        ("ppo", "", {}, "Unknown environment ''"),
        ("ppo", "CartPole-v1", {"num_envs": 4.5}, "num_envs must be a whole number, got 4.5"),
        ("dqn", "CartPole-v1", {"target_period": 2.5}, "target_period must be a whole number, got 2.5"),
        ("dqn", "CartPole-v1", {"target_period": 0}, "target_period must be at least 1, got 0"),
        ("ppo", "CartPole-v1", {"network": {"hidden": 64}}, "network.hidden must be several sizes, got 64"),
        ("ppo", "CartPole-v1", {"network": 64}, "network must be options by name, got 64"),
        ("ppo", "CartPole-v1", {"optimizer": 1e-3}, "optimizer must be options by name, got 0.001"),
        ("trpo", "CartPole-v1", {"damping": -1.0}, "damping must be at least 0, got -1.0"),
        ("npg", "CartPole-v1", {"max_kl": None, "step_size": -1.0}, "step_size must be above 0, got -1.0"),
        ("trpo", "CartPole-v1", {"backtrack": 2.0}, "backtrack must be between 0 and 1, got 2.0"),
        ("ppo", "CartPole-v1", {"clip_eps": 0.0}, "clip_eps must be above 0"),
        ("ppo", "CartPole-v1", {"num_envs": 0}, "num_envs must be at least 1"),
        ("ppo", "CartPole-v1", {"num_minibatches": 7}, "num_minibatches=7 must divide"),
        ("ppo", "CartPole-v1", {"optimizer": {"learning_rate": -1.0}}, "optimizer.learning_rate"),
        ("ppo", "CartPole-v1", {"optimizer": {"name": "adamm"}}, "Did you mean adam?"),
        ("ppo", "CartPole-v1", {"optimizer": {"rate": 1.0}}, "option of optimizer"),
        ("ppo", "CartPole-v1", {"network": {"hidden": (0,)}}, "network.hidden"),
        ("ppo", "CartPole-v1", {"network": {"torso": "cnn"}}, "CNN needs images"),
        ("ppo", "CartPole-v1", {"env_params": {"gravty": 1.0}}, "gravity"),
        ("ppo", "CartPole-v1", {"steps": 0}, "steps must be at least 1"),
        ("reinforce", "CartPole-v1", {"weight": "criticc"}, "Did you mean critic?"),
        ("reinforce", "CartPole-v1", {"actor_optimizer": {"schedule": "linear"}}, "schedule to constant"),
        ("actor_critic", "Pendulum-v1", {"all_action": True}, "continuous"),
    ],
)
def test_mistakes_say_what_is_wrong_in_one_line(algorithm, environment, changes, message):
    with pytest.raises(ValueError) as error:
        experiment.make(algorithm, environment, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
