"""ACKTR against what its parts give when they are put together by hand."""

import functools
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import CARTPOLE, categorical, critic

import pgjax
from pgjax import networks
from pgjax.algorithms import acktr
from pgjax.natural import kfac

KEY = jax.random.key(0)
NUM_ENVS, NUM_STEPS, GAMMA, ENTROPY = 4, 8, 0.9, 0.02


def make(actor_optimizer=None, critic_optimizer=None, num_updates=1, **options):
    return acktr.make(
        *CARTPOLE,
        options.pop("actor", categorical()),
        options.pop("critic", critic()),
        kfac.kfac_optimizer(0.25) if actor_optimizer is None else actor_optimizer,
        kfac.kfac_optimizer(0.25) if critic_optimizer is None else critic_optimizer,
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        num_updates=num_updates,
        gamma=GAMMA,
        entropy_coef=ENTROPY,
        **options,
    )


def after_one_step(algorithm):
    state = jax.jit(algorithm.init)(KEY)
    return state, *jax.jit(algorithm.step)(jax.random.key(1), state)


@functools.cache
def one_update():
    """`(max_kl of the actor, max_kl of the critic, momentum) -> (state, new, metrics)`, compiled once."""

    @jax.jit
    def run(max_kl, critic_max_kl, momentum):
        optimizers = [kfac.kfac_optimizer(0.25, max_kl=k, momentum=momentum) for k in (max_kl, critic_max_kl)]
        algorithm = make(*optimizers)
        state = algorithm.init(KEY)
        return state, *algorithm.step(jax.random.key(1), state)

    return run


def change(new, old):
    return jax.tree.map(jnp.subtract, new, old)


