"""Environments that isolate one ability each, with the answer known beforehand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax.tabular.mdp import Box, Discrete


class ProbeState(NamedTuple):
    obs: jax.Array
    time: jax.Array


class Probe:
    """An episode of `length` steps whose observation is drawn (or fixed) at its start.

    Args:
        reward: (obs, time, action) -> reward.
        length: steps; the end terminates, or truncates with `truncates`.
        signs: draw the observation from {-1, 1}; otherwise it is 1.
        timed: the observation carries the time as well.
        box: the actions are [-1, 1], not {0, 1}.
    """

    def __init__(
        self, reward: Callable[..., Any], *, length=1, truncates=False, signs=False, timed=False, box=False
    ):
        self.reward, self.length, self.truncates = reward, length, truncates
        self.signs, self.timed, self.box = signs, timed, box

    def action_space(self, params):
        return Box((1,), float, -1.0, 1.0) if self.box else Discrete(2)

    def observe(self, state):
        time = state.time.astype(float) if self.timed else jnp.zeros(())
        return jnp.stack([state.obs, time])

    def reset(self, key, params):
        obs = jnp.where(jax.random.bernoulli(key), 1.0, -1.0) if self.signs else jnp.ones(())
        state = ProbeState(obs, jnp.zeros((), jnp.int32))
        return self.observe(state), state

    def step(self, key, state, action, params):
        reward = jnp.asarray(self.reward(state.obs, state.time, action))
        after = state._replace(time=state.time + 1)
        done = after.time >= self.length
        obs, fresh = self.reset(key, params)
        following = jax.tree.map(lambda f, a: jnp.where(done, f, a), fresh, after)
        flags = (jnp.zeros_like(done), done) if self.truncates else (done, jnp.zeros_like(done))
        final = self.observe(after)
        return jnp.where(done, obs, final), following, reward, *flags, {"final_observation": final}


constant_value = Probe(lambda obs, time, action: 1)  # an int: rewards are cast
predictable_value = Probe(lambda obs, time, action: obs, signs=True)
two_steps = Probe(lambda obs, time, action: jnp.where(time == 1, 1.0, 0.0), length=2, timed=True)
action_dependence = Probe(lambda obs, time, action: jnp.where(action == 1, 1.0, -1.0))
obs_and_action = Probe(lambda obs, time, action: jnp.where((action == 1) == (obs > 0), 1.0, -1.0), signs=True)
endless = Probe(lambda obs, time, action: 1.0, length=10, truncates=True)
endless_box = Probe(lambda obs, time, action: 1.0, length=10, truncates=True, box=True)
ten_steps = Probe(lambda obs, time, action: 1.0, length=10)
continuous = Probe(lambda obs, time, action: -((action[0] - 0.5 * obs) ** 2), signs=True, box=True)
