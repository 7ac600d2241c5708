"""The gradient of a window, and what it costs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pgjax
from pgjax import networks
from pgjax.types import Transition
from pgjax.windows import window_gradient


@pytest.mark.parametrize("corrected", [False, True])
def test_every_sample_has_the_weight_and_the_target_of_its_own_step(corrected, x64, rng):
    shape = num_steps, num_envs = 4, 3
    traj = Transition(
        obs=jnp.asarray(rng.normal(size=(*shape, 2))),
        action=jnp.asarray(rng.integers(0, 2, shape)),
        log_prob=jnp.asarray(-rng.uniform(0.2, 1.5, shape)),
        reward=jnp.asarray(rng.normal(size=shape)),
        terminated=jnp.asarray(rng.random(shape) < 0.2),
        truncated=jnp.asarray(rng.random(shape) < 0.3),
        next_obs=jnp.asarray(rng.normal(size=(*shape, 2))),
    )
    network = networks.ActorCritic(networks.CategoricalActor(2), networks.Critic())
    params = network.init(jax.random.key(0), traj.obs[0, 0])
    options = {"gamma": 0.9, "lambda_": 0.8}
    policy, value = network.apply(params, traj.obs)
    common = traj.reward, value, network.apply(params, traj.next_obs)[1], traj.terminated, traj.truncated
    if corrected:
        ratio = jnp.exp(policy.log_prob(traj.action) - traj.log_prob)
        target, advantage = pgjax.vtrace(ratio, *common, **options)
    else:
        advantage = pgjax.gae(*common, **options)
        target = advantage + value
    assert (traj.truncated & ~traj.terminated).any()
    assert np.unique(advantage.round(9)).size == num_steps * num_envs  # an order that is wrong would show

    def loss(params):
        policy, value = network.apply(params, traj.obs)
        terms = -policy.log_prob(traj.action) * advantage
        terms += 0.5 * pgjax.squared_error_loss(value, target) - 0.01 * policy.entropy()
        return terms.mean()

    gradient, _ = window_gradient(
        network, params, traj, value_coef=0.5, entropy_coef=0.01, corrected=corrected, **options
    )
    chex.assert_trees_all_close(gradient, jax.grad(loss)(params), rtol=1e-9, atol=1e-12)


def test_actions_that_a_mask_forbids_have_no_part_in_the_gradient():
    shape = 3, 2
    mask = jnp.broadcast_to(jnp.array([True, False, True]), (*shape, 3))
    key = jax.random.key(0)
    obs = {"obs": jax.random.normal(key, (*shape, 2)), "action_mask": mask}
    flags = jnp.zeros(shape, bool)
    traj = Transition(
        *(obs, jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.ones(shape), flags, flags, obs)
    )
    network = networks.ActorCritic(networks.CategoricalActor(3), networks.Critic())
    params = network.init(key, jax.tree.map(lambda x: x[0, 0], obs))
    gradient, metrics = window_gradient(
        network, params, traj, gamma=0.9, lambda_=0.8, value_coef=0.5, entropy_coef=0.01
    )
    logits = [g for g in jax.tree.leaves(gradient) if g.shape == (3,)]
    assert len(logits) == 1
    assert logits[0][1] == 0.0
    assert abs(logits[0][0]) > 1e-3
    assert metrics["entropy"] < np.log(2.0) + 1e-6


def test_the_network_is_run_forward_once_over_what_was_observed():
    shape = 3, 2
    obs, zeros, flags = jnp.zeros((*shape, 2)), jnp.zeros(shape), jnp.zeros(shape, bool)
    traj = Transition(obs, jnp.zeros(shape, jnp.int32), zeros, zeros, flags, flags, obs)
    network, calls = networks.ActorCritic(networks.CategoricalActor(2), networks.Critic()), []

    class Counted:
        init = network.init

        @staticmethod
        def apply(params, obs):
            calls.append(obs)
            return network.apply(params, obs)

    params = network.init(jax.random.key(0), obs[0, 0])
    window_gradient(Counted, params, traj, gamma=0.9, lambda_=0.8, value_coef=0.5, entropy_coef=0.01)
    assert len(calls) == 2  # and once over the successors