def test_an_update_is_the_preconditioned_gradient_within_its_trust_region():
    settings = {"learning_rate": 0.25, "max_kl": 1e-3, "damping": 0.05}
    optimizer = kfac.kfac_optimizer(**settings, momentum=0.0)
    state, new, metrics = after_one_step(make(optimizer, optimizer, lambda_=0.8))
    old = state.learned
    actor, value = categorical(), critic()

    def policy(key, obs):
        return actor.apply(old.actor_params, obs).sample_and_log_prob(key)

    act_key = jax.random.split(jax.random.split(jax.random.key(1), 1)[0], 3)[0]
    _, traj, _ = pgjax.rollout(act_key, state.env_carry, policy, *CARTPOLE, NUM_STEPS)
    assert traj.terminated.any()
    assert traj.truncated.any()
    v, next_v = (value.apply(old.critic_params, obs) for obs in (traj.obs, traj.next_obs))
    advantage = pgjax.gae(traj.reward, v, next_v, traj.terminated, traj.truncated, gamma=GAMMA, lambda_=0.8)

    def actor_loss(params):
        policy = actor.apply(params, traj.obs)
        return -(policy.log_prob(traj.action) * advantage).mean() - ENTROPY * policy.entropy().mean()

    def critic_loss(params):
        return 0.5 * jnp.square(value.apply(params, traj.obs) - advantage - v).mean()

    def by_hand(loss, params, curvature):
        gradient = jax.grad(loss)(params)
        direction = kfac.precondition(kfac.refresh(curvature), gradient, damping=0.05)
        twice_kl = 0.25**2 * sum(
            (g * d).sum() for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        scale = min(1.0, float(np.sqrt(1e-3 / twice_kl)))
        return jax.tree.map(lambda d: -0.25 * scale * d, direction), scale

    for name, loss, scale in (
        ("actor", actor_loss, metrics["trust_scale"]),
        ("critic", critic_loss, metrics["critic_trust_scale"]),
    ):
        params = getattr(old, f"{name}_params")
        step, wanted_scale = by_hand(loss, params, getattr(old, f"{name}_opt_state").kfac)
        taken = change(getattr(new.learned, f"{name}_params"), params)
        np.testing.assert_allclose(scale, wanted_scale, rtol=1e-4)
        chex.assert_trees_all_close(taken, step, rtol=1e-3, atol=1e-6)


def test_the_curvature_is_decomposed_once_and_averaged_at_every_update():
    decay = 0.5
    optimizer = kfac.kfac_optimizer(0.25, decay=decay)
    state, new, _ = after_one_step(make(optimizer, optimizer, num_updates=3))
    for name in ("actor_opt_state", "critic_opt_state"):
        before, after = getattr(state.learned, name), getattr(new.learned, name)
        chex.assert_trees_all_close(after.kfac.eigen, kfac.refresh(before.kfac).eigen, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(before.kfac.weight, 1 - decay, rtol=1e-6)
        np.testing.assert_allclose(after.kfac.weight, 1 - decay**4, rtol=1e-6)
        assert after.num_updates == 3


def test_the_first_factors_come_from_a_rollout_whose_steps_are_counted():
    algorithm = make(num_updates=2)
    step = jax.jit(algorithm.step)
    state = jax.jit(algorithm.init)(KEY)
    new, metrics = step(KEY, state)
    assert state.learned.actor_opt_state.num_updates == 0
    rank = jnp.linalg.matrix_rank(state.learned.actor_opt_state.kfac.factors["Dense_0"].activation)
    assert rank > 1
    assert metrics["env_steps"] == 3 * NUM_ENVS * NUM_STEPS
    assert step(KEY, new)[1]["env_steps"] == 2 * NUM_ENVS * NUM_STEPS


def test_a_quarter_of_the_kl_is_half_the_step():
    steps = []
    for max_kl in (1e-6, 4e-6):
        state, new, metrics = one_update()(max_kl, 1e-3, 0.0)
        assert metrics["trust_scale"] < 1.0
        steps.append(change(new.learned.actor_params, state.learned.actor_params))
    chex.assert_trees_all_close(jax.tree.map(lambda x: 2 * x, steps[0]), steps[1], rtol=1e-3, atol=1e-7)


def test_the_two_networks_have_a_step_each():
    _, one, _ = one_update()(1e-3, 1e-3, 0.9)
    _, other, _ = one_update()(1e-3, 0.1, 0.9)
    chex.assert_trees_all_equal(one.learned.actor_params, other.learned.actor_params)
    assert optax.tree.norm(change(one.learned.critic_params, other.learned.critic_params)) > 0
    _, other, _ = one_update()(0.1, 1e-3, 0.9)
    chex.assert_trees_all_equal(one.learned.critic_params, other.learned.critic_params)
    assert optax.tree.norm(change(one.learned.actor_params, other.learned.actor_params)) > 0


def test_optimizers_without_curvature_are_refused():
    for optimizers in ({"actor_optimizer": optax.adam(1e-3)}, {"critic_optimizer": optax.adam(1e-3)}):
        with pytest.raises(ValueError, match="kfac_optimizer"):
            make(**optimizers)


def test_no_update_is_refused():
    with pytest.raises(ValueError, match="num_updates must be at least 1"):
        make(num_updates=0)


def test_a_network_that_is_not_dense_is_refused():
    with pytest.raises(ValueError, match="train a network with convolutions or other parameters by another"):
        make(actor=networks.LinearSoftmax(lambda obs: obs[..., :2, None])).init(KEY)


def test_many_seeds_decompose_without_a_deadlock():
    """Batched LAPACK calls side by side hang jaxlib 0.10 on few cores; here one follows the other."""
    code = """
import jax, pgjax
from zoo import ZOO
jax.block_until_ready(pgjax.train(jax.random.split(jax.random.key(0), 6), ZOO["acktr"](), 2))
print("done")
"""
    here = str(pathlib.Path(__file__).parent)
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "PYTHONPATH": here}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, env=environment
    )
    assert ended.stdout.strip().endswith("done"), ended.stderr
