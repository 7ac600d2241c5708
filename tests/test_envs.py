import copy
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import envs, tabular

KEY = jax.random.key(0)


def test_parameters_can_be_overridden():
    _, env_params = envs.make("CartPole-v1", max_steps_in_episode=7, gravity=1.5)
    assert (env_params.max_steps_in_episode, env_params.gravity) == (7, 1.5)


def test_arguments_of_the_constructor_can_be_given():
    env, env_params = envs.make("DeepSea-bsuite", size=4)
    assert env.observation_space(env_params).shape == (4, 4)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("CartPole-v2", {}, "Did you mean CartPole-v1"),
        ("breakout", {}, "Breakout-MinAtar"),
        ("xyzzy-9", {}, "Known are CartPole-v1"),
        ("CartPole-v1", {"gravty": 1.0}, "Did you mean gravity"),
        ("CartPole-v1", {"max_steps_in_episode": "many"}, "must be a number, got 'many'"),
        ("CartPole-v1", {"max_steps_in_episode": 0}, "must be at least 1, got 0"),
        ("MNISTBandit-bsuite", {}, "downloads its data"),
        ("bracks:reacher", {}, "Unknown suite 'bracks'.*Did you mean brax"),
    ],
)
def test_what_cannot_be_made_is_refused_with_advice(name, params, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **params)


@pytest.mark.parametrize("name", ["max_steps_in_episode", "max_timesteps"])
def test_the_time_limit_is_found_under_either_name(name):
    assert envs.max_steps(types.SimpleNamespace(**{name: 50})) == 50
    assert envs.max_steps(None, default=7) == 7


