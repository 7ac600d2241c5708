"""Acting, storing and sampling by turns: what lies in the buffer, and what memory holds."""

import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import experience
from pgjax.exploration import check_box_actions
from pgjax.tabular.mdp import Box, Discrete

KEY = jax.random.key(0)


class Counter:
    """Observes how many steps it has taken; ends every fourth, truncated every eighth."""

    def action_space(self, params):
        return Discrete(3)

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros((), jnp.int32)

    def step(self, key, state, action, params):
        state = state + 1
        obs = jnp.asarray([state], float)
        terminated, truncated = state % 8 == 4, state % 8 == 0
        info = {"final_observation": obs}
        # it counts on across episodes, so that every step can be told from every other
        return obs, state, action.astype(float), terminated, truncated, info


def resident_bytes():
    """What the process holds now; 0 where the system does not say."""
    status = pathlib.Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


class Learned(NamedTuple):
    seen: jax.Array


def make(env=None, **options):
    def learn(key, learned, batch):
        assert batch.transition.reward.shape == batch.discount.shape
        return Learned(learned.seen + batch.discount.sum()), {"value_loss": batch.discount.mean()}

    def explore(key, learned, obs, noise, env_steps):
        return jnp.full(len(obs), 7), noise + 1.0

    options = {
        "num_envs": 2,
        "num_steps": 1,
        "num_updates": 4,
        "num_gradient_steps": 1,
        "batch_size": 5,
        "capacity": 100,
        "warmup_steps": 6,
        "gamma": 0.5,
    } | options
    parts = lambda *_: Learned(jnp.zeros(())), explore, learn, lambda *_: None
    return experience.make(env or Counter(), None, *parts, **options)


def run(algorithm, num_iterations=1):
    state = jax.jit(algorithm.init)(KEY)
    step = jax.jit(algorithm.step)
    for _ in range(num_iterations):
        state, metrics = step(KEY, state)
    return state, metrics


def stored(state, n_step=1):
    """What is in the buffer, in the order in which it was written."""
    storage = state.replay.storage if n_step == 1 else state.replay.storage[0]
    return jax.tree.map(lambda x: np.asarray(x)[: state.replay.size], storage)


def test_the_warm_up_acts_at_random_and_is_counted_once():
    algorithm = make()
    state = jax.jit(algorithm.init)(KEY)
    assert state.replay.size == 6
    assert set(stored(state).action.tolist()) <= {0, 1, 2}
    assert state.env_steps == state.uncounted_steps == 6
    after, metrics = jax.jit(algorithm.step)(KEY, state)
    assert metrics["env_steps"] == 6 + 8
    assert after.env_steps == 14
    assert jax.jit(algorithm.step)(KEY, after)[1]["env_steps"] == 8


def test_actions_without_bounds_are_refused():
    with pytest.raises(ValueError, match="this one has no bounds"):
        check_box_actions(Box((1,), float))
    check_box_actions(Box((1,), float, -1.0, 1.0))


@pytest.mark.parametrize("num_steps", [1, 3])
def test_every_step_is_stored_once_and_truncation_stays_truncation(num_steps):
    state, _ = run(make(num_steps=num_steps), 2)
    found = stored(state)
    times = 3 + 8 * num_steps
    np.testing.assert_array_equal(found.next_obs[:, 0], np.repeat(np.arange(1, times + 1), 2))
    np.testing.assert_array_equal(found.terminated, found.next_obs[:, 0] % 8 == 4)
    np.testing.assert_array_equal(found.truncated, found.next_obs[:, 0] % 8 == 0)
    assert (found.action[6:] == 7).all()


