import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import envs

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
        ("MNISTBandit-bsuite", {}, "downloads its data"),
    ],
)
def test_what_cannot_be_made_is_refused_with_advice(name, params, message):
    with pytest.raises(ValueError, match=message):
        envs.make(name, **params)


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