@pytest.mark.parametrize("name", ["MountainCar-v0", "Pendulum-v1", "FourRooms-misc", "Breakout-MinAtar"])
@pytest.mark.last_bits
def test_observations_are_brought_from_their_bounds_to_one(name):
    """Whatever it shows, a rollout of the one is that of the other, and only the observations are scaled."""
    plain, env_params = envs.make(name)
    scaled, same_params = envs.make(name, rescale_obs=True)
    assert same_params == env_params
    space, new_space = (env.observation_space(env_params) for env in (plain, scaled))
    assert (new_space.shape, float(new_space.low), float(new_space.high)) == (space.shape, -1.0, 1.0)

    def policy(key, obs):
        action = jax.vmap(plain.action_space(env_params).sample)(jax.random.split(key, obs.shape[0]))
        return action, jnp.zeros(obs.shape[0])

    def act(env):
        carry = pgjax.reset_envs(KEY, env, env_params, 3)
        return pgjax.rollout(KEY, carry, policy, env, env_params, 30)[1]

    # made under jit, as sweeps do
    expected, got = jax.jit(lambda: (act(plain), act(envs.make(name, rescale_obs=True)[0])))()
    for field in ("action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))
    low, high = (np.broadcast_to(np.asarray(b, float), space.shape) for b in (space.low, space.high))
    for field in ("obs", "next_obs"):
        raw, brought = (np.asarray(getattr(traj, field), float) for traj in (expected, got))
        np.testing.assert_allclose(brought, 2.0 * (raw - low) / (high - low) - 1.0, atol=1e-5)
        assert np.abs(brought).max() <= 1.0 + 1e-5


@pytest.mark.parametrize("name", ["CartPole-v1", "FrozenLake-misc", "Cliff-tabular", "SimpleBandit-bsuite"])
def test_what_has_no_bounds_is_not_rescaled(name):
    with pytest.raises(ValueError, match="finite bounds"):
        envs.make(name, rescale_obs=True)


def test_actions_are_clipped_at_the_environment_and_stored_unclipped():
    env, env_params = envs.make("Pendulum-v1")

    def policy(key, obs):
        return jnp.full((obs.shape[0], 1), 50.0), jnp.zeros(obs.shape[0])

    carry = pgjax.reset_envs(KEY, env, env_params, 1)
    carry, traj, _ = pgjax.rollout(KEY, carry, policy, env, env_params, 1)
    assert traj.action[0, 0, 0] == 50.0
    _, state = env.reset(KEY, env_params)
    clipped, wild = (env.step(KEY, state, jnp.full(1, a), env_params)[2] for a in (2.0, 50.0))
    assert clipped == wild


def test_the_clipping_is_ours_and_not_the_environments():
    env = envs.ClipAction(type("Echo", (), {"step": lambda self, k, s, a, p: a})(), -1.0, 2.0)
    np.testing.assert_array_equal(env.step(KEY, None, jnp.array([-9.0, 9.0]), None), [-1.0, 2.0])


def play_line(env, steps, num_envs=2):
    """A rollout under the action 1."""

    def policy(key, obs):
        return jnp.ones(num_envs, jnp.int32), jnp.zeros(num_envs)

    carry = pgjax.reset_envs(KEY, env, None, num_envs)
    return pgjax.rollout(KEY, carry, policy, env, None, steps)[1:]


def test_the_time_limit_truncates_and_starts_anew():
    env = envs.TimeLimit(tabular.chain_mdp(4, 0.9), 3)  # goes on for ever by itself
    traj, stats = play_line(env, 7)
    np.testing.assert_array_equal(traj.truncated[:, 0], [False, False, True, False, False, True, False])
    assert not traj.terminated.any()
    np.testing.assert_array_equal(traj.obs[:, 0].argmax(-1), [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(traj.next_obs[:, 0].argmax(-1), [1, 2, 3, 1, 2, 3, 1])
    assert (stats.episodes, stats.length_sum) == (4, 12)


@pytest.mark.parametrize(("limit", "truncates"), [(2, True), (3, False), (4, False)])
def test_a_step_that_terminates_at_the_limit_terminates(limit, truncates):
    env = envs.TimeLimit(tabular.grid_mdp(["S..G"], 0.9), limit)
    traj, _ = play_line(env, 6)
    np.testing.assert_array_equal(traj.truncated.any(), truncates)
    np.testing.assert_array_equal(traj.terminated.any(), not truncates)
    assert not (traj.truncated & traj.terminated).any()
    if not truncates:
        np.testing.assert_array_equal(traj.terminated[:, 0], [False, False, True] * 2)


def test_the_environments_own_truncation_starts_the_clock_again():
    inner = envs.TimeLimit(tabular.chain_mdp(9, 0.9), 2)
    traj, _ = play_line(envs.TimeLimit(inner, 3), 6)
    np.testing.assert_array_equal(traj.truncated[:, 0], [False, True] * 3)


def test_a_time_limit_passes_all_else_on_and_must_be_positive():
    env = envs.TimeLimit(tabular.kakade_mdp(), 5)
    assert env.num_states == 2
    assert env.action_space(None).n == 2
    assert copy.copy(env).max_steps == 5
    with pytest.raises(ValueError, match="at least 1"):
        envs.TimeLimit(tabular.kakade_mdp(), 0)


def test_a_time_limit_goes_around_gymnax_too():
    env, env_params = envs.make("CartPole-v1")
    env = envs.TimeLimit(env, 4)

    def policy(key, obs):
        return jnp.zeros(2, jnp.int32), jnp.zeros(2)

    def run(key):
        carry = pgjax.reset_envs(key, env, env_params, 2)
        return pgjax.rollout(key, carry, policy, env, env_params, 8)[1]

    with jax.numpy_rank_promotion("allow"):
        traj = jax.jit(run)(KEY)
    np.testing.assert_array_equal(np.flatnonzero(traj.truncated[:, 0]), [3, 7])


@pytest.mark.parametrize("name", envs.names())
def test_every_environment_rolls_out(name):
    env, env_params = envs.make(name)
    space = env.action_space(env_params)

    def policy(key, obs):
        keys = jax.random.split(key, 2)
        return jax.vmap(space.sample)(keys), jnp.zeros(2)

    def run(key):
        carry = pgjax.reset_envs(key, env, env_params, 2)
        return pgjax.rollout(key, carry, policy, env, env_params, 3)

    with jax.numpy_rank_promotion("allow"):  # gymnax's own business
        _, traj, _ = jax.eval_shape(run, KEY)  # shapes and dtypes are where environments differ
    assert traj.reward.shape == (3, 2)
    assert traj.reward.dtype == jnp.float32
    assert traj.terminated.dtype == traj.truncated.dtype == jnp.bool_
    assert jax.tree.map(jnp.shape, traj.obs) == jax.tree.map(jnp.shape, traj.next_obs)
