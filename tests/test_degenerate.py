"""Batches that no algorithm should meet, and that all of them meet: nothing may become NaN."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import ZOO

from pgjax import networks


class Degeneracy(NamedTuple):
    spread: jax.Array  # of the observations; 0: one observation repeated
    reward: jax.Array  # size of the rewards


class Degenerate:
    """Noise to look at, a reward of any size for the sign of the action."""

    def reset(self, key, params):
        obs = 1.0 + params.spread * jax.random.normal(key, (3,))
        return obs, jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        obs, _ = self.reset(key, params)
        reward = params.reward * jnp.sign(jnp.sum(action) - 0.5)
        ends = state == 4
        return (
            obs,
            jnp.where(ends, 0, state + 1),
            reward,
            ends,
            jnp.zeros_like(ends),
            {"final_observation": obs},
        )


ACTORS = {
    "discrete": networks.CategoricalActor(2, networks.MLP((8,))),
    "continuous": networks.GaussianActor(2, networks.MLP((8,), nn.relu)),
}


@functools.cache
def program(name, kind, **options):
    """Three iterations, from networks whose parameters are scaled."""

    def run(key, degeneracy, actor_scale, critic_scale):
        algorithm = ZOO[name](env=(Degenerate(), degeneracy), actor=ACTORS[kind], **options)
        state = algorithm.init(key)
        learned = state.learned._replace(
            actor_params=jax.tree.map(lambda x: actor_scale * x, state.learned.actor_params),
            critic_params=jax.tree.map(lambda x: critic_scale * x, state.learned.critic_params),
        )
        state, _ = jax.lax.scan(
            lambda state, key: algorithm.step(key, state),
            state._replace(learned=learned),
            jax.random.split(key, 3),
        )
        return state.learned

    return jax.jit(run)


@pytest.mark.parametrize("kind", sorted(ACTORS))
@pytest.mark.parametrize("name", ["npg", "npg-fixed", "trpo", "acktr"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    spread=st.sampled_from([0.0, 1e-6, 1.0, 1e4]),
    reward=st.sampled_from([0.0, 1.0, 1e4, 1e10, 1e18]),
    actor_scale=st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    critic_scale=st.sampled_from([0.0, 1.0, 1e6]),
)
def test_parameters_stay_finite(name, kind, seed, spread, reward, actor_scale, critic_scale):
    degeneracy = Degeneracy(jnp.float32(spread), jnp.float32(reward))
    scales = jnp.float32(actor_scale), jnp.float32(critic_scale)
    learned = program(name, kind)(jax.random.key(seed), degeneracy, *scales)
    for params in (learned.actor_params, learned.critic_params):
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["npg", "npg-fixed", "trpo", "acktr"])
def test_zero_advantages_move_no_actor(name):
    """One observation, no reward, a critic that says 0: there is nothing to learn."""
    degeneracy = Degeneracy(jnp.zeros(()), jnp.zeros(()))
    run = program(name, "continuous", **({"entropy_coef": 0.0} if name == "acktr" else {}))
    learned = run(jax.random.key(0), degeneracy, jnp.ones(()), jnp.zeros(()))
    start = ZOO[name](env=(Degenerate(), degeneracy), actor=ACTORS["continuous"]).init(jax.random.key(0))
    for new, old in zip(
        jax.tree.leaves(learned.actor_params), jax.tree.leaves(start.learned.actor_params), strict=True
    ):
        assert jnp.allclose(new, old, atol=1e-6)