@pytest.mark.parametrize("num_steps", [1, 3])
def test_n_step_transitions_are_stored_when_they_are_complete(num_steps):
    state, _ = run(make(n_step=3, num_steps=num_steps), 2)
    found, discount = stored(state, n_step=3), np.asarray(state.replay.storage[1])[: state.replay.size]
    times = 3 + 8 * num_steps - 2  # two steps are still waiting
    assert state.recent.reward.shape == (2, 2)
    begin = np.repeat(np.arange(times), 2)
    np.testing.assert_array_equal(found.obs[:, 0], begin)
    length = np.minimum(3, 4 - begin % 4)  # an episode ends at every fourth step
    np.testing.assert_array_equal(found.next_obs[:, 0], begin + length)
    np.testing.assert_allclose(discount, 0.5**length)
    acted = begin >= 3
    np.testing.assert_allclose(found.reward[acted], 7 * (2 - 2 * 0.5 ** length[acted]))


def test_the_noise_begins_at_zero_in_every_episode():
    """Its explorer adds 1 at each step; the third step of the eighteen ends no episode, the fourth does."""
    for num_updates in (1, 2, 4):
        state, _ = run(make(num_updates=num_updates))
        steps = 3 + num_updates
        wanted = 0 if steps % 4 == 0 else min(num_updates, steps % 4)
        assert (state.noise == wanted).all()


@pytest.mark.parametrize("num_gradient_steps", [1, 3])
def test_every_gradient_step_gets_a_batch(num_gradient_steps):
    state, metrics = run(make(num_gradient_steps=num_gradient_steps))
    np.testing.assert_allclose(state.learned.seen, 0.5 * 4 * num_gradient_steps * 5)
    np.testing.assert_allclose(metrics["value_loss"], 0.5)


@pytest.mark.parametrize("n_step", [1, 3])
def test_the_buffer_is_in_memory_once(n_step):
    """Donated, an iteration needs a small part of the buffer beside it: nothing of it is copied."""
    algorithm = make(capacity=100_000, n_step=n_step, num_updates=50)
    state = jax.eval_shape(algorithm.init, KEY)
    program = jax.jit(algorithm.step, donate_argnums=1).lower(KEY, state).compile().memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.replay))
    assert program.temp_size_in_bytes < 0.02 * size
    assert program.alias_size_in_bytes >= size


def test_three_hundred_iterations_need_no_more_memory_than_twenty():
    algorithm = make(capacity=10_000)
    step, state = jax.jit(algorithm.step, donate_argnums=1), jax.jit(algorithm.init)(KEY)

    def go_on(state, num_iterations):
        for i in range(num_iterations):
            state, metrics = step(jax.random.fold_in(KEY, i), state)
        jax.block_until_ready(metrics)
        arrays = jax.live_arrays()
        return state, sum(x.nbytes for x in arrays), len(arrays), resident_bytes()

    state, nbytes, count, resident = go_on(state, 20)
    state, later_nbytes, later_count, later_resident = go_on(state, 280)
    assert later_nbytes <= nbytes
    assert later_count <= count
    assert later_resident < resident + 2**20


def test_compile_time_does_not_depend_on_the_number_of_steps():
    def equations(**options):
        algorithm = make(batch_size=32, **options)  # fewer numbers of one key are drawn in another way
        state = jax.eval_shape(algorithm.init, KEY)
        return str(jax.make_jaxpr(algorithm.step)(KEY, state)).count(" = ")

    few = equations()
    assert few == equations(num_gradient_steps=50) == equations(num_updates=500) == equations(num_steps=20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"capacity": 0}, "capacity must be at least 1"),
        ({"num_updates": 0}, "num_updates must be at least 1"),
        ({"num_gradient_steps": 0}, "num_gradient_steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"n_step": 0}, "n_step must be at least 1"),
        ({"warmup_steps": 0}, "warmup_steps=0 must be at least 2"),
        ({"warmup_steps": 4, "n_step": 3}, "warmup_steps=4 must be at least 6"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_target_goes_a_part_of_the_way():
    assert experience.follow(jnp.array(1.0), jnp.array(3.0), 0.25) == 1.5
    assert experience.follow(jnp.array(1.0), jnp.array(3.0), 1.0) == 3.0
