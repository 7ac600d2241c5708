"""PPO against its parts, put together by hand: also beyond the first step, where ratio and clips count."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import CARTPOLE, GAUSSIAN, PENDULUM, ZOO, separate

import pgjax
from pgjax.algorithms import ppo

KEY = jax.random.key(0)
NETWORK, RATE = separate(), 0.5
OPTIONS = {
    "num_envs": 4,
    "num_steps": 8,
    "clip_eps": 0.05,
    "value_clip_eps": 0.05,
    "value_coef": 0.25,
    "entropy_coef": 0.02,
    "gamma": 0.9,
    "lambda_": 0.8,
}


def make(**options):
    return ppo.make(*CARTPOLE, NETWORK, optax.sgd(RATE), **OPTIONS | options)


def step_of(algorithm):
    """From a policy that is some way from uniform, so that a gradient step moves it far."""
    state = jax.jit(algorithm.init)(KEY)
    params = jax.tree.map(lambda x: x + jnp.sin(jnp.arange(x.size)).reshape(x.shape), state.learned.params)
    state = state._replace(learned=state.learned._replace(params=params))
    return state, *jax.jit(algorithm.step)(KEY, state)


@jax.jit
def gradient_and_kl(params, minibatch):
    """Of one minibatch, and the approximate KL before the step."""
    obs, action, old_log_prob, old_value, advantage, target = minibatch
    advantage = (advantage - advantage.mean()) / advantage.std()

    def loss(params):
        policy, value = NETWORK.apply(params, obs)
        ratio = jnp.exp(policy.log_prob(action) - old_log_prob)
        clipped = jnp.clip(ratio, 0.95, 1.05)
        near = old_value + jnp.clip(value - old_value, -0.05, 0.05)
        value_loss = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2)
        surrogate = jnp.minimum(ratio * advantage, clipped * advantage)
        return (-surrogate + 0.25 * value_loss - 0.02 * policy.entropy()).mean()

    log_ratio = NETWORK.apply(params, obs)[0].log_prob(action) - old_log_prob
    return jax.grad(loss)(params), (jnp.exp(log_ratio) - 1 - log_ratio).mean()


def by_hand(state, num_epochs, num_minibatches, max_kl=jnp.inf):
    """The parameters after all epochs, and the approximate KL that every minibatch began with."""
    act_key, shuffle_key = jax.random.split(KEY)
    params = start = state.learned.params

    def policy(key, obs):
        return NETWORK.apply(start, obs)[0].sample_and_log_prob(key)

    _, traj, _ = pgjax.rollout(act_key, state.env_carry, policy, *CARTPOLE, OPTIONS["num_steps"])
    value, next_value = (NETWORK.apply(start, obs)[1] for obs in (traj.obs, traj.next_obs))
    advantage = pgjax.gae(
        traj.reward, value, next_value, traj.terminated, traj.truncated, gamma=0.9, lambda_=0.8
    )
    batch = traj.obs, traj.action, traj.log_prob, value, advantage, advantage + value
    shards = pgjax.to_shards(batch, 4)
    kls, stopped = [], False
    for indices in pgjax.shuffled_minibatches(shuffle_key, 4, 8, num_minibatches, num_epochs).reshape(
        num_epochs * num_minibatches, 4, -1
    ):
        gradient, kl = gradient_and_kl(params, pgjax.take_minibatch(shards, indices))
        kls.append(float(kl))
        stopped = stopped or kl > max_kl
        if not stopped:
            params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    return params, kls


def test_two_epochs_by_hand():
    """Ratio and value are clipped around those of the rollout; advantages are standardised by minibatch."""
    state, new, metrics = step_of(make(num_epochs=2, num_minibatches=2))
    wanted, kls = by_hand(state, 2, 2)
    chex.assert_trees_all_close(new.learned.params, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["approx_kl"], np.mean(kls), rtol=1e-3)
    assert metrics["clip_fraction"] > 0.1


def test_what_the_kl_has_stopped_does_not_begin_again():
    """The limit lies below the KL of one minibatch and above that of the next, at the same parameters."""
    state, free, _ = step_of(make(num_epochs=1, num_minibatches=4))
    kls = by_hand(state, 1, 4)[1]
    begins = next(i for i in (1, 2) if kls[i] == max(kls[: i + 1]) and kls[i] > 2e-4)
    limit = 0.999 * kls[begins]
    wanted, stopped_kls = by_hand(state, 1, 4, max_kl=limit)
    assert any(kl < limit for kl in stopped_kls[begins + 1 :])
    _, new, metrics = step_of(make(num_epochs=1, num_minibatches=4, max_kl=limit))
    chex.assert_trees_all_close(new.learned.params, wanted, rtol=1e-4, atol=1e-6)
    assert metrics["updates_skipped"] == (4 - begins) / 4
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.learned.params, free.learned.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(("times", "factor"), [(1 / 1.6, 2.0), (1 / 1.4, 1.0), (1.4, 1.0), (1.6, 0.5)])
def test_the_penalty_adapts_where_the_kl_is_out_of_its_band(times, factor):
    options = {"num_epochs": 1, "num_minibatches": 2, "clip_eps": jnp.inf, "kl_coef": 0.25}
    kl = step_of(make(**options))[2]["kl"]
    _, new, _ = step_of(make(**options, kl_target=float(times * kl)))
    assert new.learned.kl_coef == 0.25 * factor


def test_the_penalty_is_the_kl_from_the_policy_that_acted():
    """After one step of a known direction: KL(old ‖ new), which is not KL(new ‖ old)."""
    options = {"num_epochs": 2, "num_minibatches": 1, "kl_coef": 0.0}
    state, _, metrics = step_of(make(**options))
    after_one = by_hand(state, 1, 1)[0]
    act_key = jax.random.split(KEY)[0]

    def policy(key, obs):
        return NETWORK.apply(state.learned.params, obs)[0].sample_and_log_prob(key)

    _, traj, _ = pgjax.rollout(act_key, state.env_carry, policy, *CARTPOLE, OPTIONS["num_steps"])
    old, new = (NETWORK.apply(params, traj.obs)[0] for params in (state.learned.params, after_one))
    forward, backward = old.kl(new).mean(), new.kl(old).mean()
    np.testing.assert_allclose(metrics["kl"], 0.5 * forward, rtol=1e-3)  # before the first step it is 0
    assert abs(forward - backward) > 0.01 * forward


def test_the_normalisers_hold_what_was_seen():
    """Observations as they are, not normalised before; rewards with the discount of the returns."""
    network = separate(GAUSSIAN)
    state, new, _ = step_of(ZOO["ppo-continuous"](gamma=0.7))
    old = state.learned

    def policy(key, obs):
        return network.apply(old.params, pgjax.normalize(old.obs_moments, obs))[0].sample_and_log_prob(key)

    _, traj, _ = pgjax.rollout(jax.random.split(KEY)[0], state.env_carry, policy, *PENDULUM, 8)
    moments = pgjax.update_moments(old.obs_moments, traj.obs)
    scaling = pgjax.update_reward_scaling(
        old.reward_scaling, traj.reward, traj.terminated, traj.truncated, gamma=0.7
    )
    chex.assert_trees_all_close(new.learned.obs_moments, moments, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(new.learned.reward_scaling, scaling, rtol=1e-4, atol=1e-5)
