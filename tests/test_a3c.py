"""A3C: with nobody in between it is A2C, with others in between its delay is what was asked for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import CARTPOLE, adam, separate

from pgjax.algorithms import a2c, a3c

KEY = jax.random.key(0)
OPTIONS = {"num_envs": 2, "num_steps": 5, "gamma": 0.9, "lambda_": 0.8, "entropy_coef": 0.02}


def make(**options):
    return a3c.make(*CARTPOLE, separate(), adam(0.01), **OPTIONS | {"num_updates": 6} | options)


def run(algorithm, num_iterations=1):
    state = jax.jit(algorithm.init)(KEY)
    step = jax.jit(algorithm.step)
    for i in range(num_iterations):
        state, metrics = step(jax.random.fold_in(KEY, i), state)
    return state, metrics


def keys_of(num_updates):
    return jax.random.split(jax.random.split(jax.random.fold_in(KEY, 0))[1], num_updates)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(
    "options", [{"num_workers": 1}, {"num_workers": 4, "delay": 0}], ids=["one worker", "no delay"]
)
def test_with_nobody_in_between_it_is_a2c(options, corrected):
    synchronous = a2c.make(*CARTPOLE, separate(), adam(0.01), **OPTIONS)
    algorithm = make(corrected=corrected, **options)
    start = jax.jit(algorithm.init)(KEY)
    state = a2c.State(
        a2c.Learned(start.learned.params, start.learned.opt_state),
        jax.tree.map(lambda x: x[0], start.env_carry),
    )
    step = jax.jit(synchronous.step)
    for key in keys_of(6):
        state, _ = step(key, state)
    found, metrics = run(algorithm)
    assert metrics["delay"] == 0
    np.testing.assert_allclose(metrics["importance_ratio"], 1.0, rtol=1e-5)
    chex.assert_trees_all_close(found.learned.params, state.learned.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[0], found.env_carry), state.env_carry, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("delay", "wanted"), [(None, 3), (0, 0), (1, 1), (2, 2)])
def test_taking_turns_the_delay_is_what_it_says(delay, wanted):
    state, metrics = run(make(num_workers=4, delay=delay), 2)
    assert metrics["delay"] == wanted  # of the second iteration: in the first the workers are still fresh
    assert state.num_updates == 12
    untouched = state.copied_at[wanted + 1 :]
    assert (untouched == 0).all()


def test_the_gradient_is_that_of_the_copy():
    """Two workers, two updates: the second still acts and learns as if the first had not been there."""
    learning_rate = 0.5
    algorithm = a3c.make(
        *CARTPOLE, separate(), optax.sgd(learning_rate), num_workers=2, num_updates=2, **OPTIONS
    )
    start = jax.jit(algorithm.init)(KEY)
    both, _ = jax.jit(algorithm.step)(KEY, start)
    # each worker alone, from the same start: what they change adds up
    synchronous = a2c.make(*CARTPOLE, separate(), optax.sgd(learning_rate), **OPTIONS)
    keys = jax.random.split(jax.random.split(KEY)[1], 2)
    changes = []
    for worker, key in enumerate(keys):
        carry = jax.tree.map(lambda x, worker=worker: x[worker], start.env_carry)
        state = a2c.State(a2c.Learned(start.learned.params, start.learned.opt_state), carry)
        after, _ = jax.jit(synchronous.step)(key, state)
        changes.append(jax.tree.map(jnp.subtract, after.learned.params, start.learned.params))
    wanted = jax.tree.map(lambda p, a, b: p + a + b, start.learned.params, *changes)
    chex.assert_trees_all_close(both.learned.params, wanted, rtol=1e-5, atol=1e-6)


def test_a_random_order_comes_from_the_key_and_has_the_mean_delay():
    """A worker waits geometrically: W − 1 updates in the mean, √(W (W − 1)) their deviation; four errors."""
    num_updates = 3000
    algorithm = make(num_workers=3, random_order=True, num_updates=num_updates, num_envs=1, num_steps=1)
    first, again = run(algorithm), run(algorithm)
    chex.assert_trees_all_equal(first, again)
    state, metrics = first
    assert abs(metrics["delay"] - 2.0) < 4 * (6 / num_updates) ** 0.5
    assert len(set(state.copied_at.tolist())) == 3


def test_the_delay_can_be_mapped_over():
    def learned(delay):
        algorithm = make(num_workers=3, delay=delay)
        # initialised in one place for all: orthogonal initialisers in a batch deadlock
        state = algorithm.init(KEY)
        state, metrics = algorithm.step(KEY, state)
        return state.learned.params, metrics["importance_ratio"]

    delays = jnp.arange(3)
    params, ratio = jax.jit(lambda delays: jax.lax.map(learned, delays))(delays)
    assert abs(ratio[0] - 1) < 1e-5
    assert abs(ratio[2] - 1) > 1e-5
    alone, _ = jax.jit(make(num_workers=3).step)(KEY, jax.jit(make(num_workers=3).init)(KEY))
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[2], params), alone.learned.params, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1"),
        ({"num_updates": 0}, "num_updates must be at least 1"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"num_workers": 2, "delay": 2}, "delay must be a whole number from 0 to 1"),
        ({"num_workers": 2, "delay": np.int64(9)}, "delay must be a whole number from 0 to 1"),
        ({"num_workers": 2, "delay": 0.5}, "delay must be a whole number from 0 to 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
